"""What a host name, a user name and a key path may look like.

They come from a file and end up in the argument list of ``ssh``, inside a ProxyCommand that a shell runs, in an
``ssh_config`` and in Ansible variables (which are templates). Allow-lists keep all four safe: nothing that a shell,
ssh's ``%`` tokens or Jinja would give a meaning to gets through.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

_HOSTNAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,127}\$?", re.ASCII)
_KEY_PATH = re.compile(r"[\w~/.][\w ~/.+@=,:()-]*")
_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

NO_KEY = "none"
"""Stands for "no key file, the agent decides", as in OpenSSH's ``IdentityFile none``."""


def hostname_problem(value: str) -> str | None:
    """What is wrong with a host name or IP address, as the end of a sentence; None when it is fine."""
    if _HOSTNAME.fullmatch(value):
        return None
    try:
        ipaddress.IPv6Address(value)
    except ValueError:
        return "is not a host name or an IP address (letters, digits, '.', '-' and '_')"
    return "has a zone; write the address without '%'" if "%" in value else None


def user_problem(value: str) -> str | None:
    """What is wrong with a login name, as the end of a sentence; None when it is fine."""
    return None if _USER.fullmatch(value) else "is not a login name (letters, digits, '.', '-', '_', '+' and '@')"


def key_path_problem(value: str) -> str | None:
    """What is wrong with the path of a private key, as the end of a sentence; None when it is fine."""
    if value.startswith("~") and not value.startswith("~/"):
        return "names another user's home; write '~/' or the whole path"
    if _KEY_PATH.fullmatch(value):
        return None
    return "is not a plain path (letters, digits, spaces and ~ / . _ - + @ = , : ( ) are allowed)"


def is_variable(value: str) -> bool:
    """Whether a key path is ``$NAME``: the environment variable that holds the path when the connection is made."""
    return _VARIABLE.fullmatch(value) is not None


def absolute_key_path(value: str) -> str:
    """A relative path becomes absolute, because Ansible runs ssh in another folder; ``~/`` and ``$NAME`` stay."""
    if value.startswith("~/") or is_variable(value):
        return value
    return str(Path.cwd() / value)
