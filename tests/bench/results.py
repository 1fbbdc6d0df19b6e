"""What was measured, as data: groups of variants on one place, and the goals that they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.meter import Series


@dataclass(frozen=True)
class Group:
    """One comparison; the first series is ours.

    Attributes:
        section: which part of the report it belongs to.
        where: the place, in words.
        nodes: how many nodes took part.
        delayed: whether the delay line was in front of the jump host.
        real: whether the nodes were containers with systemd and the real roles.
    """

    section: str
    where: str
    nodes: int
    series: Sequence[Series]
    delayed: bool = False
    real: bool = False

    @property
    def ours(self) -> Series:
        return self.series[0]

    def named(self, name: str) -> Series | None:
        """The variant of that name, when it was measured here."""
        return next((series for series in self.series if series.name == name), None)


@dataclass
class Results:
    """Everything of one run of the benchmarks."""

    groups: list[Group] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def find(self, section: str, **wanted: Any) -> Group | None:
        """The first group of a section with these attributes."""
        for group in self.groups:
            if group.section == section and all(getattr(group, key) == value for key, value in wanted.items()):
                return group
        return None

    def as_dict(self) -> Mapping[str, Any]:
        """For benchmarks.json."""
        return {
            "facts": self.facts,
            "failures": self.failures,
            "groups": [
                {"section": g.section, "where": g.where, "nodes": g.nodes, "delayed": g.delayed, "real": g.real,
                 "series": [series.as_dict() for series in g.series]}
                for g in self.groups
            ],
        }  # fmt: skip
