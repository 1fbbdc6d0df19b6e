"""dstack's cron expressions: five fields, UTC, Monday is 0; day of month and day of week must both match.

Source: APScheduler's CronTrigger.from_crontab, which dstack uses. The file's reader (lambdactl/spec/values.py) refuses
what is not valid; here it is expanded, to the lists that systemd's OnCalendar takes and to moments before and after.
Nodes and the Kubernetes backend (lambdactl/backends/kubernetes/schedule*.py) go by this; it is pure.
"""

from __future__ import annotations

import calendar
import time

from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FIELDS = ((0, 59, ()), (0, 23, ()), (1, 31, ()), (1, 12, MONTHS), (0, 6, DAYS))
LAST = 0  # stands for the last day of a month among its days
DAY = 86400
HORIZON = 5 * 366  # days to look ahead and back: a 29th of February on a given weekday may be further, and is unknown


class Cron:
    """One expression as five sets; `days` may hold LAST. Raises NodeError (bad-request)."""

    def __init__(self, text: object) -> None:
        fields = text.split() if isinstance(text, str) else []
        if len(fields) != len(FIELDS):
            raise NodeError("bad-request", f"schedule: {str(text)[:80]!r} is no cron expression of five fields")
        try:
            sets = [_expand(field, *bounds) for field, bounds in zip(fields, FIELDS)]
        except ValueError:
            raise NodeError("bad-request", f"schedule: {str(text)[:80]!r} is no valid cron expression") from None
        self.minutes, self.hours, self.days, self.months, self.weekdays = sets

    def on_calendar(self) -> list[str]:
        """The same as systemd's calendar events; one, or two where the last day of the month is named beside others."""
        weekdays = ",".join(DAYS[day].capitalize() for day in sorted(self.weekdays))
        months, clock = _list(self.months), f"{_list(self.hours)}:{_list(self.minutes)}:00 UTC"
        plain = self.days - {LAST}
        found = [f"{weekdays} *-{months}-{_list(plain)} {clock}"] if plain else []
        return found + ([f"{weekdays} *-{months}~01 {clock}"] if LAST in self.days else [])

    def matches(self, moment: float) -> bool:
        """Whether it is due in the minute of this moment (seconds since 1970)."""
        at = time.gmtime(moment)
        return at.tm_min in self.minutes and at.tm_hour in self.hours and self._on(*at[:3])

    def after(self, moment: float) -> float | None:
        """The first moment after this one; None when there is none within five years."""
        first = int(moment) // 60 * 60 + 60
        start = first // DAY * DAY
        days = range(start, start + HORIZON * DAY, DAY)
        return next((found for day in days for found in self._of_day(day) if found >= first), None)

    def before(self, moment: float) -> float | None:
        """The last moment not after this one; None when there was none within five years."""
        start = int(moment) // DAY * DAY
        days = range(start, start - HORIZON * DAY, -DAY)
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


def _list(numbers: Iterable[int]) -> str:
    return ",".join(f"{number:02d}" for number in sorted(numbers))


def _expand(field: str, low: int, high: int, words: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for item in field.split(","):
        if item == "last" and high == 31:
            found.add(LAST)
            continue
        text, _, step = item.partition("/")
        first, _, second = text.partition("-")
        start = low if text == "*" else _number(first, low, words)
        # As APScheduler has it: a number with a step goes on to the end of the range.
        end = high if text == "*" or (step and not second) else _number(second or first, low, words)
        if not low <= start <= end <= high or (step and int(step) < 1):
            raise ValueError(item)
        found.update(range(start, end + 1, int(step or 1)))
    return found


def _number(word: str, low: int, words: tuple[str, ...]) -> int:
    return words.index(word.lower()) + low if word.lower() in words else int(word)


def next_of(crons: Iterable[Cron], moment: float) -> float | None:
    """The first moment after this one at which any of them is due."""
    return min((found for cron in crons if (found := cron.after(moment)) is not None), default=None)


def last_of(crons: Iterable[Cron], moment: float) -> float | None:
    """The last moment, not after this one, at which any of them was due."""
    return max((found for cron in crons if (found := cron.before(moment)) is not None), default=None)
