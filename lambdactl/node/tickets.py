"""Tickets: the places of waiting runs in the fleet's queue, one file a run on every node that could take it.

The order is the same on every node: priority (higher first), then arrival, then the run's id. A ticket is kept alive by
the controller that waits, and ends with it. All functions that are not marked otherwise run under the lock of leases.
"""

from __future__ import annotations

import os
import time

from . import blocks, paths
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .blocks import Request

CANCELLED_FOR = 300.0  # seconds that a node remembers that a waiting run was stopped; its controller asks before that
TEXT_LIMIT = 600
MAX_PRIORITY = 100


def _file(run: str) -> str:
    return f"{paths.QUEUE}/{paths.run_id(run)}.json"


def _in_force(ticket: Any, name: str) -> bool:
    if not isinstance(ticket, dict) or ticket.get("run_id") != name or ticket.get("boot") != paths.boot():
        return False
    return float(ticket.get("expires") or 0) >= time.time()


def _read() -> list[dict[str, Any]]:
    """All tickets in force, also cancelled ones; what has expired is removed."""
    try:
        names = sorted(os.listdir(paths.QUEUE))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        if not name.endswith(".json") or not paths.is_run_id(name[:-5]):
            continue
        ticket = paths.read_json(f"{paths.QUEUE}/{name}")
        if _in_force(ticket, name[:-5]):
            found.append(ticket)
        else:
            os.unlink(f"{paths.QUEUE}/{name}")
    return found


def order(ticket: dict[str, Any]) -> tuple[int, float, str]:
    """Sorts tickets: the run that comes first has the smallest."""
    return (-int(ticket["priority"]), float(ticket["since"]), str(ticket["run_id"]))


def current() -> list[dict[str, Any]]:
    """The waiting runs in their order."""
    return sorted((ticket for ticket in _read() if not ticket.get("cancelled")), key=order)


def request_of(want: Any) -> Request | None:
    """A ticket's want (null, {"gpus": "all"} or {"blocks", "of"}) as a request. Raises NodeError (bad-request)."""
    if want is None:
        return None
    if isinstance(want, dict) and want.get("gpus") == "all":
        return "all"
    if isinstance(want, dict) and "blocks" in want:
        return blocks.parse(want["blocks"], want.get("of"))
    raise NodeError("bad-request", 'queue: want is null, {"gpus": "all"} or {"blocks": n, "of": n}')


def _moment(request: dict[str, Any], name: str) -> float | None:
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise NodeError("bad-request", f"queue: {name} is {str(value)[:40]!r}, allowed is seconds since 1970, or null")
    return float(value)


def _whole(request: dict[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = request.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise NodeError("bad-request", f"queue: {name} is {str(value)[:40]!r}, allowed is {least} to {most}")
    return value


def parse(request: dict[str, Any], ttl: float) -> dict[str, Any]:
    """A `queue` request as a ticket without its place. Raises NodeError (bad-request)."""
    request_of(request.get("want"))
    return {
        "run_id": paths.run_id(request.get("run_id")),
        "run_name": paths.run_key(request.get("run_name")),
        "owner": str(request.get("owner") or "")[:200],
        "priority": _whole(request, "priority", 0, MAX_PRIORITY, 0),
        "since": _moment(request, "since"),
        "nodes": _whole(request, "nodes", 1, 100_000, 1),
        "want": request.get("want"),
        "holds": request.get("holds") is True,
        "drain": request.get("drain") is True,
        "earliest": _moment(request, "earliest"),
        "not_before": _moment(request, "not_before"),
        "submitted_at": _moment(request, "submitted_at"),
        "attempt": _whole(request, "attempt", 1, 1_000_000, 1),
        "reason": str(request.get("reason") or "")[:TEXT_LIMIT],
        "expires": time.time() + ttl,
        "boot": paths.boot(),
    }


def put(ticket: dict[str, Any]) -> dict[str, Any]:
    """Put a ticket into the queue, or renew it; returns it with its place `since`.

    Raises NodeError: cancelled (somebody stopped the waiting run), exists (another waiting run has its name).
    """
    everyone = _read()
    for other in everyone:
        if other["run_id"] == ticket["run_id"] and other.get("cancelled"):
            raise NodeError("cancelled", f"run {ticket['run_name']} was stopped while it waited: {other['cancelled']}")
        if (
            other["run_id"] != ticket["run_id"]
            and other["run_name"] == ticket["run_name"]
            and not other.get("cancelled")
        ):
            raise NodeError(
                "exists", f"a run named {ticket['run_name']} of {other['owner']} waits in the queue already"
            )
    if ticket["since"] is None:  # a newcomer: behind everybody who is here, whatever the clock does
        ticket["since"] = max([time.time(), *(float(other["since"]) + 1e-6 for other in everyone)])
    paths.write_json(_file(ticket["run_id"]), ticket)
    return ticket


def remove(run: str) -> None:
    """Take a run out of the queue; without a ticket there is nothing to do."""
    if os.path.exists(_file(run)):
        os.unlink(_file(run))


def cancel(key: str, message: str) -> list[dict[str, Any]]:
    """Stop the waiting runs with this name or id: their controllers are told when they renew. Returns their tickets."""
    found = [ticket for ticket in current() if key in (ticket["run_id"], ticket["run_name"])]
    for ticket in found:
        changed = {**ticket, "cancelled": message[:TEXT_LIMIT], "expires": time.time() + CANCELLED_FOR}
        paths.write_json(_file(ticket["run_id"]), changed)
    return found


def _holds_now(ticket: dict[str, Any]) -> bool:
    return bool(ticket["holds"]) and ticket["want"] is not None and float(ticket["not_before"] or 0) <= time.time()


def first_before(
    run: str, priority: int, request: Request, limit: float | None, total: int, leases: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """The earlier ticket that a grant of this request would set back, or None when the run may go now.

    A run passes an earlier ticket when that one wants nothing here or cannot run at present, when it fits beside it
    (and this node is not being emptied for it), or when it is over, by its own `limit` in seconds, before the earlier
    one can start (its `earliest`, made of the limits of what runs).
    """
    waiting = current()
    mine = next((ticket for ticket in waiting if ticket["run_id"] == run), None)
    place = order(mine) if mine is not None else (-priority, float("inf"), run)  # who does not wait comes last
    beside = list(leases)
    last = None
    for ticket in waiting:
        if order(ticket) >= place or ticket["run_id"] == run:
            break
        wanted = request_of(ticket["want"])
        if wanted is None or not _holds_now(ticket):
            continue
        if limit is not None and ticket["earliest"] is not None and time.time() + limit <= ticket["earliest"]:
            continue
        if ticket["drain"]:
            return ticket
        theirs = blocks.grant(wanted, total, beside)
        if theirs is not None:
            beside.append(theirs)
            last = ticket
            if blocks.grant(request, total, beside) is None:
                return last
    return None
