"""Figures out of rows: mean, peak, ranks inferred, plateau, outliers. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lambdactl.nccl.model import Half, Row

GIB = 1 << 30
PLATEAU = 0.05
_OUTLIER = 1.5


@dataclass(frozen=True, slots=True)
class Peak:
    """The best bus bandwidth of all cells, in GB/s, and where it was measured."""

    busbw: float
    size: int
    in_place: bool


@dataclass(frozen=True, slots=True)
class Outlier:
    """A cell that took far longer than its neighbours in size let expect; for information only."""

    size: int
    in_place: bool
    time_us: float
    expected_us: float


@dataclass(frozen=True, slots=True)
class Plateau:
    """Bus bandwidth at the large sizes: `busbw` is the best of them, `reached` that two agree within 5 %."""

    busbw: float
    size: int
    sizes: int
    reached: bool
    rising: bool


def mean_busbw(rows: Iterable[Row]) -> float | None:
    """Mean of every printed busbw cell, as nccl-tests' "Avg bus bandwidth"; says nothing about the link."""
    cells = [half.busbw for row in rows for half in row.halves if half.busbw is not None]
    return math.fsum(cells) / len(cells) if cells else None


def recomputed_mean_busbw(rows: Iterable[Row], factor: float) -> float | None:
    """The same mean from size / time x `factor`, free of the two decimals' rounding."""
    cells = [row.size / half.time_us / 1e3 * factor for row in rows for half in row.halves if half.time_us]
    return math.fsum(cells) / len(cells) if cells else None


def mean_from(rows: Iterable[Row], smallest: int) -> float | None:
    """The mean of the cells of at least `smallest` bytes."""
    return mean_busbw(row for row in rows if row.size >= smallest)


def peak(rows: Iterable[Row]) -> Peak | None:
    """The best cell."""
    best: Peak | None = None
    for row in rows:
        for in_place, half in ((False, row.out_of_place), (True, row.in_place)):
            if half is not None and half.busbw is not None and (best is None or half.busbw > best.busbw):
                best = Peak(half.busbw, row.size, in_place)
    return best


def smallest_latency(rows: Iterable[Row]) -> float | None:
    """The shortest time of any cell, in microseconds."""
    return min((half.time_us for row in rows for half in row.halves if half.time_us is not None), default=None)


def inferred_ranks(rows: Iterable[Row]) -> tuple[int, int | None] | None:
    """Ranks by all-reduce's factor busbw / algbw = 2 (n-1) / n, as the range that the printed digits allow.

    Returns:
        (fewest, most); most is None when the digits set no upper limit; None when no row is large enough to tell, or
        the factors are not all-reduce's. Source: doc/PERFORMANCE.md of nccl-tests.
    """
    low, high = 0.0, 2.0
    told = False
    for half in (half for row in rows for half in row.halves):
        if half.algbw is None or half.busbw is None or half.algbw < 0.5:
            continue
        told = True
        error = 0.0051 if half.algbw < 1e4 else half.algbw * 1e-3
        low = max(low, (half.busbw - error) / (half.algbw + error))
        high = min(high, (half.busbw + error) / (half.algbw - error))
    if not told or low > high:
        return None
    fewest = max(1, math.ceil(2 / (2 - low) - 1e-9)) if low < 2 else 1
    most = math.floor(2 / (2 - high) + 1e-9) if high < 2 else None
    return (fewest, most) if most is None or fewest <= most else None


def plateau(rows: Iterable[Row], smallest: int = GIB) -> Plateau | None:
    """The best of the halves and repetitions per size, from `smallest` bytes up; None without such a size."""
    best: dict[int, float] = {}
    for row in rows:
        if row.size >= smallest and (value := row.best_busbw) is not None:
            best[row.size] = max(value, best.get(row.size, 0.0))
    if not best:
        return None
    size = max(best, key=lambda s: best[s])
    ranked = sorted(best.values(), reverse=True)
    reached = len(ranked) > 1 and ranked[1] >= ranked[0] * (1 - PLATEAU)
    return Plateau(best[size], size, len(best), reached, rising=size == max(best))


def outliers(rows: Sequence[Row]) -> list[Outlier]:
    """Cells that took over 1.5 times what the sizes below and above give by interpolation (logarithms of both)."""
    found = []
    for in_place in (False, True):
        cells = [(row.size, half.time_us) for row in rows if (half := _half(row, in_place)) and half.time_us]
        for (s0, t0), (s1, t1), (s2, t2) in zip(cells, cells[1:], cells[2:], strict=False):
            if not 0 < s0 < s1 < s2 or not (t0 and t1 and t2):
                continue
            share = math.log(s1 / s0) / math.log(s2 / s0)
            expected = math.exp(math.log(t0) * (1 - share) + math.log(t2) * share)
            if t1 > _OUTLIER * max(expected, min(t0, t2)):
                found.append(Outlier(s1, in_place, t1, expected))
    return sorted(found, key=lambda outlier: (outlier.size, outlier.in_place))


def _half(row: Row, in_place: bool) -> Half | None:
    return row.in_place if in_place else row.out_of_place
