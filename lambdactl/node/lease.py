"""Leases: who may use this node. One file a run, all decisions under one lock, so two controllers never share.

A lease is for the whole node ("all"), for some of its blocks, or for a number of GPUs; a reservation expires unless its
run is started in time, and nobody is given what a run before it in the queue waits for.
"""

from __future__ import annotations

import os
import time

from . import blocks, locks, paths, state, tickets
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .blocks import Request


def _file(run: str) -> str:
    return f"{paths.LEASES}/{paths.run_id(run)}.json"


def lock() -> str:
    """The lock of leases and tickets."""
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


def in_force() -> list[dict[str, Any]]:
    """All leases in force; stale ones are removed. Call it under the lock."""
    leases = []
    for name in sorted(os.listdir(paths.LEASES)):
        if not name.endswith(".json") or not paths.is_run_id(name[:-5]):
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
    with locks.held(lock()):
        return in_force()


def queue() -> list[dict[str, Any]]:
    """The waiting runs in their order."""
    if not os.path.isdir(paths.QUEUE):
        return []
    with locks.held(lock()):
        return tickets.current()


def _since(lease: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(lease["since"])))


def _holders(leases: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"run {lease['run_name']} of {lease['owner'] or 'an unknown owner'} since {_since(lease)}" for lease in leases
    )


def _refuse_same_name(run: str, name: str, leases: list[dict[str, Any]]) -> None:
    """Runs share a node by blocks, so that the node, too, has to see that no two of them have one name."""
    for lease in leases:
        if lease["run_name"] == name and lease["run_id"] != run:
            raise NodeError("exists", f"a run named {name} of {lease['owner']} is on this node since {_since(lease)}")


def _pick(
    run: str, priority: int, request: Request, limit: float | None, total: int, leases: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the request gets. Raises NodeError (busy, queued, bad-request)."""
    if isinstance(request, int) and request > total:
        raise NodeError("bad-request", f"{request} GPUs wanted, the node has {total}")
    granted = blocks.grant(request, total, leases)
    if granted is None:
        text, holders = blocks.holders(request, total, leases)
        raise NodeError("busy", text + _holders(holders))
    ahead = tickets.first_before(run, priority, request, limit, total, leases)
    if ahead is not None:
        raise NodeError(
            "queued",
            f"the node is kept for run {ahead['run_name']} of {ahead['owner'] or 'an unknown owner'}, "
            f"which waits since {_since(ahead)} and comes first",
        )
    return granted


def reserve(
    run: str,
    name: str,
    owner: str,
    request: Request,
    ttl: float,
    total: int,
    *,
    priority: int = 0,
    limit: float | None = None,
) -> dict[str, Any]:
    """Reserve the whole node ("all"), k of its N blocks (k, N), or a number of its `total` GPUs, for `ttl` seconds.

    Asking again renews it. `limit` is how many seconds the run may last at most, where known. Returns the lease.
    Raises NodeError: busy, naming who holds what is wanted; queued, naming who waits for it and comes first; exists.
    """
    now = time.time()
    with locks.held(lock()):
        leases = in_force()
        mine = next((lease for lease in leases if lease["run_id"] == run), None)
        if mine is None:
            if isinstance(request, tuple):
                _refuse_same_name(run, name, leases)
            granted = _pick(run, priority, request, limit, total, leases)
            mine = {"run_id": run, "run_name": name, "owner": owner, **granted, "priority": priority}
            mine.update(since=now, started=False, total=total, boot=paths.boot(), limit=limit, ends=None)
        elif not _same(mine, request):
            raise NodeError("bad-request", f"run {name} holds another reservation on this node already")
        mine["expires"] = None if mine["started"] else now + ttl
        paths.write_json(_file(run), mine)
        return dict(mine)


def _same(lease: dict[str, Any], request: Request) -> bool:
    """Whether a lease is what the request asks for."""
    if isinstance(request, tuple):
        return (len(lease.get("blocks") or ()), lease.get("of")) == request
    if request == "all":
        return bool(lease["whole"])
    return not lease["whole"] and not lease.get("of") and len(lease["gpus"]) == request


def mark_started(run: str) -> None:
    """Make a reservation last until its run ends. Raises NodeError (no-reservation) when it has expired."""
    with locks.held(lock()):
        mine = next((lease for lease in in_force() if lease["run_id"] == run), None)
        if mine is None:
            raise NodeError(
                "no-reservation", f"run {run} holds no reservation on this node: it expired or was released"
            )
        limit = mine.get("limit")
        mine.update(started=True, expires=None, ends=None if limit is None else time.time() + float(limit))
        paths.write_json(_file(run), mine)
        tickets.remove(run)


def release(run: str, *, only_unstarted: bool = False) -> None:
    """Give a lease back; without one there is nothing to do."""
    with locks.held(lock()):
        lease = read(run)
        if lease is not None and not (only_unstarted and lease.get("started") and not _stale(lease)):
            os.unlink(_file(run))
