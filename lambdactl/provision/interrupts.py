"""Interruptions of an Ansible worker that follows a run: SIGINT, SIGTERM, and the death of ansible-playbook itself.

ansible-playbook passes SIGTERM on to its workers and dies at once, without waiting for them. A worker that then shows a
log would wait for ever in a write to a pipe that nobody reads, so the handlers here may end such a write.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Literal

Kind = Literal["signal", "orphaned"]
_CAUGHT = (signal.SIGINT, signal.SIGTERM)
_LOOK = 0.5  # seconds between two looks whether the parent is still there


class _Unblocked(BaseException):
    """Raised by a signal handler inside of `Screen.write`, and nowhere else."""


class Screen:
    """A binary stream that hands text to `display`, until an interruption: from then on nobody may be reading.

    Attributes:
        open: text is still handed on.
    """

    def __init__(self, display: Callable[[str], object], clean: Callable[[bytes], bytes]) -> None:
        self._display = display
        self._clean = clean
        self._rest = b""
        self.open = True
        self.busy = False

    def write(self, data: bytes) -> int:
        """Show all lines that `data` completes; the rest waits for its end, or for `finish`."""
        text, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline or len(self._rest) > 1 << 16:
            self._show(text if newline else self._rest)
            self._rest = self._rest if newline else b""
        return len(data)

    def flush(self) -> None:
        """Nothing is held back but an unfinished line."""

    def isatty(self) -> bool:
        """False: Ansible's display decides about colours itself."""
        return False

    def finish(self) -> None:
        """Show an unfinished last line."""
        if self._rest:
            self._show(self._rest)
        self._rest = b""

    def _show(self, data: bytes) -> None:
        if not self.open:
            return
        try:
            self.busy = True
            self._display(self._clean(data).decode("utf-8", "replace"))
        except _Unblocked:
            self.open = False
        finally:
            self.busy = False


@contextlib.contextmanager
def interruptions(screen: Screen) -> Iterator[asyncio.Queue[Kind]]:
    """What interrupts this process, as a queue; the screen is closed by the first interruption.

    Call it in the main thread, inside a running event loop.
    """
    queue: asyncio.Queue[Kind] = asyncio.Queue()
    loop, parent, done = asyncio.get_running_loop(), os.getppid(), threading.Event()
    orphaned = threading.Event()

    def handler(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, "orphaned" if orphaned.is_set() else "signal")
        if screen.busy:
            raise _Unblocked
        screen.open = False

    def watch() -> None:
        while not done.wait(_LOOK):
            if os.getppid() != parent:
                orphaned.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = {number: signal.signal(number, handler) for number in _CAUGHT}
    watcher = threading.Thread(target=watch, daemon=True, name="lambdactl-parent")
    watcher.start()
    try:
        yield queue
    finally:
        done.set()
        watcher.join()
        for number, old in before.items():
            signal.signal(number, old)
