"""What the controller remembers between commands: fleets, their last facts, and the runs that it submitted.

SQLite under the XDG state folder. This is a convenience, never the truth: the nodes hold the runs, and every command
works on a machine that has only the fleet file.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lambdactl import spec
from lambdactl.errors import LambdactlError
from lambdactl.fleet import Fleet
from lambdactl.spec import FleetSpec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS fleets (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, path TEXT, text TEXT NOT NULL,
    facts TEXT NOT NULL DEFAULT '{}', hosts TEXT NOT NULL DEFAULT '[]', updated_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, name TEXT NOT NULL, fleet_id TEXT NOT NULL, hosts TEXT NOT NULL,
    submitted_at REAL NOT NULL, state TEXT NOT NULL, exit_code INTEGER, reason TEXT, finished_at REAL
);
CREATE INDEX IF NOT EXISTS runs_by_name ON runs (name, submitted_at);
CREATE TABLE IF NOT EXISTS validations (
    id TEXT PRIMARY KEY, fleet_id TEXT NOT NULL, started_at REAL NOT NULL, document TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS validations_by_fleet ON validations (fleet_id, started_at);
PRAGMA user_version = 2;
"""
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT)
_VERSION = 2  # 1 had no validations; every table is made where it is missing, so an older file needs nothing else


def state_dir() -> Path:
    """The controller's state folder (mode 0700), made when it is missing."""
    try:
        from platformdirs import user_state_path
    except ImportError:  # plain Ansible from a checkout, such as AWX's own execution environment
        folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "lambdactl"
    else:
        folder = user_state_path("lambdactl", appauthor=False)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


class Named(Protocol):
    """What is remembered of a fleet, whatever it runs on."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...


@dataclass(frozen=True)
class FleetRecord:
    """A fleet that was applied from this machine; `facts` maps host names to the probe's answer."""

    id: str
    name: str
    path: str | None
    text: str
    facts: dict[str, dict[str, Any]]
    hosts: tuple[str, ...]
    updated_at: float

    @property
    def spec(self) -> FleetSpec:
        """The fleet's file as it stands now, or as it was remembered when it is gone or another fleet's by now.

        Raises:
            SpecError: the file was changed and is not valid any more.
        """
        return self._current()[0]

    def load(self) -> Fleet:
        """The hosts of an SSH fleet, by the same file.

        Raises:
            SpecError: the file was changed and is not valid any more, or it is no SSH fleet.
        """
        found, path = self._current()
        return Fleet.from_spec(found, path=path)

    def _current(self) -> tuple[FleetSpec, str | None]:
        """The spec, and its file; None where that is another fleet's: nobody may take it for this one's inventory."""
        path = self.path
        if path is not None and Path(path).is_file():
            found = spec.load(path, kind="fleet")
            if found.name in (None, self.name):
                return found, path
            path = None
        return spec.loads(self.text, filename=self.path or self.name, kind="fleet"), path


@dataclass(frozen=True)
class RunRecord:
    """A run submitted from this machine, with the last state that was seen."""

    run_id: str
    name: str
    fleet_id: str
    hosts: tuple[str, ...]
    submitted_at: float
    state: str
    exit_code: int | None = None
    reason: str | None = None
    finished_at: float | None = None


def _create(path: Path) -> None:
    """Make the file when it is not there: it holds host names and facts, so it is private from the first byte.

    A file that is there is not even opened: to close it would drop every lock that this process's other connections
    have on it, and another process could then take their journal away (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _remedy(error: Exception) -> str:
    """What helps: a damaged file can be moved away, a folder that takes no more cannot."""
    if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL) & 0xFF in _DAMAGED:  # an OSError has none
        return "move it away, nothing on the nodes is lost"
    return "make room there, or name another folder by XDG_STATE_HOME; nothing on the nodes is lost"


class State:
    """The state database; use it as a context manager.

    Raises:
        LambdactlError: the file cannot be opened, or was written by a newer lambdactl.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or state_dir() / "state.db"
        try:
            _create(self.path)
            self._db = sqlite3.connect(self.path, timeout=10)
            self._db.row_factory = sqlite3.Row
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise LambdactlError(f"{self.path} was written by a newer lambdactl; upgrade this one.")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise LambdactlError(f"the state file {self.path} cannot be used ({error}); {_remedy(error)}.") from error

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._db.close()

    def remember_fleet(
        self, fleet: Named, text: str, *, facts: dict[str, dict[str, Any]] | None = None, hosts: list[str] | None = None
    ) -> None:
        """Store a fleet; facts and provisioned host names are kept from before where they are not given."""
        old = self.fleet(fleet.id)
        known = old.facts if old else {}
        merged = {**known, **(facts or {})}
        provisioned = hosts if hosts is not None else list(old.hosts) if old else []
        path = str(Path(fleet.path).resolve()) if fleet.path else None
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO fleets (id, name, path, text, facts, hosts, updated_at) VALUES (?,?,?,?,?,?,?)",
                (fleet.id, fleet.name, path, text, json.dumps(merged), json.dumps(provisioned), time.time()),
            )

    def fleet(self, key: str) -> FleetRecord | None:
        """A fleet by id, or the newest of that name."""
        row = self._db.execute(
            "SELECT * FROM fleets WHERE id = ? OR name = ? ORDER BY id = ? DESC, updated_at DESC LIMIT 1",
            (key, key, key),
        ).fetchone()
        return _fleet(row) if row else None

    def fleets(self) -> list[FleetRecord]:
        """All fleets, the newest first."""
        return [_fleet(row) for row in self._db.execute("SELECT * FROM fleets ORDER BY updated_at DESC")]

    def forget_fleet(self, fleet_id: str) -> None:
        """Remove a fleet and its runs."""
        with self._db:
            self._db.execute("DELETE FROM fleets WHERE id = ?", (fleet_id,))
            self._db.execute("DELETE FROM runs WHERE fleet_id = ?", (fleet_id,))

    def remember_run(self, run: RunRecord) -> None:
        """Store or overwrite a run."""
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?,?,?,?,?,?,?,?,?)",
                (
                    run.run_id,
                    run.name,
                    run.fleet_id,
                    json.dumps(run.hosts),
                    run.submitted_at,
                    run.state,
                    run.exit_code,
                    run.reason,
                    run.finished_at,
                ),
            )

    def run(self, key: str) -> RunRecord | None:
        """A run by id, or the newest of that name."""
        row = self._db.execute(
            "SELECT * FROM runs WHERE run_id = ? OR name = ? ORDER BY submitted_at DESC LIMIT 1", (key, key)
        ).fetchone()
        return _run(row) if row else None

    def runs(self, fleet_id: str | None = None) -> list[RunRecord]:
        """Runs, the newest first."""
        return list(self._runs(fleet_id))

    def remember_validation(self, key: str, fleet_id: str, started_at: float, document: dict[str, Any]) -> None:
        """Keep a validation; they outlive the fleet's other records, because a past is what they are for."""
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO validations VALUES (?,?,?,?)", (key, fleet_id, started_at, json.dumps(document))
            )

    def validations(self, fleet_id: str | None = None, *, limit: int = 100) -> list[dict[str, Any]]:
        """The documents of validations, the newest first; of one fleet, or of all."""
        query = "SELECT document FROM validations WHERE ? IS NULL OR fleet_id = ? ORDER BY started_at DESC LIMIT ?"
        return [json.loads(row["document"]) for row in self._db.execute(query, (fleet_id, fleet_id, limit))]

    def validation(self, key: str) -> dict[str, Any] | None:
        """A validation by its id, or by the beginning of it."""
        row = self._db.execute(
            "SELECT document FROM validations WHERE substr(id, 1, length(?)) = ? ORDER BY started_at DESC LIMIT 1",
            (key, key),
        ).fetchone()
        return json.loads(row["document"]) if row else None

    def _runs(self, fleet_id: str | None) -> Iterator[RunRecord]:
        query = "SELECT * FROM runs WHERE ? IS NULL OR fleet_id = ? ORDER BY submitted_at DESC"
        for row in self._db.execute(query, (fleet_id, fleet_id)):
            yield _run(row)


def _fleet(row: sqlite3.Row) -> FleetRecord:
    facts: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(ValueError):
        facts = json.loads(row["facts"])
    return FleetRecord(
        row["id"], row["name"], row["path"], row["text"], facts, tuple(json.loads(row["hosts"])), row["updated_at"]
    )


def _run(row: sqlite3.Row) -> RunRecord:
    return RunRecord(
        run_id=row["run_id"],
        name=row["name"],
        fleet_id=row["fleet_id"],
        hosts=tuple(json.loads(row["hosts"])),
        submitted_at=row["submitted_at"],
        state=row["state"],
        exit_code=row["exit_code"],
        reason=row["reason"],
        finished_at=row["finished_at"],
    )
