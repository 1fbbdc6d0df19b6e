"""A rank's log on disk: segment files named by the offset of their first byte, so an offset finds its file by name.

Beside each segment an index of (time, offset) pairs answers "since when". The writer never blocks or ends the job: over
its limit the oldest segments go, and when the disk is full it drops output, counts it, and says so in the log.
"""

from __future__ import annotations

import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = struct.Struct("<dQ")  # seconds since 1970, offset of the first byte written then or later
MARK_INTERVAL = 0.1
CLOCK_TICK = 0.01  # a file's time may lag that much behind the clock
SEGMENTS = 16
MAX_SEGMENT = 64 << 20
RETRY_INTERVAL = 1.0


def segment_path(folder: str, start: int) -> str:
    """The file whose first byte is the log's byte number `start`."""
    return f"{folder}/{start:020d}.log"


def segments(folder: str) -> list[int]:
    """Start offsets of the segments that are kept, in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-4]) for name in names if name.endswith(".log") and name[:-4].isdigit())


def extent(folder: str) -> tuple[int, int]:
    """Offsets of the first byte kept and of the end."""
    starts = segments(folder)
    if not starts:
        return 0, 0
    try:
        return starts[0], starts[-1] + os.stat(segment_path(folder, starts[-1])).st_size
    except FileNotFoundError:  # rotated away between the two calls
        return extent(folder)


def offset_since(folder: str, moment: float) -> int:
    """An offset at or a little (MARK_INTERVAL) before the first byte written at `moment` or later."""
    best = extent(folder)[0]
    for start in segments(folder):
        try:
            segment = os.stat(segment_path(folder, start))
            with open(segment_path(folder, start) + ".idx", "rb") as file:
                data = file.read()
        except FileNotFoundError:
            continue
        if segment.st_mtime + CLOCK_TICK < moment:
            best = start + segment.st_size
            continue
        import bisect

        marks = list(MARK.iter_unpack(data[: len(data) // MARK.size * MARK.size]))
        position = bisect.bisect_right([mark[0] for mark in marks], moment)
        if position:
            best = max(best, int(marks[position - 1][1]))
        if position < len(marks):
            break
    return best


def chunks(folder: str, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(descriptor, position in it, length) for the bytes from `offset` on, at most `size` each; ends at the log's end.

    The caller closes nothing: a descriptor is valid until the next one is taken. Bytes that are rotated away before
    they are reached are left out; compare the sum with what was wanted.
    """
    for start in segments(folder):
        try:
            descriptor = os.open(segment_path(folder, start), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            end = start + os.fstat(descriptor).st_size
            offset = max(offset, start) if end > offset else offset
            while offset < end:
                length = min(size, end - offset)
                yield descriptor, offset - start, length
                offset += length
        finally:
            os.close(descriptor)


class LogWriter:
    """Appends a rank's output. `start` and `size` are the offsets of the first byte kept and of the end."""

    def __init__(self, folder: str, limit: int) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.folder = folder
        self.limit = limit
        self.segment_limit = max(4096, min(MAX_SEGMENT, limit // SEGMENTS))
        self.start, self.size = extent(folder)
        self.dropped = 0
        self._full_until = 0.0
        self._marked = 0.0
        self._log = self._index = -1
        self._segment = self.size
        self._starts = segments(folder)

    def write(self, data: bytes) -> None:
        """Append output; never raises for a disk that is full or broken."""
        if self._full_until:
            if time.monotonic() < self._full_until:
                self.dropped += len(data)
                return
            data = b"\n[lambdactl: the disk is full, %d bytes of output were dropped]\n" % self.dropped + data
        try:
            self._append(data)
            self._full_until = 0.0
        except OSError:
            self.dropped += len(data)
            self._full_until = time.monotonic() + RETRY_INTERVAL

    def _append(self, data: bytes) -> None:
        if self._log < 0 or self.size - self._segment >= self.segment_limit:
            self._rotate()
        self._mark()
        view = memoryview(data)
        while view:
            written = os.write(self._log, view)
            self.size += written
            view = view[written:]

    def _mark(self) -> None:
        now = time.time()
        if not 0 <= now - self._marked < MARK_INTERVAL:
            os.write(self._index, MARK.pack(now, self.size))
            self._marked = now

    def _rotate(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        path = segment_path(self.folder, self.size)
        self._log = os.open(path, flags, 0o600)
        self._index = os.open(path + ".idx", flags, 0o600)
        self._segment = self.size
        self._marked = 0.0
        if self.size not in self._starts:
            self._starts.append(self.size)
        while len(self._starts) > 1 and self.size - self._starts[0] > self.limit - self.segment_limit:
            oldest = segment_path(self.folder, self._starts.pop(0))
            for name in (oldest, oldest + ".idx"):
                os.unlink(name)
        self.start = self._starts[0]

    def close(self) -> None:
        """Close the files."""
        for descriptor in (self._log, self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._index = -1
