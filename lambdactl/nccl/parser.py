"""nccl-tests output of any version and any wrapping -> `Result`, as a stream.

Memory is flat: of a log only the rows, ranks and a few messages are kept, each up to a limit. Speed comes from never
looking at a line that cannot matter: each chunk is searched for a few literals, and only the lines with hits are read.
The format is that of nccl-tests' src/util.cu and src/common.cu, versions 2.0 to 2.20.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from lambdactl.nccl.errors import NcclOutputError
from lambdactl.nccl.headers import Headers
from lambdactl.nccl.lines import before_message, strip_prefixes
from lambdactl.nccl.model import Result, Table, Transports
from lambdactl.nccl.rows import TYPES, consistent, looks_like_row, parse_row

MAX_ROWS = 65_536
MAX_TABLES = 4_096
_CHUNK = 1 << 20
_MAX_LINE = 1 << 16
_PIECES = 256  # lines of NCCL that may stand inside one torn row
_SGR = re.compile(rb"\x1b\[[0-9;:]*[A-Za-z]")
_TYPE_WORDS = tuple(b" " + name for name in sorted({t[:4].encode() for t in TYPES}))
_ROW_HIT = re.compile(rb"\d[ \t]+\d+[ \t]+(?:%s)[ \t]" % b"|".join(t.encode() for t in TYPES))
_WORDS = (
    b"nccl-tests version", b"all_reduce_cpu version", b"Collective test ", b"nThread", b" Pid ",
    b"Out of bounds values", b"Avg bus bandwidth", b"Reducing maxBytes", b"JSON output", b"json output",
    b"Test CUDA failure", b"Test NCCL failure", b"Test timeout", b"Invalid number of GPUs", b"invalid size",
    b"invalid option '", b"# error: ", b"algbw   busbw", b"Incompatible NCCL",
)  # fmt: skip
_LIBRARY = re.compile(rb"NCCL version (\d[\w.+-]{0,40})")
_USING = re.compile(rb"Using network ([\w/ .-]{1,40})")
_JSON_REPORT = re.compile(
    rb'(?:\xef\xbb\xbf)?\s*\{\s*(?:\Z|"(?:version|start_time|end_time|args|env|nccl_version|config|results|errors'
    rb'|out_of_bounds|average_bus_bandwidth)"\s*:)'
)


class Parser:
    """Feed it bytes in pieces of any size, then `close()` gives the result.

    Text only; `parse` and `parse_stream` also recognise JSON reports.
    """

    def __init__(self) -> None:
        self._result = Result()
        self._current: dict[int | None, Table] = {}
        self._headers = Headers(self._result, self._table_for)
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._rows = 0
        self._torn = 0

    def feed(self, data: bytes) -> None:
        """The next piece of the log."""
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= _CHUNK:
            data = b"".join(self._pending)
            end = data.rfind(b"\n") + 1
            if end == 0 and len(data) > _CHUNK + _MAX_LINE:
                end = len(data)  # one line without an end: nothing of nccl-tests
            self._keep(data[end - self._scan(data[:end], last=False) :] if end else data)

    def close(self) -> Result:
        """The end of the log.

        Raises:
            NcclOutputError: nothing of nccl-tests was in it.
        """
        data = b"".join(self._pending)
        self._keep(b"")
        self._scan(data if data.endswith(b"\n") else data + b"\n", last=True)
        result = self._result
        result.tables = [table for table in result.tables if table.rows or table.complete] or result.tables[:1]
        if not (result.tables or result.ranks or result.banners or result.errors):
            raise NcclOutputError(
                "No nccl-tests output found: no table, no heading, no rank line.",
                remedy="Give the standard output of all_reduce_perf or its JSON report (-J).",
            )
        self._add_notes()
        return result

    def _keep(self, data: bytes) -> None:
        self._pending, self._pending_size = ([data] if data else []), 0

    def _table_for(self, source: int | None, *, new: bool = False, fresh: bool = False) -> Table:
        """The source's current table; another one when it is over, or a heading comes after rows (`fresh`)."""
        table = self._current.get(source)
        if table is None or new or (fresh and (table.rows or table.complete)):
            if table is not None and new and not (table.rows or table.complete or table.version or table.collective):
                return table
            table = self._current[source] = Table(source=source)
            if len(self._result.tables) < MAX_TABLES:
                self._result.tables.append(table)
        return table

    def _scan(self, data: bytes, *, last: bool) -> int:
        """Reads whole lines; gives how many bytes at the end must come again because a torn row begins there."""
        if b"\x1b" in data:
            data = _SGR.sub(b"", data)
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._network(data)
        full = self._rows >= MAX_ROWS
        if full:  # no row is looked at any more; most of a log that has so many is rows
            self._result.rows_left_out += sum(1 for _ in _ROW_HIT.finditer(data))
        for start in _hits(data, rows=not full):
            end = data.find(b"\n", start)
            if end - start > _MAX_LINE:
                continue
            source, text = strip_prefixes(data[start:end].decode("utf-8", "replace"))
            if not looks_like_row(text) or b"failure " in data[start:end]:
                self._headers.take(source, text)  # a test that fails prints its message behind a row's first columns
            elif not self._row(source, text, data, end + 1) and not last and len(data) - start < _MAX_LINE:
                return len(data) - start
        return 0

    def _row(self, source: int | None, text: str, data: bytes, following: int) -> bool:
        """Takes a row, or a torn one with its pieces from the lines behind it; False when those are not there yet."""
        if self._rows >= MAX_ROWS:
            self._result.rows_left_out += 1
            return True
        row = parse_row(text)
        if row is None and (head := before_message(text)) is not None:
            for number, piece in enumerate(_lines(data, following)):
                piece_source, piece_text = strip_prefixes(piece)
                if piece_source != source:
                    continue
                if (inner := before_message(piece_text)) is not None:
                    head += inner
                    if number <= _PIECES:
                        continue
                row = parse_row(head + piece_text)
                row = row if row is not None and consistent(row) else None
                break
            else:
                return False
        if row is None:
            self._torn += 1
            return True
        table = self._table_for(source)
        if table.complete:
            table = self._table_for(source, new=True)
        table.rows.append(row)
        self._rows += 1
        return True

    def _network(self, data: bytes) -> None:
        seen = self._result.transports
        if b"via NET/" in data:
            seen.socket += data.count(b"via NET/Socket")
            seen.infiniband += data.count(b"via NET/IB")
            seen.libfabric += data.count(b"via NET/AWS Libfabric") + data.count(b"via NET/Libfabric")
        if b"Using network" in data and len(seen.using) < 8:
            names = (match[1].decode("ascii").strip() for match in _USING.finditer(data))
            seen.using = tuple(dict.fromkeys((*seen.using, *names)))[:8]
        if self._result.nccl_version is None and (match := _LIBRARY.search(data)):
            self._result.nccl_version = match[1].decode("ascii")

    def _add_notes(self) -> None:
        result = self._result
        if self._torn:
            result.notes.append(f"{self._torn} rows are cut off or mixed with other output and were left out")
        if result.rows_left_out:
            result.notes.append(f"{result.rows_left_out} rows beyond the first {MAX_ROWS} were not kept")
        if not any(table.rows for table in result.tables):
            result.notes.append("the output holds no row: the test ended before its first measurement")


def _hits(data: bytes, *, rows: bool) -> list[int]:
    """Where the lines begin that are worth reading, in order; rows only when they are wanted."""
    starts: set[int] = set()
    if rows and any(word in data for word in _TYPE_WORDS):
        starts.update(data.rfind(b"\n", 0, match.start()) + 1 for match in _ROW_HIT.finditer(data))
    for word in _WORDS:
        at = data.find(word)
        while at >= 0:
            starts.add(data.rfind(b"\n", 0, at) + 1)
            end = data.find(b"\n", at)
            at = data.find(word, end) if end >= 0 else -1
    return sorted(starts)


def _lines(data: bytes, start: int) -> Iterable[str]:
    while start < len(data):
        end = data.find(b"\n", start)
        if end < 0:
            return
        yield data[start : min(end, start + _MAX_LINE)].decode("utf-8", "replace")
        start = end + 1


def parse_chunks(chunks: Iterable[bytes]) -> Result:
    """Text output or a JSON report, from pieces of any size.

    Raises:
        NcclOutputError: it is neither.
    """
    from lambdactl.nccl.jsonreport import MAX_REPORT, parse_report

    parser, head, report = Parser(), b"", bytearray()
    undecided, is_report = True, False
    for chunk in chunks:
        if undecided:
            head += chunk
            if len(head) < 64 and (not head.strip() or head.strip().startswith(b"{")):
                continue
            undecided, is_report, chunk = False, _JSON_REPORT.match(head) is not None, head
        if not is_report:
            parser.feed(chunk)
        elif len(report) + len(chunk) > MAX_REPORT:
            raise NcclOutputError(
                f"The JSON report is larger than {MAX_REPORT >> 20} MB.", remedy="Is it one of nccl-tests?"
            )
        else:
            report += chunk
    if undecided:
        is_report = _JSON_REPORT.match(head) is not None
        parser.feed(head)
        report += head
    return parse_report(bytes(report)) if is_report else parser.close()


def parse(data: bytes | str) -> Result:
    """What `parse_chunks` gives, for output that is at hand as a whole."""
    return parse_chunks([data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data])


def parse_stream(stream: BinaryIO) -> Result:
    """What `parse_chunks` gives, read from a binary stream to its end."""
    return parse_chunks(iter(lambda: stream.read(_CHUNK), b""))


def parse_file(path: str | Path) -> Result:
    """What `parse_chunks` gives, for a file; OSError when it cannot be read."""
    with Path(path).open("rb") as stream:
        return parse_stream(stream)


__all__ = ["Parser", "Result", "Transports", "parse", "parse_chunks", "parse_file", "parse_stream"]
