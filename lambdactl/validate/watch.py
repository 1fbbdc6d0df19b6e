"""A run's log on its way to the screen: is it the output of nccl-tests, and what does it say?

The bytes of rank 0 pass through `feed` in chunks. Until a word of nccl-tests is seen that is one search a chunk; behind
the last such word the parser reads on for some megabytes, so that a training job's log costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from lambdactl.nccl.catalogue import Explanation, explain
from lambdactl.nccl.errors import NcclOutputError
from lambdactl.nccl.hardware import Hardware
from lambdactl.nccl.model import Result
from lambdactl.nccl.parser import Parser
from lambdactl.nccl.verdict import Verdict, verdict

TAIL = 64 << 10
_READ_ON = 16 << 20
_MARKS = (b"nccl-tests", b"Using devices", b"busbw", b"Avg bus bandwidth")


class LogWatch:
    """Feed it rank 0's bytes; afterwards `result` is what nccl-tests printed, and `explanations` what went wrong."""

    def __init__(self) -> None:
        self._tail = b""
        self._parser: Parser | None = None
        self._left = 0

    def feed(self, data: bytes) -> None:
        """The next piece of the log."""
        if any(mark in data for mark in _MARKS):
            if self._parser is None:
                self._parser = Parser()
                self._parser.feed(self._tail)
            self._left = _READ_ON
        if self._parser is not None and self._left > 0:
            self._parser.feed(data)
            self._left -= len(data)
        self._tail = (self._tail + data)[-TAIL:] if len(data) < TAIL else data[-TAIL:]

    def result(self) -> Result | None:
        """What was measured; None when the log is not of nccl-tests or holds no row. Ends the watch."""
        parser, self._parser = self._parser, None
        if parser is None:
            return None
        try:
            found = parser.close()
        except NcclOutputError:
            return None
        return found if any(table.rows for table in found.tables) else None

    def explanations(self) -> list[Explanation]:
        """The known causes among the last 64 KB."""
        return explain(self._tail)


def verdict_line(watch: LogWatch, hardware: Hardware | str) -> str | None:
    """The verdict on a log in one line, or why there is none; None when the log is not of nccl-tests.

    Args:
        hardware: what ran, or the clause that says why that is not known.
    """
    result = watch.result()
    if result is None:
        return None
    if isinstance(hardware, str) and not result.cpu:
        return f"no verdict: {hardware}."
    if isinstance(hardware, str):
        hardware = Hardware("CPU", 1, max(1, len(result.hosts)), infiniband=False)
    return _line(verdict(result, hardware))


def _line(found: Verdict) -> str:
    if found.percent is None or found.bound is None:
        return found.sentence
    nic = "" if found.nic_gbps is None else f", {found.nic_gbps:.0f} Gb/s per NIC"
    return f"{found.sentence} {found.percent:.1f} % of the bound {found.bound.busbw:.4g} GB/s{nic}."


def explanation_lines(watch: LogWatch, most: int = 3) -> Iterator[str]:
    """Cause and remedy for a failed run, one line each, the first causes only."""
    for found in watch.explanations()[:most]:
        yield f"cause: {found.cause}"
        yield f"remedy: {found.remedy}"
