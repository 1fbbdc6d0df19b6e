"""Leases: who may use this node's GPUs. One file a run, all decisions under one lock, so two controllers never share.

A lease is for the whole node ("all") or for a number of GPUs; a reservation expires unless its run is started in time.
"""

from __future__ import annotations

import os
import time

from . import locks, paths, state
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _file(run: str) -> str:
    return f"{paths.LEASES}/{paths.run_id(run)}.json"


def _lock() -> str:
    return paths.LEASES + "/.lock"


def read(run: str) -> dict[str, Any] | None:
    """The lease of a run, or None."""
    value = paths.read_json(_file(run))
    return value if isinstance(value, dict) else None


def _stale(lease: dict[str, Any]) -> bool:
    if lease.get("boot") != paths.boot():
        return True
    if not lease.get("started"):
        return float(lease.get("expires") or 0) < time.time()
    value = state.read(str(lease["run_id"]))
    return value is None or state.is_final(value)


def _current() -> list[dict[str, Any]]:
    """All leases in force; stale ones are removed. Call it under the lock."""
    leases = []
    for name in sorted(os.listdir(paths.LEASES)):
        if not name.endswith(".json") or not paths.RUN_ID.fullmatch(name[:-5]):
            continue
        lease = read(name[:-5])
        if lease is None or lease.get("run_id") != name[:-5] or _stale(lease):
            os.unlink(f"{paths.LEASES}/{name}")
        else:
            leases.append(lease)
    return leases


def current() -> list[dict[str, Any]]:
    """All leases in force."""
    if not os.path.isdir(paths.LEASES):  # a look at a node that has nothing of ours must leave nothing behind
        return []
    with locks.held(_lock()):
        return _current()


def _since(lease: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(lease["since"])))


def _holders(leases: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"run {lease['run_name']} of {lease['owner'] or 'an unknown owner'} since {_since(lease)}" for lease in leases
    )


def _pick(request: str | int, total: int, leases: list[dict[str, Any]]) -> list[int]:
    """Indices of the GPUs that the request gets. Raises NodeError (busy, bad-request)."""
    whole = [lease for lease in leases if lease["whole"]]
    if request == "all":
        if leases:
            raise NodeError("busy", f"the node is in use by {_holders(leases)}")
        return list(range(total))
    if whole:
        raise NodeError("busy", f"the whole node is in use by {_holders(whole)}")
    taken = {index for lease in leases for index in lease["gpus"]}
    free = [index for index in range(total) if index not in taken]
    wanted = int(request)
    if wanted > total:
        raise NodeError("bad-request", f"{wanted} GPUs wanted, the node has {total}")
    if wanted > len(free):
        holders = _holders([lease for lease in leases if lease["gpus"]])
        raise NodeError(
            "busy", f"{wanted} GPUs wanted, {len(free)} of {total} are free; the others are in use by {holders}"
        )
    return free[:wanted]


def reserve(run: str, name: str, owner: str, request: str | int, ttl: float, total: int) -> list[int]:
    """Reserve the whole node ("all") or a number of its `total` GPUs for `ttl` seconds; asking again renews it.

    Raises NodeError (busy) naming who holds what is wanted.
    """
    now = time.time()
    with locks.held(_lock()):
        leases = _current()
        mine = next((lease for lease in leases if lease["run_id"] == run), None)
        if mine is None:
            gpus = _pick(request, total, leases)
            mine = {"run_id": run, "run_name": name, "owner": owner, "whole": request == "all", "gpus": gpus}
            mine.update(since=now, started=False, total=total, boot=paths.boot())
        elif mine["whole"] != (request == "all") or (request != "all" and len(mine["gpus"]) != request):
            raise NodeError("bad-request", f"run {name} holds another reservation on this node already")
        mine["expires"] = None if mine["started"] else now + ttl
        paths.write_json(_file(run), mine)
        return list(mine["gpus"])


def mark_started(run: str) -> None:
    """Make a reservation last until its run ends. Raises NodeError (no-reservation) when it has expired."""
    with locks.held(_lock()):
        mine = next((lease for lease in _current() if lease["run_id"] == run), None)
        if mine is None:
            raise NodeError(
                "no-reservation", f"run {run} holds no reservation on this node: it expired or was released"
            )
        mine.update(started=True, expires=None)
        paths.write_json(_file(run), mine)


def release(run: str, *, only_unstarted: bool = False) -> None:
    """Give a lease back; without one there is nothing to do."""
    with locks.held(_lock()):
        lease = read(run)
        if lease is not None and not (only_unstarted and lease.get("started") and not _stale(lease)):
            os.unlink(_file(run))
