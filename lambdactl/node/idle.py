"""When a dev environment counts as left alone: decided from its SSH sessions and a clock, without either of them here.

Source: dstack's `inactivity_duration`, which ignores connections that last less than 10 s (a client that only asks
something, a port scan).
"""

from __future__ import annotations

PASSING = 10.0


class Idleness:
    """Counts the time without a session.

    Args:
        limit: seconds without a session after which the run ends; None: never.
        now: the moment from which it counts, in seconds of a monotonic clock.
    """

    def __init__(self, limit: float | None, now: float) -> None:
        self.limit = limit
        self._active = now
        self._open: dict[int, float] = {}

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._open)

    def opened(self, key: int, now: float) -> None:
        """A session has begun."""
        self._open[key] = now

    def restart(self, now: float) -> None:
        """Count from this moment on."""
        self._active = now

    def look(self, alive: set[int], now: float) -> None:
        """Take in which of the sessions are still open."""
        for key, began in list(self._open.items()):
            if key not in alive:
                del self._open[key]
            if now - began >= PASSING:
                self._active = now

    def idle(self, now: float) -> float:
        """Seconds since the last session that counted; 0 while one is open, however young it is."""
        return 0.0 if self._open else max(0.0, now - self._active)

    def is_over(self, now: float) -> bool:
        """Whether the run has been left alone for too long."""
        return self.limit is not None and not self._open and now - self._active >= self.limit
