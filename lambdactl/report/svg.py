"""Line charts and the heat map as inline SVG. Colours are the page's CSS classes, so that they follow its scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from lambdactl.report import facts

_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 26, 14, 48
_PALETTE = 4


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: (bytes, value) pairs, and the bound in the same unit."""

    label: str
    points: tuple[tuple[int, float], ...]
    bound: float | None = None


def chart(title: str, unit: str, series: Sequence[Series]) -> str:
    """Values over message sizes (powers of two), each curve with its dashed bound; the legend stands below."""
    sizes = [size for curve in series for size, _ in curve.points]
    most = max([value for curve in series for _, value in curve.points] + [curve.bound or 0.0 for curve in series])
    if not sizes or most <= 0:
        return ""
    step = _nice(most / 5)
    top = step * math.ceil(most / step * 1.0001)
    low, high = math.log2(min(sizes)), max(math.log2(max(sizes)), math.log2(min(sizes)) + 1)

    def x(size: int) -> float:
        return _LEFT + (math.log2(size) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    body = "".join((*_grid(step, top, unit, y), *_sizes(low, high, x), *_curves(series, x, y)))
    label = escape(f"{title}, {unit} by message size", quote=True)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{label}">{body}</svg>{_legend(series, unit)}</figure>'
    )


def _grid(step: float, top: float, unit: str, y: Callable[[float], float]) -> Iterator[str]:
    for number in range(round(top / step) + 1):
        at = y(number * step)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 8}" y="{at + 4.5:.1f}" text-anchor="end">{number * step:g}</text>'
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    yield (
        f'<text class="axis" x="14" y="{middle:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle:.0f})">{escape(unit)}</text>'
    )


def _sizes(low: float, high: float, x: Callable[[int], float]) -> Iterator[str]:
    every = max(1, math.ceil((high - low) / 6))
    for exponent in range(math.ceil(low), math.floor(high) + 1, every):
        at = x(2**exponent)
        yield f'<text class="tick" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">'
        yield f"{facts.size(2**exponent)}</text>"
    yield (
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        "message size</text>"
    )


def _curves(series: Sequence[Series], x: Callable[[int], float], y: Callable[[float], float]) -> Iterator[str]:
    for number, curve in enumerate(series):
        colour = f"s{number % _PALETTE}"
        if curve.bound is not None:
            at = y(curve.bound)
            yield f'<line class="bound {colour}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        line = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in curve.points)
        yield f'<polyline class="curve {colour}" points="{line}"/>'
        for size, value in curve.points:
            tip = escape(f"{curve.label}: {facts.size(size)}, {value:.4g}")
            at_point = f'cx="{x(size):.1f}" cy="{y(value):.1f}"'
            yield f'<circle class="dot {colour}" {at_point} r="3"><title>{tip}</title></circle>'


def _legend(series: Sequence[Series], unit: str) -> str:
    items = []
    for number, curve in enumerate(series):
        bound = "" if curve.bound is None else f" (dashed: bound {curve.bound:.4g} {unit})"
        items.append(f'<li class="s{number % _PALETTE}"><span>{escape(curve.label + bound)}</span></li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _nice(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.9999)


HEAT = ((0.95, "h0"), (0.85, "h1"), (0.7, "h2"), (0.5, "h3"), (0.0, "h4"))


def heat_class(share: float) -> str:
    """The colour of a pair by its share of the typical pair."""
    return next(name for least, name in HEAT if share >= least)


def heat_map(names: Sequence[str], shares: dict[tuple[str, str], float], values: dict[tuple[str, str], float]) -> str:
    """A square of pairs; a cell holds GB/s where there is room, empty cells were not measured."""
    cell = 64 if len(names) <= 8 else max(12, 560 // len(names))
    numbered = len(names) > 8
    left = 12 + 8 * min(24, max(len(name) for name in names) + (4 if numbered else 0))
    side = left + cell * len(names) + 4
    head = 26
    parts = []
    for place, name in enumerate(names):
        middle = left + cell * (place + 0.5)
        label = escape(name if not numbered else str(place))
        short = escape(name if len(name) <= 9 else f"#{place}") if not numbered else label
        if not numbered or place % max(1, len(names) // 16) == 0:
            parts.append(f'<text class="tick" x="{middle:.0f}" y="{head - 8}" text-anchor="middle">{short}</text>')
            at = head + cell * (place + 0.5) + 4
            row = label if not numbered else f"{place}: {escape(name)}"[:24]
            parts.append(f'<text class="tick" x="{left - 8}" y="{at:.0f}" text-anchor="end">{row}</text>')
        for other in range(len(names)):
            parts.append(_cell(names, place, other, shares, values, (left, head, cell)))
    box = f"0 0 {side} {head + cell * len(names) + 4}"
    least = min(side, 520) if numbered else 0
    return (
        f'<svg class="heat" style="max-width:{side}px;min-width:{least}px" viewBox="{box}" role="img" '
        f'aria-label="bandwidth of pairs">{"".join(parts)}</svg>'
    )


def _cell(
    names: Sequence[str], row: int, column: int, shares: dict[tuple[str, str], float],
    values: dict[tuple[str, str], float], at: tuple[int, int, int],
) -> str:  # fmt: skip
    left, head, cell = at
    a, b = names[row], names[column]
    key = (a, b) if (a, b) in shares else (b, a)
    x, y = left + cell * column, head + cell * row
    share = shares.get(key)
    kind = "none" if share is None or row == column else heat_class(share)
    text = "" if share is None else f"<title>{escape(f'{a} with {b}: {values[key]:.4g} GB/s, {share:.0%}')}</title>"
    found = f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3">{text}</rect>'
    if share is not None and cell >= 40 and row != column:
        found += (
            f'<text class="value {kind}" x="{x + cell / 2 - 1:.0f}" y="{y + cell / 2 + 4:.0f}" '
            f'text-anchor="middle">{values[key]:.0f}</text>'
        )
    return found
