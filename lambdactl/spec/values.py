"""The little languages inside values: ranges, sizes, durations, processors, GPUs, variables, ports, cron.

Every ``read_*`` takes the text as written and raises ValueError with a predicate: what follows the key's name in
"'resources.gpu' must be ...". The grammar is dstack's (its documentation's pages "Resources" and ".dstack.yml");
stricter where dstack lets nonsense through: no negative, infinite or not-a-number sizes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .nodes import nearest, show

N = TypeVar("N", int, float)

_UNITS = {"mb": 1 / 1024, "gb": 1.0, "tb": 1024.0, "": 1.0}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(mb|gb|tb|)", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
_DURATION = re.compile(r"(\d{1,12}) *([smhdw]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_ENV = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)(?:=(.*))?", re.ASCII | re.DOTALL)
_PORTS = re.compile(r"(?:(\d{1,9}|\*):)?(\d{1,9})", re.ASCII)
_CAPABILITY = re.compile(r" *(\d{1,4})\.(\d{1,4}) *", re.ASCII)

VENDORS = {
    "nvidia": "nvidia",
    "amd": "amd",
    "google": "google",
    "tpu": "google",
    "intel": "intel",
    "tenstorrent": "tenstorrent",
    "tt": "tenstorrent",
}
"""GPU vendors and their aliases, as the grammar spells them."""

ARCHITECTURES = ("x86", "arm")

WHOLE_RANGE = "a number or a range such as 8, 2..8, 4.. or ..8"
SIZE = "a size such as 512MB, 16GB or 1TB"
SIZE_RANGE = "a size or a range such as 16GB, 16GB.., ..80GB or 40GB..80GB"
DURATION = "a number of seconds, or a number with s, m, h, d or w such as 90s or 2h"


@dataclass(frozen=True, slots=True)
class Range(Generic[N]):
    """From ``min`` to ``max``, both included; None on a side means no bound there."""

    min: N | None
    max: N | None

    def __str__(self) -> str:
        if self.min == self.max:
            return _text(self.min)
        return f"{_text(self.min)}..{_text(self.max)}"

    def __contains__(self, value: float) -> bool:
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


def _text(bound: float | None) -> str:
    return "" if bound is None else f"{bound:.15g}" if isinstance(bound, float) else str(bound)


@dataclass(frozen=True, slots=True)
class EnvVar:
    """An environment variable; ``value`` None means: filled from the caller's environment, or by ``-e``."""

    name: str
    value: str | None = field(repr=False)


def read_whole(text: str) -> int:
    """A whole number, not negative."""
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"must be a whole number, not {show(text)}")
    return int(text)


def read_size(text: str) -> float:
    """A size in gigabytes: ``512MB``, ``16 Gb``, ``1TB``; without a unit it is GB."""
    match = _SIZE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ValueError(f"must be {SIZE}, not {show(text)}")
    size = float(match[1]) * _UNITS[match[2].lower()]
    if not math.isfinite(size):
        raise ValueError(f"is too large: {show(text)}")
    return size


def format_size(size: float) -> str:
    """``size`` (GB) as :func:`read_size` reads it."""
    return f"{size:.15g}GB" if size >= 1 or size == 0 else f"{size * 1024:.15g}MB"


def split_range(text: str, wanted: str) -> tuple[str | None, str | None]:
    """The two sides of a range; a bare value means exactly that value."""
    packed = text.replace(" ", "")
    low, dots, high = packed.partition("..")
    if not dots:
        return packed, packed
    if ".." in high or (high.startswith(".") and not high[1:2].isdigit()):
        raise ValueError(f"must be {wanted}, not {show(text)}")
    return low or None, high or None


def ordered(low: N | None, high: N | None, text: str) -> Range[N]:
    """The range, when its bounds are in order and there is one."""
    if low is None and high is None:
        raise ValueError("must have a bound on at least one side of '..'")
    if low is not None and high is not None and low > high:
        raise ValueError(f"has its bounds in the wrong order: {show(text)}")
    return Range(low, high)


def read_whole_range(text: str) -> Range[int]:
    """``8``, ``2..8``, ``2..`` or ``..8``."""
    low, high = split_range(text, WHOLE_RANGE)
    try:
        return ordered(None if low is None else read_whole(low), None if high is None else read_whole(high), text)
    except ValueError as error:
        raise _reworded(error, "must be a whole number", WHOLE_RANGE, text) from None


def read_size_range(text: str) -> Range[float]:
    """``16GB``, ``16GB..``, ``..80GB`` or ``40GB..80GB``, in GB."""
    low, high = split_range(text, SIZE_RANGE)
    try:
        return ordered(None if low is None else read_size(low), None if high is None else read_size(high), text)
    except ValueError as error:
        raise _reworded(error, "must be a size", SIZE_RANGE, text) from None


def _reworded(error: ValueError, start: str, wanted: str, text: str) -> ValueError:
    return ValueError(f"must be {wanted}, not {show(text)}") if str(error).startswith(start) else error


def read_duration(text: str) -> int:
    """Seconds: ``90``, ``90s``, ``5m``, ``2h``, ``1d``, ``1w``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"must be {DURATION}, not {show(text)}")
    return int(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: int) -> str:
    """``seconds`` in the largest unit that divides it, as :func:`read_duration` reads it."""
    for unit in "wdhm":
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"


def read_architecture(text: str) -> str:
    """``x86`` or ``arm``, any case."""
    if text.lower() not in ARCHITECTURES:
        raise ValueError(f"must be x86 or arm, not {show(text)}")
    return text.lower()


def read_vendor(text: str) -> str:
    """A GPU vendor, any case, aliases resolved."""
    vendor = VENDORS.get(text.lower())
    if vendor is None:
        meant = nearest(text, tuple(VENDORS))
        help_ = f"; did you mean '{meant}'?" if meant else ""
        raise ValueError(f"must be one of {', '.join(VENDORS)}, not {show(text)}{help_}")
    return vendor


def _token_once(found: dict[str, Any], kind: str, value: Any, text: str) -> None:
    if kind in found:
        raise ValueError(f"gives the {kind} twice in {show(text)}")
    found[kind] = value


def read_cpu(text: str) -> dict[str, Any]:
    """``4``, ``2..8``, ``x86:16``, ``arm:8..``: the keys of a cpu mapping."""
    found: dict[str, Any] = {}
    for token in text.replace(" ", "").split(":"):
        if not token:
            raise ValueError(f"has nothing on one side of a ':' in {show(text)}")
        if ".." in token or token.isdigit():
            _token_once(found, "count", read_whole_range(token), text)
        elif token.lower() in ARCHITECTURES:
            _token_once(found, "arch", token.lower(), text)
        else:
            raise ValueError(f"must be cores such as 8, 4.., x86:16 or arm:8.., not {show(text)}")
    return found


def read_gpu(text: str) -> dict[str, Any]:
    """``8``, ``nvidia:B200:8``, ``H100,H200:80GB..:1..8``, parts in any order: the keys of a gpu mapping."""
    found: dict[str, Any] = {}
    for token in text.replace(" ", "").split(":"):
        if not token:
            raise ValueError(f"has nothing on one side of a ':' in {show(text)}")
        if token.lower() in VENDORS:
            _token_once(found, "vendor", VENDORS[token.lower()], text)
        elif token[0].isalpha():
            _token_once(found, "name", read_gpu_names(token), text)
        elif any(character.isalpha() for character in token):
            _token_once(found, "memory", read_size_range(token), text)
        else:
            _token_once(found, "count", read_whole_range(token), text)
    return found


def read_gpu_names(text: str) -> tuple[str, ...]:
    """``A100`` or ``A100,H100``."""
    names = tuple(name.strip().removeprefix("tpu-") for name in text.split(","))
    if not all(names):
        raise ValueError(f"has an empty GPU name in {show(text)}")
    return names


def read_capability(text: str) -> tuple[int, int]:
    """A CUDA compute capability: ``9.0``."""
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise ValueError(f"must be a compute capability such as 7.5 or 9.0, not {show(text)}")
    return int(match[1]), int(match[2])


def read_env(text: str) -> EnvVar:
    """``NAME=value``, ``NAME=`` or ``NAME``. The value is never part of an error: it may be a secret."""
    match = _ENV.fullmatch(text)
    if match is None:
        name = text.partition("=")[0]
        raise ValueError(f"must be NAME=value or NAME; {show(name)} is not a variable's name (letters, digits, '_')")
    return EnvVar(match[1], match[2])


def read_ports(text: str) -> tuple[int | None, int]:
    """``8501``, ``80:8080`` or ``*:8080``: the local port (None: any free one) and the one inside."""
    match = _PORTS.fullmatch(text)
    if match is None:
        raise ValueError(
            f"must be a port, local:remote, or *:remote, such as 8501, 80:8080 or *:8080, not {show(text)}"
        )
    remote = _port(match[2])
    return remote if match[1] is None else None if match[1] == "*" else _port(match[1]), remote


def _port(text: str) -> int:
    if not 1 <= int(text) <= 65535:
        raise ValueError(f"must be a port from 1 to 65535, not {show(text)}")
    return int(text)


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CRON_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
)
_CRON_ITEM = re.compile(r"(\*|(\w+)(?:-(\w+))?)(?:/(\d{1,4}))?", re.ASCII)


def read_cron(text: str) -> str:
    """A cron expression of five fields, UTC, Monday is 0 (APScheduler's ``CronTrigger.from_crontab``)."""
    fields = text.split()
    if len(fields) != len(_CRON_FIELDS):
        raise ValueError(f"must have 5 fields (minute hour day month weekday), not {len(fields)}: {show(text)}")
    for expression, (name, low, high, words) in zip(fields, _CRON_FIELDS, strict=True):
        if not all(_cron_item(item, low, high, words) for item in expression.split(",")):
            raise ValueError(
                f"has an invalid {name} {show(expression)}; allowed: {low}-{high}, with '*', '-', ',' and '/'"
            )
    return text


def _cron_item(item: str, low: int, high: int, words: tuple[str, ...]) -> bool:
    if low == 1 and high == 31 and item == "last":
        return True
    match = _CRON_ITEM.fullmatch(item)
    if match is None:
        return False
    if match[4] is not None and not 1 <= int(match[4]) <= max(high - low, 1):
        return False
    if match[1] == "*":
        return True
    bounds = [_cron_number(word, low, words) for word in match.group(2, 3) if word is not None]
    if any(bound is None or not low <= bound <= high for bound in bounds):
        return False
    return len(bounds) == 1 or str(bounds[0]) == str(bounds[1]) or (bounds[0] or 0) < (bounds[1] or 0)


def _cron_number(word: str, low: int, words: tuple[str, ...]) -> int | None:
    if word.isdigit() and len(word) <= 4:
        return int(word)
    return words.index(word.lower()) + low if word.lower() in words else None
