"""A service's files on its ingress host: what is wanted, what is, and its token; all private, each replaced whole.

desired.json   the service document     previous.json   the one before, while an update can still be taken back
state.json     what the supervisor says token           the bearer token
stop           present: everything of the service is to end
"""

from __future__ import annotations

import os
import shutil

from . import paths, service_doc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FINAL = ("stopped",)


class Store:
    """The files of one service."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = service_doc.folder(name)

    def path(self, name: str) -> str:
        """A file of the service."""
        return f"{self.folder}/{name}"

    def make(self) -> None:
        """Make the folder."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.chmod(self.folder, 0o700)

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file, or None."""
        value = paths.read_json(self.path(name))
        return value if isinstance(value, dict) else None

    def write(self, name: str, value: object) -> None:
        """Replace a JSON file."""
        paths.write_json(self.path(name), value)

    def remove(self, name: str) -> None:
        """Remove a file where there is one."""
        if os.path.exists(self.path(name)):
            os.unlink(self.path(name))

    @property
    def stopping(self) -> bool:
        """Whether somebody wants the service to end."""
        return os.path.exists(self.path("stop"))

    def token(self) -> str:
        """The service's token, made on first use; it stays the same until the service is forgotten."""
        found = paths.read_text(self.path("token")).strip()
        if not found:
            import secrets

            found = secrets.token_urlsafe(32)
            paths.write_atomic(self.path("token"), found.encode() + b"\n")
        return found

    def changed_at(self) -> tuple[int, bool]:
        """Something that is another one whenever somebody wants something else."""
        try:
            return os.stat(self.path("desired.json")).st_mtime_ns, self.stopping
        except OSError:
            return 0, self.stopping

    def forget(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def names() -> list[str]:
    """Every service that has files here."""
    try:
        return sorted(name for name in os.listdir(paths.STATE + "/services") if service_doc.NAME.fullmatch(name))
    except OSError:
        return []


def jobs() -> list[dict[str, Any]]:
    """A job of every service that is to go on here, of each of its revisions: all hosts of one have the same files."""
    found = []
    for store in map(Store, names()):
        known = (store.read("state.json") or {}).get("summary") or {}
        if known.get("state") in FINAL and store.stopping:
            continue
        for document in (store.read("desired.json"), store.read("previous.json")):
            hosts = (document or {}).get("hosts") or []
            found += [host["job"] for host in hosts[:1] if isinstance(host.get("job"), dict)]
    return found
