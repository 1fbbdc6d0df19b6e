"""RankState: what a node knows of its rank, kept as one JSON file that is only ever replaced whole.

Fields (times in seconds since 1970, sizes in bytes): run_id, run_name, rank, nodes_num, node, state, exit_code, reason,
message, pid, started_at, ready_at, finished_at, log_size, log_start, log_dropped, owner, submitted_at, prepared (false
until the rank's files and volumes are in place), tags, ports, gang; and for a rank in a container, while it is in the
state `pulling` and after it, pull: {done, total} in bytes.
"""

from __future__ import annotations

import errno
import os
import time

from . import locks, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .spec import Job

FINAL = ("done", "failed", "stopped")
SPARE_BYTES = 65536


def new(job: Job) -> dict[str, Any]:
    """The state of a rank that was accepted and has not started its commands."""
    return {
        "run_id": job.run_id,
        "run_name": job.run_name,
        "rank": job.rank,
        "nodes_num": len(job.nodes),
        "node": job.node.name,
        "state": "waiting" if job.container is None else "pulling",
        "exit_code": None,
        "reason": None,
        "message": None,
        "pid": None,
        "started_at": time.time(),
        "ready_at": None,
        "finished_at": None,
        "log_size": 0,
        "log_start": 0,
        "log_dropped": 0,
        "owner": job.owner,
        "submitted_at": job.submitted_at,
        "prepared": not job.prepares,
        "tags": job.tags,
        "ports": job.ports,
        "attempt": job.raw.get("attempt"),
        "gang": None,
        "boot": paths.boot(),
    }


def reserved(lease: dict[str, Any]) -> dict[str, Any]:
    """The state of a run that has only reserved this node."""
    blank = dict.fromkeys(("exit_code", "reason", "message", "pid", "started_at", "ready_at", "finished_at", "gang"))
    known = {key: lease.get(key) for key in ("run_id", "run_name", "owner")}
    place = {"rank": None, "nodes_num": None, "node": None, "log_size": 0, "log_start": 0, "log_dropped": 0}
    return {**known, **place, **blank, "state": "reserved", "submitted_at": lease.get("since")}


def path(run: str) -> str:
    """The file that holds a run's RankState."""
    return paths.run_dir(run) + "/state.json"


def read(run: str) -> dict[str, Any] | None:
    """The RankState, or None when the run is unknown here."""
    value = paths.read_json(path(run))
    return value if isinstance(value, dict) and "state" in value else None


def create(job: Job) -> dict[str, Any]:
    """Write a new rank's first state, and set disk space aside for its last one."""
    value = new(job)
    paths.write_json(path(job.run_id), value)
    paths.write_atomic(paths.run_dir(job.run_id) + "/spare", bytes(SPARE_BYTES))
    return value


def update(run: str, **changes: Any) -> dict[str, Any]:
    """Merge changes into the RankState under its lock; the first final state stays (only `gang` may follow it)."""
    with locks.held(paths.run_dir(run) + "/state.lock"):
        value = read(run) or {}
        if value.get("state") in FINAL:
            changes = {key: changes[key] for key in ("gang",) if key in changes}
        value.update(changes)
        try:
            paths.write_json(path(run), value)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.truncate(paths.run_dir(run) + "/spare", 0)
            paths.write_json(path(run), value)
        return value


def is_final(value: dict[str, Any]) -> bool:
    """Whether the rank has ended."""
    return value.get("state") in FINAL


def is_settled(value: dict[str, Any]) -> bool:
    """Whether nothing will change any more: the rank has ended and, on rank 0, so has the gang."""
    gang = value.get("gang") or {}
    return is_final(value) and (value.get("rank") != 0 or gang.get("state") in FINAL)


def is_alive(run: str) -> bool:
    """Whether the rank's supervisor runs, or is being started right now."""
    folder = paths.run_dir(run)
    # In this order: a supervisor takes its own lock before its starter lets go of the other one.
    return locks.is_held(folder + "/start.lock") or locks.is_held(folder + "/rank.lock")


def run_ids() -> list[str]:
    """Every run that has a folder here."""
    try:
        return sorted(name for name in os.listdir(paths.RUNS) if paths.is_run_id(name))
    except FileNotFoundError:
        return []


def age_key(value: dict[str, Any]) -> tuple[float, str]:
    """Sorts runs from the oldest to the newest, by this node's clock."""
    return (float(value.get("started_at") or 0), str(value.get("run_id")))


def find(key: str) -> str | None:
    """The UUID of the run with this UUID, or of the newest with this name; None when there is none."""
    if paths.is_run_id(paths.run_key(key)):
        return key if os.path.isdir(paths.run_dir(key)) else None
    named = [value for value in map(read, run_ids()) if value is not None and value.get("run_name") == key]
    return str(max(named, key=age_key)["run_id"]) if named else None
