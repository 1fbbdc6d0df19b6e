"""Log bytes on their way to people: rank prefixes by the chunk, and terminal escapes made harmless.

Nothing here looks at single lines in Python loops: a chunk costs one search and one replace, whatever it holds.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lambdactl.errors import SpecError

# What a log may not send to a terminal: all but colours (SGR, "ESC [ ... m"), tab, newline and carriage return. Shapes
# after ECMA-48: CSI, the strings OSC DCS SOS PM APC (ended by BEL or ST), two-byte escapes, lone controls.
_HARMFUL = re.compile(
    rb"\x1b\[(?![0-9;:]*m)[0-?]*[ -/]*[@-~]"
    rb"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|(?=\x1b))"
    rb"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
    rb"|\x1b(?!\[[0-9;:]*m)"
    rb"|\xc2[\x80-\x9f]"
    rb"|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]"
)
_UNFINISHED = re.compile(rb"(?:\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]{0,4096}\x1b?|[ -/]*)|\xc2)\Z")
_COLOURS = (36, 33, 32, 35, 34, 31)


class TerminalFilter:
    """Removes from a byte stream what could move the cursor, set titles, or type into the user's terminal."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """The harmless part of the stream so far; an unfinished sequence is held back."""
        data = self._tail + data
        tail = _UNFINISHED.search(data[-4200:])
        self._tail = tail.group() if tail else b""
        return _HARMFUL.sub(b"", data[: len(data) - len(self._tail)])

    def flush(self) -> bytes:
        """What was held back, without its escape character."""
        tail, self._tail = self._tail, b""
        return tail.replace(b"\x1b", b"").replace(b"\xc2", b"")


class Prefixer:
    """Puts a rank's prefix before each complete line; the last, unfinished line waits for its end or for `flush`."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._between = b"\n" + prefix
        self._partial: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """All lines that `data` completes, prefixed."""
        if not data:
            return b""
        end = data.rfind(b"\n")
        if end < 0:
            self._partial.append(data)
            # A line without an end must not fill the memory.
            return self.flush() if sum(map(len, self._partial)) > 1 << 20 else b""
        lines = b"".join((*self._partial, data[:end]))
        rest = data[end + 1 :]
        self._partial = [rest] if rest else []
        return self._prefix + lines.replace(b"\n", self._between) + b"\n"

    def flush(self) -> bytes:
        """The unfinished last line, ended."""
        if not self._partial:
            return b""
        line = b"".join(self._partial)
        self._partial = []
        return self._prefix + line.replace(b"\n", self._between) + b"\n"


def log_folder(path: Path) -> None:
    """Make the folder that copies of logs go to.

    Raises:
        SpecError: it cannot be had, or not be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(path, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise SpecError(f"the folder of logs {path} cannot be used ({reason}); name another one.")


class LogOutput:
    """Where followed logs go: the screen (or a pipe), and on request one byte-complete file a rank.

    Args:
        ranks: the ranks to be shown; more than one means prefixes.
        stream: the binary stream for people; standard output when left out.
        directory: a folder for `rank-<n>.log` files, which get every byte unchanged.
        watch: gets every byte of rank 0 unchanged.
    """

    def __init__(
        self,
        ranks: list[int],
        *,
        stream: BinaryIO | None = None,
        directory: Path | None = None,
        watch: Callable[[bytes], None] | None = None,
    ) -> None:
        self._watch = watch
        self._stream = stream if stream is not None else sys.stdout.buffer
        terminal = self._stream.isatty()
        width = len(str(max(ranks, default=0)))
        self._filters = {rank: TerminalFilter() for rank in ranks} if terminal else {}
        self._prefixers = {
            rank: Prefixer(_prefix(rank, width, colour=terminal and "NO_COLOR" not in os.environ)) for rank in ranks
        }
        if len(ranks) <= 1:
            self._prefixers = {}
        self._files: dict[int, BinaryIO] = {}
        if directory is not None:
            log_folder(directory)
            self._files = {rank: (directory / f"rank-{rank}.log").open("wb") for rank in ranks}

    def write(self, rank: int, data: bytes) -> None:
        """A piece of a rank's log; returns when it is written (a slow reader slows the stream, never the job)."""
        if self._watch is not None and rank == 0:
            self._watch(data)
        if rank in self._files:
            self._files[rank].write(data)
        if rank in self._filters:
            data = self._filters[rank].feed(data)
        if rank in self._prefixers:
            data = self._prefixers[rank].feed(data)
        self._emit(data)

    def flush(self, rank: int) -> None:
        """The rank's stream has ended."""
        data = self._filters[rank].flush() if rank in self._filters else b""
        if rank in self._prefixers:
            data = (self._prefixers[rank].feed(data) if data else b"") + self._prefixers[rank].flush()
        self._emit(data)

    def close(self) -> None:
        """Close the files; the stream stays open."""
        for file in self._files.values():
            file.close()

    def _emit(self, data: bytes) -> None:
        if data:
            self._stream.write(data)
            self._stream.flush()


def _prefix(rank: int, width: int, *, colour: bool) -> bytes:
    # The form of `srun --label`: tools that read such logs know it.
    text = f"{rank:>{width}}: "
    return (f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m{text}\x1b[0m" if colour else text).encode()
