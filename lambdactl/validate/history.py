"""A validation against the fleet's own past: the same topology, the same versions where there are such."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lambdactl.validate.record import Validation, versions_key

# Below this share of its own past a step is flagged: -6 % is, -2 % is not (runs scatter by about 2 %).
FLAG = 0.05
_LAST = 5  # validations that make up the past


@dataclass(frozen=True, slots=True)
class Change:
    """One step now and before: GB/s, the median of `runs` earlier ones, and the relative change."""

    step: str
    now: float
    before: float
    runs: int
    flagged: bool

    @property
    def relative(self) -> float:
        """-0.06 is 6 % less than before."""
        return self.now / self.before - 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """All steps; `changed` names the versions that differ from the past's, where nothing has the same versions."""

    changes: tuple[Change, ...]
    changed: tuple[str, ...] = ()

    @property
    def flagged(self) -> tuple[Change, ...]:
        """The steps that are slower than before."""
        return tuple(change for change in self.changes if change.flagged)


def compare(now: Validation, earlier: Sequence[Validation]) -> Comparison:
    """Against the last validations of the same topology, those with the same versions where there is one.

    Args:
        earlier: the same fleet's, newest first.
    """
    alike = [other for other in earlier if other.topology == now.topology and other.started_at < now.started_at]
    key = versions_key(now.versions)
    same = [other for other in alike if versions_key(other.versions) == key]
    past = (same or alike)[:_LAST]
    if not past:
        return Comparison(())
    names = sorted(set(now.versions) | set(past[0].versions))
    changed = () if same else tuple(
        f"{name} {past[0].versions.get(name, 'none')} -> {now.versions.get(name, 'none')}"
        for name in names
        if now.versions.get(name) != past[0].versions.get(name)
    )  # fmt: skip
    return Comparison(tuple(_changes(now, past)), changed)


def _changes(now: Validation, past: Sequence[Validation]) -> list[Change]:
    found = []
    for step in now.steps:
        before = [old.value for other in past for old in other.steps if old.name == step.name and old.value is not None]
        if step.value is None or not before:
            continue
        middle = statistics.median(before)
        flagged = step.value < middle * (1 - FLAG)
        found.append(Change(step.name, step.value, middle, len(before), flagged))
    return found
