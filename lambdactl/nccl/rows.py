"""One line of the table -> a `Row`: 9 to 23 tokens, whatever the version and flags of nccl-tests."""

from __future__ import annotations

import math
import re

from lambdactl.nccl.model import Half, IterationStats, Row

TYPES = {
    "int8": 1, "char": 1, "uint8": 1, "int32": 4, "int": 4, "uint32": 4, "int64": 8, "uint64": 8, "half": 2,
    "float16": 2, "float": 4, "float32": 4, "double": 8, "float64": 8, "bfloat16": 2, "f8e4m3": 1, "f8e5m2": 1,
    "fp8_e4m3": 1, "fp8_e5m2": 1, "float8e4m3": 1, "float8e5m2": 1,
}  # fmt: skip
_START = re.compile(r"\s*(?:#\s*)?(\d{1,18})\s+(\d{1,18})\s+(%s)(?=\s)" % "|".join(TYPES))  # noqa: UP031 (braces are the pattern's)
_REDOP = re.compile(r"[a-z]{3,8}\Z")
_PLAIN = r"-?\d{1,30}(?:\.\d{0,30})?(?:e[+-]?\d{1,3})?"
_NUMBER = re.compile(rf"{_PLAIN}\Z", re.IGNORECASE)
_NUMBERS = re.compile(rf"{_PLAIN}(?: {_PLAIN})*\Z", re.IGNORECASE)
_NOT_A_NUMBER = {"n/a", "nan", "-nan", "inf", "-inf", "+inf", "+nan"}
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d\Z"), re.compile(r"\d\d:\d\d:\d\d\Z")
# Trace replay prints 32 spaces in place of the out-of-place half (writeBenchMarkLineNullBody in nccl-tests' util.cu).
_BLANK_HALF = re.compile(r"\s{30,}")


def looks_like_row(text: str) -> bool:
    """Whether a line begins as a row does."""
    return _START.match(text) is not None


def parse_row(text: str) -> Row | None:
    """A row, or None when the line is none, or only a part of one."""
    start = _START.match(text)
    if start is None:
        return None
    size, count, type_name = int(start[1]), int(start[2]), start[3]
    if count and size % (count * TYPES[type_name]):
        # Sizes are a multiple of count x width (the factor is the number of ranks in gathers): else a torn line.
        return None
    tokens = text[start.end() :].split()
    redop = tokens.pop(0) if tokens and _REDOP.match(tokens[0]) and tokens[0] != "nan" else None
    timestamp = None
    if len(tokens) > 2 and all(p.match(t) for p, t in zip(_TIMESTAMP, tokens[-2:], strict=True)):
        timestamp = " ".join(tokens[-2:])
        tokens = tokens[:-2]
    root = None
    if len(tokens) in (5, 9, 17):
        if not re.fullmatch(r"-?\d{1,9}", tokens[0]):
            return None
        root = int(tokens.pop(0))
    if len(tokens) not in (4, 8, 16) or not (_NUMBERS.match(" ".join(tokens)) or all(map(_valid, tokens))):
        return None
    out_of_place, in_place = _halves(tokens, only_in_place=bool(_BLANK_HALF.search(text, start.end())))
    return Row(size, count, type_name, redop, root, out_of_place, in_place, timestamp)


def consistent(row: Row) -> bool:
    """Whether algbw = size / time in every half, within the rounding of the printed figures.

    For rows put together from pieces only: with `-C` the time is the CPU's, and the hypercube's algbw counts n-1 times.
    """
    for half in row.halves:
        if half.time_us is None or half.algbw is None or half.time_us <= 0:
            continue
        expected = row.size / half.time_us / 1e3
        if abs(half.algbw - expected) > 0.011 + 0.01 * expected:
            return False
    return True


def _valid(token: str) -> bool:
    return token.lower() in _NOT_A_NUMBER or _NUMBER.match(token) is not None


def _halves(tokens: list[str], *, only_in_place: bool) -> tuple[Half | None, Half | None]:
    width = 8 if len(tokens) == 16 else 4
    halves = [_half(tokens[i : i + width]) for i in range(0, len(tokens), width)]
    if len(halves) == 2:
        return halves[0], halves[1]
    return (None, halves[0]) if only_in_place else (halves[0], None)


def _half(tokens: list[str]) -> Half | None:
    time_us, algbw, busbw = (number(token) for token in tokens[:3])
    if time_us is None and algbw is None and busbw is None and tokens[0].lower() == "n/a":
        return None
    wrong, deviation = _wrong(tokens[3])
    stats = IterationStats(*(number(token) for token in tokens[4:8])) if len(tokens) == 8 else None
    return Half(time_us, algbw, busbw, wrong, deviation, stats)


def number(value: object) -> float | None:
    """A finite, not negative number out of a token or a JSON value, else None."""
    try:
        result = float(value)  # type: ignore[arg-type]  # TypeError is caught
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) and result >= 0 else None


def _wrong(token: str) -> tuple[int | None, float | None]:
    # "%6g" of a count may print 1e+06; tests before 2.11 print a deviation such as 7e-07 or 0e+00.
    value = number(token)
    if value is None:
        return None, None
    if "e-" in token.lower() or token.lower().startswith("0e") or value != int(value):
        return None, value
    return int(value), None
