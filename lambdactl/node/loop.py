"""A small event loop: descriptors, timers and signals, in one thread."""

from __future__ import annotations

import heapq
import os
import select
import time

from .light import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class _Watched:
    """A descriptor's callback, and which watching of this number it is."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback


class Timer:
    """A call that is due at a moment of the monotonic clock, unless it is cancelled."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    """Calls back for ready descriptors first, then for timers: after a pause of the machine, news beat deadlines."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._watched: dict[int, _Watched] = {}
        self._timers: list[Timer] = []
        self._signals: dict[int, Callable[[], None]] = {}
        self._running = True
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.watch(self._wake_read, self._on_signals)

    def watch(self, descriptor: int, callback: Callable[[], None], events: int = READ) -> None:
        """Call back whenever the descriptor is ready; asking again replaces callback and events."""
        if descriptor in self._watched:
            self._poll.modify(descriptor, events)
        else:
            self._poll.register(descriptor, events)
        self._watched[descriptor] = _Watched(callback)

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor (before it is closed)."""
        if self._watched.pop(descriptor, None) is not None:
            try:
                self._poll.unregister(descriptor)
            except OSError:  # it is closed already
                return

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once, `seconds` from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def on_signal(self, signum: int, callback: Callable[[], None]) -> None:
        """Call back in the loop, never in the middle of something, when the signal has come."""
        self._signals[signum] = callback
        signal.signal(signum, lambda *_: None)

    def _on_signals(self) -> None:
        for signum in set(os.read(self._wake_read, 4096)):
            callback = self._signals.get(signum)
            if callback is not None:
                callback()

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].when - time.monotonic()) if self._timers else None

    def stop(self) -> None:
        """Leave `run` after the current round."""
        self._running = False

    def run(self) -> None:
        """Serve until `stop`."""
        while self._running:
            ready = [(number, self._watched.get(number)) for number, _ in self._poll.poll(self._timeout())]
            for number, watched in ready:
                if (
                    watched is not None and self._watched.get(number) is watched
                ):  # not closed, nor its number reused, in this round
                    watched.callback()
            now = time.monotonic()
            while self._timers and self._timers[0].when <= now:
                timer = heapq.heappop(self._timers)
                if timer.callback is not None:
                    timer.callback()
