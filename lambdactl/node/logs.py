"""`runner.pyz logs RUN`: a rank's log and states as frames on standard output, by offset, following if asked.

Bytes go from file to pipe inside the kernel (sendfile); nothing here looks at lines. A reader that was cut off goes on
at the offset that it has reached.
"""

from __future__ import annotations

import json
import os
import select
import time

from . import control, logstore, paths, repair, state
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

OUT = 1
CHUNK = 1 << 20
SETTLE_POLL = 0.05


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(OUT, view) :]


def _copy(descriptor: int, position: int, length: int) -> None:
    """Send a part of a file; standard output may be a pipe, a socket or a file."""
    end = position + length
    while position < end:
        try:
            sent = os.sendfile(OUT, descriptor, position, end - position)
        except OSError:  # an output that cannot take it, such as a file opened for appending
            data = os.pread(descriptor, end - position, position)
            sent = len(data)
            _write(data)
        if sent == 0:
            raise NodeError("internal", "the log is shorter than it was")
        position += sent


class Reader:
    """Writes frames for one reader."""

    def __init__(self, run: str, offset: int) -> None:
        self.run = run
        self.offset = offset
        self.folder = paths.run_dir(run) + "/log"
        self._said: dict[str, Any] | None = None
        self._wakeups: socket.socket | None = None
        self._state_is_news = True

    def send_log(self) -> None:
        """Everything that is kept from the offset on."""
        for descriptor, position, length in logstore.chunks(self.folder, self.offset, CHUNK):
            start = self._start_of(descriptor, position)
            if start > self.offset:
                _write(b"G %d %d\n" % (self.offset, start))
            _write(b"D %d %d\n" % (start, length))
            _copy(descriptor, position, length)
            self.offset = start + length

    def _start_of(self, descriptor: int, position: int) -> int:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        return int(name.partition(".")[0]) + position

    def send_state(self) -> dict[str, Any]:
        """An S frame if the state has changed since the last one."""
        value = repair.repair(self.run) if self._wakeups is None else state.read(self.run)
        if value is None:
            raise NodeError("not-found", f"run {self.run} was forgotten on this node")
        if value != self._said:
            self._said = value
            self._frame(b"S", value)
        return value

    def _frame(self, kind: bytes, value: dict[str, Any]) -> None:
        _write(kind + b" " + json.dumps(repair.public(value, self.run)).encode() + b"\n")

    def follow(self) -> None:
        """Send everything, then all that is new, until the rank (and on rank 0 the gang) has ended."""
        self._wakeups = control.subscribe(self.run, log=True)
        while True:
            value = self.send_state() if self._state_is_news else self._said
            self._state_is_news = False
            self.send_log()
            if value is not None and state.is_settled(value):
                return
            self._wait()

    def _wait(self) -> None:
        if self._wakeups is None:  # the supervisor has ended, or does not listen yet
            self._state_is_news = True
            time.sleep(SETTLE_POLL)
            self._wakeups = control.subscribe(self.run, log=True)
            return
        poll = select.poll()
        poll.register(self._wakeups, select.POLLIN)
        poll.register(OUT, 0)
        if any(descriptor == OUT for descriptor, _ in poll.poll()):
            raise BrokenPipeError
        try:
            kinds = self._wakeups.recv(1 << 16)
        except OSError:
            kinds = b""
        self._state_is_news = not kinds or control.STATE_CHANGED in kinds
        if not kinds:
            self._wakeups.close()
            self._wakeups = None

    def finish(self) -> None:
        """The rest of the log and the E frame."""
        value = self.send_state()
        self.send_log()
        self._frame(b"E", value)


def _options(args: list[str]) -> tuple[str, int, float | None, bool]:
    key, offset, since, follow = None, 0, None, False
    words = iter(args)
    for word in words:
        if word == "--follow":
            follow = True
        elif word in ("--offset", "--since"):
            value = next(words, "")
            try:
                offset, since = (int(value), since) if word == "--offset" else (offset, float(value))
            except ValueError:
                raise NodeError("bad-request", f"{word} takes a number, not {value[:40]!r}") from None
        elif key is None and not word.startswith("-"):
            key = word
        else:
            raise NodeError("bad-request", f"unknown argument {word[:40]!r} of logs")
    if key is None or offset < 0:
        raise NodeError("bad-request", "usage: runner.pyz logs RUN [--offset N] [--since EPOCH] [--follow]")
    return key, offset, since, follow


def main(args: list[str]) -> int:
    """Write one rank's log; without --follow up to where it is now."""
    key, offset, since, follow = _options(args)
    run = state.find(key)
    if run is None or state.read(run) is None:
        raise NodeError("not-found", f"there is no run {key} on this node")
    reader = Reader(run, offset)
    if since is not None:
        reader.offset = max(offset, logstore.offset_since(reader.folder, since))
    elif offset > logstore.extent(reader.folder)[1]:
        raise NodeError("bad-request", f"offset {offset} is beyond the end of the log of run {key}")
    if follow:
        reader.follow()
    reader.finish()
    return 0
