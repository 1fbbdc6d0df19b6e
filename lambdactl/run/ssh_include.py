"""The one line of ours in the user's `~/.ssh/config`: put in at its top, found again, taken away.

Everything else in that file is the user's, byte for byte: its mode and owner stay, a symbolic link stays one (the file
that it leads to is replaced), and readers see the old or the new file, never a part.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

from lambdactl.errors import LambdactlError
from lambdactl.fleet.options import home_path, quoted

_SECTION = re.compile(rb"^\s*(?:host|match)\b", re.I)


def user_config() -> Path:
    """The user's ssh_config."""
    return Path("~/.ssh/config").expanduser()


def include_line() -> str:
    """The line; it names our file as OpenSSH is to read it."""
    return f"Include {quoted(home_path('~/.ssh/lambdactl/config'))}"


def is_included() -> bool:
    """Whether the line is where it counts for every host: above all sections."""
    for line in _content().split(b"\n"):
        if line.strip() == include_line().encode():
            return True
        if _SECTION.match(line):
            return False
    return False


def add() -> bool:
    """Put the line at the top, once; False when it was there. Raises LambdactlError."""
    if is_included():
        return False
    content = _without(_content())
    _replace(include_line().encode() + b"\n" + content)
    return True


def remove() -> bool:
    """Take the line away; False when it was not there. An empty file is removed. Raises LambdactlError."""
    content = _content()
    rest = _without(content)
    if rest == content:
        return False
    if rest or user_config().is_symlink():
        _replace(rest)
    else:
        user_config().unlink()
    return True


def _without(content: bytes) -> bytes:
    ours = include_line().encode()
    return b"".join(line for line in content.splitlines(keepends=True) if line.strip() != ours)


def _content() -> bytes:
    try:
        return user_config().read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise LambdactlError(f"{user_config()} cannot be read ({error.strerror}).") from None


def _replace(content: bytes) -> None:
    try:
        target = user_config().resolve()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o7777 if target.exists() else 0o600
    except (OSError, RuntimeError) as error:
        raise LambdactlError(f"{user_config()} cannot be changed ({error}).") from None
    write_whole(target, content, mode)


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step, with this mode and its owner as it was. Raises LambdactlError."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                if os.geteuid() == 0 and path.exists():
                    os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise LambdactlError(f"{path} cannot be written ({error.strerror or error}).") from None
