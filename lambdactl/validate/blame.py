"""Whom do the pairs' bandwidths point at: a node, a path between two nodes, a group that shares a switch, or nobody?

The reasoning. A pair is as fast as its slowest part, so one good measurement proves both nodes of it, and the path
between them. Draw a line for each good pair: the lines join the healthy nodes to one large component.

- A node that no good line joins to it is slow with everybody: the **node** is to blame.
- Several such nodes that are fast among themselves share something, such as a leaf's uplinks: the **group** is.
  Where the leaves are known, a leaf most of whose nodes are slow even among themselves is blamed as a group, too.
- A slow pair whose two nodes are both joined to the rest by other pairs: the **path** between them is.

Nothing is blamed on one measurement. After the tournament the slow pairs are measured again, and each suspect alone
against at least two proven nodes. "Slow" is relative: below 85 % of the typical pair. With 5 % noise (standard
deviation of one measurement) that names faults that take away 30 % and more; `simulate` and its tests hold this.
Smaller ones are the verdict's business. A fault of all nodes alike is none of a node's: then no pair stands out.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lambdactl.validate.tournament import Pair, most_rounds, pack, pair, schedule

SLOW = 0.85
_WITNESSES = 2  # proven nodes that a suspect is measured against
_REPEATS = 2
_LEAF_SHARE = 0.6

Kind = Literal["node", "path", "group"]


@dataclass(frozen=True, slots=True)
class Blame:
    """One culprit: a node (one name), a path (two), or a group (all its nodes), and the measurements that say so."""

    kind: Kind
    nodes: tuple[str, ...]
    relative: float
    evidence: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is to blame, for people."""
        names = ", ".join(self.nodes[:8]) + (f" and {len(self.nodes) - 8} more" if len(self.nodes) > 8 else "")
        subject = {"node": f"node {names}", "path": f"the path between {' and '.join(self.nodes)}"}
        return subject.get(self.kind, f"what these {len(self.nodes)} nodes share, such as their leaf switch: {names}")


@dataclass(frozen=True, slots=True)
class Finding:
    """The end of an investigation; `typical` is the bandwidth of a healthy pair in GB/s."""

    blames: tuple[Blame, ...]
    typical: float | None
    rounds: int
    sentence: str


class Investigation:
    """Asks for rounds of pairs until the culprits are known.

    `while pairs := it.next_round(): it.record(measured(pairs))`, then `it.finding()`.

    Args:
        names: the nodes in rank order.
        leaves: node -> leaf switch, where that is known.
        rounds: how many rounds of the tournament come before the retests (at least 2 are needed).
    """

    def __init__(self, names: Sequence[str], leaves: Mapping[str, str] | None = None, rounds: int = 3) -> None:
        self.names = tuple(names)
        self._leaves = dict(leaves or {})
        self._tournament = max(2, rounds)
        self._budget = max(most_rounds(len(names)), self._tournament + 4)
        self._results: dict[Pair, list[float]] = {}
        self._done = 0
        self._steps = self._investigate()
        self.typical: float | None = None

    def next_round(self) -> list[Pair]:
        """The disjoint pairs (places in `names`) to measure next; empty when the investigation is over."""
        if self._done >= self._budget:
            return []
        return next(self._steps, [])

    def record(self, measured: Mapping[Pair, float | None]) -> None:
        """GB/s of each pair of the round; None or 0 where a pair could not run, which counts as slow."""
        self._done += 1
        for (a, b), value in measured.items():
            self._results.setdefault(pair(a, b), []).append(value or 0.0)

    def results(self) -> dict[Pair, tuple[float, ...]]:
        """All measurements by pair."""
        return {key: tuple(values) for key, values in self._results.items()}

    # The order of events.

    def _investigate(self) -> Generator[list[Pair], None, None]:
        if len(self.names) < 3:
            return
        yield from schedule(len(self.names), self._tournament)
        self.typical = typical(values[0] for values in self._results.values())
        yield from self._retest()
        yield from self._merge()
        yield from self._confirm()

    def _retest(self) -> Generator[list[Pair], None, None]:
        """Slow pairs within the healthy part again, and one node of each part that is cut off against proven ones."""
        parts = self._parts()
        main = set(parts[0])
        wanted = [p for p in self._slow() if p[0] in main and p[1] in main]
        twice = {node for node in main if sum(node in p for p in wanted) > 1}
        wanted += [p for p in self._results if p not in wanted and twice & set(p) and not self._is_slow(p)]
        outside = [part[0] for part in parts[1:]]
        for number in range(max(_REPEATS, _WITNESSES)):
            left = [*wanted, *self._against_proven(outside, main, number)]
            while left:
                chosen, left = pack(left)
                yield chosen

    def _against_proven(self, suspects: Sequence[int], main: Iterable[int], number: int) -> list[Pair]:
        """Each suspect with a healthy node, every time another one."""
        proven = sorted(main, key=lambda node: (sum(node in p for p in self._slow_in(node)), node))
        if not proven:
            return []
        shift = number * max(1, len(suspects))
        return [pair(node, proven[(shift + i) % len(proven)]) for i, node in enumerate(suspects)]

    def _slow_in(self, node: int) -> list[Pair]:
        return self._slow_by_node.get(node, [])

    def _merge(self) -> Generator[list[Pair], None, None]:
        """Parts that are cut off, with each other: those fast together are one group. Each round halves them."""
        while len(outside := self._parts()[1:]) > 1:
            pairs = [pair(a[0], b[0]) for a, b in zip(outside[::2], outside[1::2], strict=False)]
            if all(p in self._results for p in pairs):
                return
            yield pairs

    def _confirm(self) -> Generator[list[Pair], None, None]:
        """No path is blamed on a single measurement, whatever it was made for."""
        while True:
            main = set(self._parts()[0])
            doubtful = [p for p in self._slow() if set(p) <= main and len(self._results[p]) <= _REPEATS]
            chosen, _ = pack(doubtful)
            if not chosen:
                return
            yield chosen

    # What the measurements say so far.

    def _value(self, key: Pair) -> float:
        """GB/s of a pair. The first measurement picked the suspects, so it does not count where there are others."""
        values = self._results[key]
        return math.fsum(values[1:]) / (len(values) - 1) if len(values) > 1 else values[0]

    def _relative(self, key: Pair) -> float:
        return self._value(key) / self.typical if self.typical else 0.0

    def _is_slow(self, key: Pair) -> bool:
        return self._relative(key) < SLOW

    def _slow(self) -> list[Pair]:
        slow = [key for key in self._results if self._is_slow(key)]
        self._slow_by_node: dict[int, list[Pair]] = {}
        for key in slow:
            for node in key:
                self._slow_by_node.setdefault(node, []).append(key)
        return slow

    def _parts(self) -> list[list[int]]:
        """The components of the good pairs, the largest first."""
        root = list(range(len(self.names)))

        def find(node: int) -> int:
            while root[node] != node:
                root[node] = root[root[node]]
                node = root[node]
            return node

        for a, b in self._results:
            if not self._is_slow((a, b)):
                root[find(a)] = find(b)
        parts: dict[int, list[int]] = {}
        for node in range(len(self.names)):
            parts.setdefault(find(node), []).append(node)
        return sorted(parts.values(), key=lambda part: (-len(part), part))

    # The end.

    def finding(self) -> Finding:
        """Who is to blame, by all that was recorded."""
        if len(self.names) < 3:
            return Finding(
                (), None, self._done, "Two nodes cannot be told apart by pairs: see each node alone, and the rails."
            )
        if not self.typical:
            return Finding(
                (), None, self._done, "No pair of nodes could be measured: the cause is common to all nodes."
            )
        parts = self._parts()
        if len(parts) > 1 and len(parts[0]) == len(parts[1]) and len(parts[0]) > 1:
            first, second = (", ".join(self.names[node] for node in part[:4]) for part in parts[:2])
            text = (
                f"The nodes fall into two halves of one size with slow paths between them: {first} ... and {second} ..."
            )
            return Finding((self._blame("group", parts[1]),), self.typical, self._done, text)
        blames = [*self._outside(parts[1:]), *self._paths(parts[0])]
        return Finding(tuple(blames), self.typical, self._done, _sentence(blames, self.typical))

    def _outside(self, parts: Sequence[Sequence[int]]) -> Iterable[Blame]:
        single = {part[0] for part in parts if len(part) == 1}
        yield from (self._blame("group", part) for part in parts if len(part) > 1)
        for members in self._members().values():
            if len(members) > 1 and len(single & members) >= max(2, _LEAF_SHARE * len(members)):
                single -= members
                yield self._blame("group", sorted(members))
        yield from (self._blame("node", [node]) for node in sorted(single))

    def _members(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for node, name in enumerate(self.names):
            if name in self._leaves:
                found.setdefault(self._leaves[name], set()).add(node)
        return found if len(found) > 1 else {}

    def _paths(self, main: Iterable[int]) -> Iterable[Blame]:
        inside = set(main)
        for key in sorted(self._slow()):
            if key[0] in inside and key[1] in inside:
                yield self._blame("path", list(key))

    def _blame(self, kind: Kind, nodes: Sequence[int]) -> Blame:
        members = set(nodes)
        crossing = [
            key
            for key in sorted(self._results)
            if (members == set(key) if kind == "path" else len(members & set(key)) == 1)
        ] or [key for key in sorted(self._results) if members & set(key)]
        if kind == "path":
            crossing += [key for key in sorted(self._results) if len(members & set(key)) == 1][:4]
        low = [self._relative(key) for key in crossing if self._is_slow(key)]
        evidence = tuple(self._line(key) for key in crossing[:12])
        relative = math.fsum(low) / len(low) if low else 1.0
        return Blame(kind, tuple(self.names[node] for node in sorted(nodes)), relative, evidence)

    def _line(self, key: Pair) -> str:
        values = " / ".join(f"{value:.4g}" for value in self._results[key])
        who = f"{self.names[key[0]]} with {self.names[key[1]]}"
        return f"{who}: {values} GB/s ({self._relative(key):.0%} of the typical pair)"


def typical(values: Iterable[float]) -> float | None:
    """GB/s of a healthy pair: the median of those near the upper quartile, which holds while under half are slow."""
    ranked = sorted(value for value in values if value > 0)
    if not ranked:
        return None
    upper = ranked[min(len(ranked) - 1, math.ceil(0.75 * len(ranked)) - 1 + (len(ranked) < 4))]
    healthy = [value for value in ranked if value >= SLOW * upper]
    middle = len(healthy) // 2
    return healthy[middle] if len(healthy) % 2 else (healthy[middle - 1] + healthy[middle]) / 2


def _sentence(blames: Sequence[Blame], usual: float) -> str:
    if not blames:
        return f"No node, path or group stands out: the pairs give about {usual:.4g} GB/s each."
    shown = "; ".join(f"{blame.text} ({blame.relative:.0%} of the typical {usual:.4g} GB/s)" for blame in blames[:4])
    return f"To blame: {shown}" + (f"; and {len(blames) - 4} more." if len(blames) > 4 else ".")
