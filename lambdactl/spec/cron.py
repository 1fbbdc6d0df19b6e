"""dstack's cron expressions as moments: five fields, UTC, Monday is 0; day of month and day of week must both match.

Source: APScheduler's CronTrigger.from_crontab, which dstack uses. lambdactl/node/cron.py is the same on nodes, which
cannot import this; a test holds the two together.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FIELDS = ((0, 59, ()), (0, 23, ()), (1, 31, ()), (1, 12, _MONTHS), (0, 6, _DAYS))
LAST = 0
"""Stands for the last day of a month among its days."""
_DAY = 86400
_HORIZON = 5 * 366
"""Days to look ahead and back; a 29th of February on a given weekday may be further away, and is then unknown."""


@dataclass(frozen=True, slots=True)
class Cron:
    """One expression as five sets; `days` may hold LAST, `weekdays` count from Monday."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @classmethod
    def of(cls, text: str) -> Cron:
        """An expression that the file's reader has let through (`values.read_cron`)."""
        return cls(*(_expand(field, *bounds) for field, bounds in zip(text.split(), _FIELDS, strict=True)))

    def matches(self, moment: float) -> bool:
        """Whether it is due in the minute of this moment (seconds since the epoch)."""
        at = time.gmtime(moment)
        return at.tm_min in self.minutes and at.tm_hour in self.hours and self._on(*at[:3])

    def after(self, moment: float) -> float | None:
        """The first moment after this one; None when there is none within five years."""
        first = int(moment) // 60 * 60 + 60
        start = first // _DAY * _DAY
        days = range(start, start + _HORIZON * _DAY, _DAY)
        return next((found for day in days for found in self._of_day(day) if found >= first), None)

    def before(self, moment: float) -> float | None:
        """The last moment not after this one; None when there was none within five years."""
        start = int(moment) // _DAY * _DAY
        days = range(start, start - _HORIZON * _DAY, -_DAY)
        return next((found for day in days for found in reversed([*self._of_day(day)]) if found <= moment), None)

    def _of_day(self, day: int) -> Iterator[float]:
        if self._on(*time.gmtime(day)[:3]):
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    yield float(day + hour * 3600 + minute * 60)

    def _on(self, year: int, month: int, day: int) -> bool:
        last = calendar.monthrange(year, month)[1]
        of_month = day in self.days or (LAST in self.days and day == last)
        return month in self.months and of_month and calendar.weekday(year, month, day) in self.weekdays


def next_of(crons: Iterable[Cron], moment: float) -> float | None:
    """The first moment after this one at which any of them is due."""
    return min((found for cron in crons if (found := cron.after(moment)) is not None), default=None)


def last_of(crons: Iterable[Cron], moment: float) -> float | None:
    """The last moment, not after this one, at which any of them was due."""
    return max((found for cron in crons if (found := cron.before(moment)) is not None), default=None)


def _expand(field: str, low: int, high: int, words: tuple[str, ...]) -> frozenset[int]:
    found: set[int] = set()
    for item in field.split(","):
        if item == "last":
            found.add(LAST)
            continue
        text, _, step = item.partition("/")
        first, _, second = text.partition("-")
        start = low if text == "*" else _number(first, low, words)
        # As APScheduler has it: a number with a step goes on to the end of the range.
        end = high if text == "*" or (step and not second) else _number(second or first, low, words)
        found.update(range(start, end + 1, int(step or 1)))
    return frozenset(found)


def _number(word: str, low: int, words: tuple[str, ...]) -> int:
    return words.index(word.lower()) + low if word.lower() in words else int(word)
