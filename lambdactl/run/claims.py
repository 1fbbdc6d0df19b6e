"""What a waiting run asks of each host: a pure function of the leases, so that it can be simulated.

The rule (docs/runner.md, "The queue"): nobody is given what a run before it in the queue could use now, unless both
fit, or it is over, by its own max_duration, before the earlier run can start. On shared hosts a run that waits for
more than is free has as many hosts emptied as it lacks, the soonest free first, and one more for each five minutes that
it has waited: what it waits for comes, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lambdactl.run.blocks import Want, fits

# After each of these periods (seconds) one more host is emptied for a run that still waits.
PATIENCE = 300.0


@dataclass(frozen=True)
class Room:
    """A host that could take the run: what the run wants of it, how many GPUs it has, and its leases."""

    want: Want
    gpus: int
    leases: Sequence[Mapping[str, Any]] = ()

    @property
    def free(self) -> bool:
        """Whether the run fits now."""
        return fits(self.want, self.gpus, self.leases)

    def free_at(self, now: float) -> float | None:
        """When the run fits at the latest, by the limits of the runs that are there; None when they have none."""
        left = list(self.leases)
        moment = now
        for lease in sorted(self.leases, key=lambda lease: lease.get("ends") or float("inf")):
            if fits(self.want, self.gpus, left):
                return moment
            if not lease.get("ends"):
                return None
            left.remove(lease)
            moment = max(now, float(lease["ends"]))
        return moment


@dataclass(frozen=True)
class Claim:
    """What the ticket on one host says: see node/tickets.py."""

    want: Want | None
    holds: bool
    drain: bool
    earliest: float | None


def claims(rooms: Mapping[str, Room], nodes: int, *, now: float, waited: float) -> dict[str, Claim]:
    """The claim of a waiting run on each host that could take it.

    Args:
        rooms: by host, in the order of the fleet file.
        nodes: how many hosts the run needs.
        waited: seconds since it has its place.
    """
    moments = {name: room.free_at(now) for name, room in rooms.items()}
    known = sorted(moment for moment in moments.values() if moment is not None)
    earliest = known[nodes - 1] if len(known) >= nodes else None
    taken = [name for name, room in rooms.items() if not room.free]
    taken.sort(key=lambda name: (moments[name] or float("inf"), len(rooms[name].leases)))
    lacking = nodes - (len(rooms) - len(taken))
    draining = set(taken[: lacking + int(waited / PATIENCE)]) if lacking > 0 else set()
    holds = len(rooms) >= nodes
    return {name: Claim(room.want, holds, name in draining, earliest) for name, room in rooms.items()}
