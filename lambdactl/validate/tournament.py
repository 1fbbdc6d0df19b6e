"""Which pairs of nodes to measure: the circle method, and packing further pairs into rounds.

A round is a set of disjoint pairs, which run at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

Pair = tuple[int, int]


def pair(a: int, b: int) -> Pair:
    """The two, the lower number first."""
    return (a, b) if a < b else (b, a)


def most_rounds(nodes: int) -> int:
    """How many rounds an investigation may take at most: 2 * ceil(log2 N) + 3."""
    return 2 * math.ceil(math.log2(nodes)) + 3 if nodes > 1 else 0


def schedule(nodes: int, rounds: int) -> list[list[Pair]]:
    """The first rounds of a round-robin tournament of nodes 0 ... nodes-1; no pair comes twice.

    The circle method gives N-1 rounds (N with a pause for one where N is odd). Two neighbouring rounds of it form one
    ring through all nodes, so the numbers are laid out such that the first two rounds are the ring in rank order: the
    paths that an all-reduce over all nodes uses. The rounds behind them come from evenly over the rest, and so pair
    nodes most of which are far apart, and cross the switches above a leaf.
    """
    if nodes < 2 or rounds < 1:
        return []
    size = nodes + nodes % 2
    place = _ring(size)
    found = []
    for number in _chosen(size, rounds):
        pairs = (pair(place[a], place[b]) for a, b in _circle(size, number))
        found.append(sorted(p for p in pairs if p[1] < nodes))
    return [pairs for pairs in found if pairs]


def _circle(size: int, number: int) -> list[Pair]:
    """One round: seat size-1 stands in the middle, the seats whose sum is 2 * number (mod size-1) meet."""
    turn = size - 1
    return [(turn, number % turn)] + [((number + i) % turn, (number - i) % turn) for i in range(1, size // 2)]


def _ring(size: int) -> dict[int, int]:
    """Seat -> node, such that rounds 0 and 1 together are the ring 0-1-2-...; seat size-1 is the last node."""
    if size == 2:
        return {0: 0, 1: 1}
    partners = [{a: b for p in _circle(size, number) for a, b in (p, p[::-1])} for number in (0, 1)]
    place, seat = {size - 1: size - 1}, partners[0][size - 1]
    for node in range(size - 1):
        place[seat] = node
        seat = partners[(node + 1) % 2][seat]
    return place


def _chosen(size: int, rounds: int) -> list[int]:
    """Rounds 0 and 1, then evenly from the others."""
    others = list(range(2, size - 1))
    wanted = min(rounds, size - 1) - 2
    if wanted <= 0:
        return list(range(min(rounds, size - 1)))
    step = len(others) / (wanted + 1)
    far = [others[min(len(others) - 1, int(step * (i + 1)))] for i in range(wanted)]
    if len(set(far)) < wanted:
        far = others[:wanted]
    return [0, 1, *far]


def pack(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
    """One round's worth of the pairs, first come first served, and what is left over."""
    busy: set[int] = set()
    chosen, left = [], []
    for a, b in pairs:
        if a in busy or b in busy:
            left.append((a, b))
        else:
            busy |= {a, b}
            chosen.append((a, b))
    return chosen, left
