"""A cluster made of numbers, to test the blame logic: one fault, noise, and pairs as slow as their slowest part."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lambdactl.validate.blame import Finding, Investigation
from lambdactl.validate.tournament import Pair, pair

HEALTHY_GBPS = 700.0
NOISE = 0.05  # standard deviation of one measurement
FACTORS = (0.3, 0.7)  # what a fault leaves of the bandwidth

Fault = Literal["none", "node", "path", "leaf", "uplink"]


@dataclass
class Cluster:
    """A simulated cluster; `bad` is the culprit's nodes, `factor` what the fault leaves of a pair's bandwidth.

    Faults: `node` slows all pairs of a node; `path` one pair of neighbours in rank order (a path that no all-reduce
    over all nodes uses slows nothing); `leaf` all pairs of a leaf's nodes; `uplink` only those that leave the leaf.
    """

    nodes: int
    fault: Fault
    bad: frozenset[int] = frozenset()
    factor: float = 1.0
    leaf_of: Sequence[int] = ()
    seed: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 (a simulation)

    @property
    def names(self) -> tuple[str, ...]:
        """node-0, node-1, ..."""
        return tuple(f"node-{number}" for number in range(self.nodes))

    @property
    def leaves(self) -> dict[str, str]:
        """Node -> leaf, as a fleet that knows its switches says it."""
        return {f"node-{number}": f"leaf-{leaf}" for number, leaf in enumerate(self.leaf_of)}

    def measure(self, pairs: Sequence[Pair]) -> dict[Pair, float | None]:
        """One round."""
        return {key: self._speed(key) * max(0.5, self._random.gauss(1.0, NOISE)) for key in pairs}

    def _speed(self, key: Pair) -> float:
        inside = len(self.bad & set(key))
        slow = {"node": inside > 0, "leaf": inside > 0, "path": inside == 2, "uplink": inside == 1}
        return HEALTHY_GBPS * (self.factor if slow.get(self.fault, False) else 1.0)

    def judged_right(self, finding: Finding) -> bool:
        """Whether the finding names the culprit, all of it, and nobody else."""
        if self.fault == "none":
            return not finding.blames
        kind = self.fault if self.fault in ("node", "path") else "group"
        wanted = {f"node-{number}" for number in self.bad}
        return len(finding.blames) == 1 and finding.blames[0].kind == kind and set(finding.blames[0].nodes) == wanted


def draw(seed: int, nodes: int, fault: Fault) -> Cluster:
    """A cluster with one fault drawn by the seed; leaves of 2 to 32 nodes, at least 3, in rank order or mixed."""
    chance = random.Random(seed * 7919 + nodes)  # noqa: S311 (a simulation)
    factor = chance.uniform(*FACTORS)
    leaf_of: list[int] = []
    bad: frozenset[int] = frozenset()
    if fault in ("leaf", "uplink"):
        size = chance.choice([size for size in (2, 4, 8, 16, 32) if size * 3 <= nodes])
        leaf_of = [number // size for number in range(nodes)]
        if chance.random() < 0.5:
            chance.shuffle(leaf_of)
        culprit = chance.randrange(nodes // size)
        bad = frozenset(number for number, leaf in enumerate(leaf_of) if leaf == culprit)
    elif fault == "node":
        bad = frozenset({chance.randrange(nodes)})
    elif fault == "path":
        first = chance.randrange(nodes)
        bad = frozenset(pair(first, (first + 1) % nodes))
    return Cluster(nodes, fault, bad, factor, leaf_of, seed)


def investigate(cluster: Cluster, rounds: int = 3) -> Finding:
    """The whole investigation; a leaf's failure is told from several nodes' only where the leaves are known."""
    known = cluster.leaves if cluster.fault == "leaf" else None
    investigation = Investigation(cluster.names, known, rounds)
    while pairs := investigation.next_round():
        investigation.record(cluster.measure(pairs))
    return investigation.finding()
