"""What this machine keeps of a service: that it is one, and its token in a private file of its own."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from lambdactl.state import state_dir


def _folder(fleet_id: str) -> Path:
    return state_dir() / "services" / fleet_id


def keep(fleet_id: str, name: str, ingress: str, token: str | None) -> Path | None:
    """Remember a service; the path of the file that holds its token and nothing else, None without a token."""
    folder = _folder(fleet_id)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(folder / f"{name}.json", json.dumps({"ingress": ingress}))
    path = folder / f"{name}.token"
    if token is None:
        path.unlink(missing_ok=True)
        return None
    _write(path, token + "\n")
    return path


def _write(path: Path, text: str) -> None:
    """Private from the first byte, replaced whole."""
    temporary = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def is_known(name: str) -> bool:
    """Whether a service of that name was applied from here and not deleted since."""
    return any((state_dir() / "services").glob(f"*/{name}.json")) if name.replace("-", "").isalnum() else False


def forget(fleet_id: str, name: str) -> None:
    """Keep nothing of it any more."""
    for suffix in ("json", "token"):
        (_folder(fleet_id) / f"{name}.{suffix}").unlink(missing_ok=True)
