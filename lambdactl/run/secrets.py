"""Secrets on the controller: one private file, or the environment; they reach a run by its environment only.

LAMBDACTL_SECRET_<NAME> stands above the file: that is how AWX credentials hand them over.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from pathlib import Path

from lambdactl.errors import LambdactlError, SpecError

NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
PREFIX = "LAMBDACTL_SECRET_"
MAX_SIZE = 1 << 20  # bytes of one value


def path() -> Path:
    """The file: `secrets.json` below the XDG configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "lambdactl" / "secrets.json"


def check_name(name: str) -> str:
    """The name when it is one. Raises SpecError."""
    if NAME.fullmatch(name) is None:
        raise SpecError("a secret's name has 1 to 200 letters, digits, '_' and '-'.")
    return name


def get(name: str) -> str | None:
    """A secret's value, or None when it is not set.

    Raises:
        LambdactlError: the file cannot be used, or others may read it.
    """
    for variable in (PREFIX + name, PREFIX + name.upper().replace("-", "_")):
        if variable in os.environ:
            return os.environ[variable]
    return _read().get(name)


def names() -> list[str]:
    """The names in the file."""
    return sorted(_read())


def put(name: str, value: str) -> None:
    """Set a secret.

    Raises:
        SpecError: the value is empty, too long, no text, or holds a NUL, which no environment variable can.
    """
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise SpecError(f"the value of {name} must be UTF-8 text; encode other bytes, as base64 say.") from None
    if not value or "\0" in value or size > MAX_SIZE:
        raise SpecError(f"the value of {name} must have 1 to {MAX_SIZE} bytes, without NUL.")
    _write({**_read(), check_name(name): value})


def delete(name: str) -> None:
    """Remove a secret.

    Raises:
        SpecError: there is none of this name.
    """
    known = _read()
    if name not in known:
        raise SpecError(f"no secret is named {name}; `lambdactl secret list` shows what there is.")
    _write({key: value for key, value in known.items() if key != name})


def _read() -> dict[str, str]:
    file = path()
    try:
        with file.open(encoding="utf-8") as opened:
            if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                raise LambdactlError(f"others may read {file}; run `chmod 600 {file}`, and renew what is in it.")
            known = json.load(opened)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LambdactlError(f"the file of secrets {file} cannot be read ({error}).") from None
    if not isinstance(known, dict):
        raise LambdactlError(f"the file of secrets {file} is damaged; move it away and set them again.")
    return {str(name): str(value) for name, value in known.items()}


def _write(values: dict[str, str]) -> None:
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".secrets-")  # mode 0600 from its first byte
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            json.dump(values, opened)
        Path(temporary).replace(file)
    except OSError as error:
        raise LambdactlError(f"the file of secrets {file} cannot be written ({error.strerror}).") from None
