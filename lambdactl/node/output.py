"""A job's output on its way from the terminal into the log, and the waking of those who follow it."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .logstore import LogWriter
    from .loop import Loop, Timer

READ_SIZE = 1 << 16
READS_A_ROUND = 32
ANNOUNCE_INTERVAL = 0.002  # a torrent of output wakes followers 500 times a second, not once per 4 KiB of terminal


class Output:
    """Reads a terminal whenever there is something; `feed` may take out of the data what is no output."""

    def __init__(self, loop: Loop, log: LogWriter, wake: Callable[[], None], feed: Callable[[bytes], bytes]) -> None:
        self._loop = loop
        self._log = log
        self._wake = wake
        self._feed = feed
        self._terminal = -1
        self._announcement: Timer | None = None
        self._announced = 0.0

    def follow(self, terminal: int) -> None:
        """Read this terminal from now on."""
        self._terminal = terminal
        self._loop.watch(terminal, self.read)

    def read(self) -> None:
        """Take what is there now."""
        parts = []
        for _ in range(READS_A_ROUND):
            try:
                data = os.read(self._terminal, READ_SIZE)
            except BlockingIOError:
                break
            except OSError:  # EIO: nobody has the terminal open any more
                data = b""
            if not data:
                self._loop.forget(self._terminal)
                break
            parts.append(data)
        if parts:
            self._log.write(self._feed(b"".join(parts)))
            if self._announcement is None:
                wait = self._announced + ANNOUNCE_INTERVAL - time.monotonic()
                self._announcement = self._loop.later(max(0.0, wait), self._announce)

    def _announce(self) -> None:
        self._announcement = None
        self._announced = time.monotonic()
        self._wake()
