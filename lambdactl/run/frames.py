"""The log stream of a runner: frames of raw bytes with their offsets, and states as JSON.

b"D <offset> <length>\\n" + bytes     a piece of the log
b"G <from> <to>\\n"                   bytes that were rotated away before this reader came
b"S <json>\\n"                        the rank's state changed
b"E <json>\\n"                        the rank, and on rank 0 the gang, has ended
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lambdactl.errors import LambdactlError

_MAX_HEADER = 1 << 20


@dataclass(frozen=True)
class Data:
    """Log bytes that start at `offset`."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Gap:
    """Bytes `start` to `end` are not kept any more."""

    start: int
    end: int


@dataclass(frozen=True)
class StateChange:
    """A RankState; `final` when nothing follows."""

    state: dict[str, Any]
    final: bool


Frame = Data | Gap | StateChange


class FrameParser:
    """Cuts the stream into frames; a long frame is handed on in pieces as it arrives, so memory stays bounded."""

    def __init__(self) -> None:
        self._buffer = b""
        self._offset = 0
        self._left = 0

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The frames (or pieces of a data frame) that `chunk` completes.

        Raises:
            LambdactlError: the stream is not a log stream.
        """
        view = memoryview(self._buffer + chunk if self._buffer else chunk)
        position = 0
        while position < len(view):
            if self._left:
                piece = bytes(view[position : position + self._left])
                yield Data(self._offset, piece)
                position += len(piece)
                self._offset += len(piece)
                self._left -= len(piece)
                continue
            # Headers are short; look only at the beginning of what may be megabytes of data.
            head = bytes(view[position : position + 64])
            if head[:1] in (b"S", b"E"):
                head = bytes(view[position : position + _MAX_HEADER])
            end = head.find(b"\n")
            if end < 0:
                if len(view) - position > _MAX_HEADER or (head[:1] in (b"D", b"G") and len(head) == 64):
                    raise _broken(head)
                break
            position += end + 1
            frame = self._header(head[:end])
            if frame is not None:
                yield frame
        self._buffer = bytes(view[position:])

    def _header(self, line: bytes) -> Frame | None:
        kind, _, rest = line.partition(b" ")
        try:
            if kind == b"D":
                self._offset, self._left = (int(word) for word in rest.split())
                return None
            if kind == b"G":
                start, end = (int(word) for word in rest.split())
                return Gap(start, end)
            if kind in (b"S", b"E"):
                state = json.loads(rest)
                if isinstance(state, dict):
                    return StateChange(state, final=kind == b"E")
        except ValueError:
            pass
        raise _broken(line)


def _broken(line: bytes) -> LambdactlError:
    return LambdactlError(
        f"the node's log stream is not understood (it begins with {line[:40]!r}); "
        "apply the fleet file to update its runner."
    )
