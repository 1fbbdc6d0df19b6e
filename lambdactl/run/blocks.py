"""Blocks as the controller sees them: how a host is divided, how many blocks a run needs, how many are free.

The rules of division are dstack's (`blocks` of a fleet file); the node decides what a run gets (node/blocks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lambdactl.fleet.facts import NodeFacts
from lambdactl.fleet.match import reasons
from lambdactl.spec import Resources

Lease = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Want:
    """What a run wants of one host: `blocks` of `of`, or the whole host (`of` is 1)."""

    blocks: int = 1
    of: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is the whole host, undivided."""
        return self.of == 1

    def request(self) -> dict[str, Any]:
        """The fields of the runner's `reserve` and `queue` that say it."""
        return {"gpus": "all"} if self.whole else {"blocks": self.blocks, "of": self.of}

    def gpus(self, facts: NodeFacts) -> int:
        """How many GPUs that is on a host."""
        return len(facts.gpus) * self.blocks // self.of


WHOLE = Want()


def division(setting: int | str, facts: NodeFacts) -> int:
    """How many blocks a host has: `auto` is min(CPUs, GPUs), without GPUs the number of CPUs.

    Raises:
        ValueError: the host cannot be divided so, with the clause that says why.
    """
    cpus, gpus = max(1, facts.cpus), len(facts.gpus)
    count = (min(cpus, gpus) if gpus else cpus) if setting == "auto" else int(setting)
    if cpus % count or gpus % count:
        has = f"{cpus} CPUs and {gpus} GPUs" if gpus else f"{cpus} CPUs"
        counted = f"blocks: {setting}" + (f", which is {count} here" if setting == "auto" else "")
        raise ValueError(f"cannot split into blocks ({counted}): {has} cannot be divided by {count}")
    return count


def part(facts: NodeFacts, blocks: int, of: int) -> NodeFacts:
    """The facts of `blocks` of `of` blocks: CPUs, memory and GPUs evenly, the disk shared."""
    return replace(
        facts,
        cpus=facts.cpus * blocks // of,
        memory=facts.memory * blocks // of,
        gpus=facts.gpus[: len(facts.gpus) * blocks // of],
    )


def smallest(resources: Resources, facts: NodeFacts, of: int) -> Want | None:
    """The fewest of `of` blocks that satisfy what the user wrote; None when not even all of them do."""
    for count in range(1, of + 1):
        if not reasons(resources, part(facts, count, of)):
            return Want(count, of)
    return None


def free(of: int, total: int, leases: Sequence[Lease]) -> int:
    """How many of `of` blocks of a host with `total` GPUs no lease touches (the same arithmetic as the node's)."""
    taken: set[int] = set()
    for lease in leases:
        taken.update(_touched(of, total, lease))
    return of - len(taken)


def _touched(of: int, total: int, lease: Lease) -> Iterable[int]:
    other, blocks = lease.get("of"), lease.get("blocks") or ()
    if lease.get("whole", True):
        return range(of)
    if other == of:
        return blocks
    if not other:
        return (gpu * of // total for gpu in lease.get("gpus") or ())
    return (i for i in range(of) if any(i * other < (b + 1) * of and b * of < (i + 1) * other for b in blocks))


def fits(want: Want, total: int, leases: Sequence[Lease]) -> bool:
    """Whether a host with `total` GPUs has room for it beside these leases."""
    return not leases if want.whole else free(want.of, total, leases) >= want.blocks
