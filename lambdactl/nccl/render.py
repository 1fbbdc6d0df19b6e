"""Results and verdicts as fixed-width text, JSON and CSV. Nothing of a report's environment is in what comes here."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lambdactl.nccl import stats
from lambdactl.nccl.model import Half, IterationStats, Result, Row, Table

if TYPE_CHECKING:
    from lambdactl.nccl.catalogue import Explanation
    from lambdactl.nccl.verdict import Verdict

_COLUMNS = (
    "table", "collective", "size", "count", "type", "redop", "root",
    "out_time_us", "out_algbw", "out_busbw", "out_wrong", "in_time_us", "in_algbw", "in_busbw", "in_wrong", "timestamp",
)  # fmt: skip
_HEADING = (
    f"{'size':>14} {'type':>8} {'redop':>6} {'out us':>10} {'algbw':>8} {'busbw':>8} {'wrong':>7}"
    f" {'in us':>10} {'algbw':>8} {'busbw':>8} {'wrong':>7}"
)


def table_text(result: Result) -> Iterator[str]:
    """The result as lines for people: what ran, the rows, what to make of them."""
    for number, table in enumerate(result.tables, 1):
        if number > 1:
            yield ""
        yield _title(table, result)
        if table.rows:
            yield _HEADING
            yield from (_row_text(row) for row in table.rows)
        yield from _summary(table, result)


def _title(table: Table, result: Result) -> str:
    name = table.collective or ("all_reduce_cpu" if result.cpu else "nccl-tests")
    parts = [name + (f" of rank {table.source}" if table.source is not None else "")]
    if table.version:
        parts.append(f"tests {table.version}")
    if table.nccl_library:
        parts.append(f"NCCL {table.nccl_library}")
    if result.ranks:
        parts.append(f"{len({r.rank for r in result.ranks})} ranks on {len(result.hosts)} hosts")
    return ", ".join(parts)


def _row_text(row: Row) -> str:
    return f"{row.size:>14} {row.type:>8} {row.redop or '-':>6}{_half_text(row.out_of_place)}{_half_text(row.in_place)}"


def _half_text(half: Half | None) -> str:
    if half is None:
        return f" {'N/A':>10} {'N/A':>8} {'N/A':>8} {'N/A':>7}"
    values = "".join(
        f" {'N/A' if v is None else f'{v:.2f}':>{w}}" for v, w in ((half.time_us, 10), (half.algbw, 8), (half.busbw, 8))
    )
    return f"{values} {'N/A' if half.wrong is None else half.wrong:>7}"


def _summary(table: Table, result: Result) -> Iterator[str]:
    found = summary(table.rows)
    if found["peak"]:
        half = "in-place" if found["peak"]["in_place"] else "out-of-place"
        yield f"peak busbw {found['peak']['busbw']:.2f} GB/s ({half}, {found['peak']['size']} bytes)"
        yield f"mean busbw {found['mean_busbw']:.3f} GB/s over all {found['cells']} cells (says nothing about the link)"
    if not result.ranks and (ranks := found["ranks_inferred"]):
        fewest, most = ranks
        yield "ranks inferred from busbw/algbw: " + (
            str(fewest) if fewest == most else f"{fewest} to {most or 'any number'}"
        )
    if table.out_of_bounds is not None:
        yield f"out of bounds values: {table.out_of_bounds}{'' if table.out_of_bounds_ok else ' FAILED'}"


def summary(rows: list[Row]) -> dict[str, Any]:
    """The figures of one table."""
    best = stats.peak(rows)
    all_reduce = bool(rows) and all(row.redop not in (None, "none") for row in rows)
    return {
        "rows": len(rows),
        "cells": sum(half.busbw is not None for row in rows for half in row.halves),
        "mean_busbw": stats.mean_busbw(rows),
        "peak": asdict(best) if best else None,
        "smallest_latency_us": stats.smallest_latency(rows),
        "ranks_inferred": stats.inferred_ranks(rows) if all_reduce else None,
        "outliers": [asdict(outlier) for outlier in stats.outliers(rows)],
    }


def result_json(result: Result) -> dict[str, Any]:
    """The whole result, with each table's figures."""
    document = asdict(replace(result, tables=[replace(table, rows=[]) for table in result.tables]))
    for item, table in zip(document["tables"], result.tables, strict=True):
        item["rows"] = [_row_json(row) for row in table.rows]
        item["summary"] = summary(table.rows)
    document["hosts"] = list(result.hosts)
    document["units"] = {"bandwidth": "GB/s (10^9 bytes)", "time": "us", "size": "bytes"}
    return document


def _row_json(row: Row) -> dict[str, Any]:
    """What asdict gives, without its copy of each single value: there may be 65,536 rows."""
    return {**_values(row), "out_of_place": _half_json(row.out_of_place), "in_place": _half_json(row.in_place)}


def _half_json(half: Half | None) -> dict[str, Any] | None:
    if half is None:
        return None
    return {**_values(half), "iterations": _values(half.iterations) if half.iterations is not None else None}


def _values(record: Row | Half | IterationStats) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def result_csv(result: Result) -> str:
    """One line a row, with a heading line; empty where nothing was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_csv_rows(result.tables))
    return out.getvalue()


def _csv_rows(tables: Iterable[Table]) -> Iterator[list[object]]:
    for number, table in enumerate(tables):
        for row in table.rows:
            cells: list[object] = [number, table.collective, row.size, row.count, row.type, row.redop, row.root]
            for half in (row.out_of_place, row.in_place):
                cells += [half.time_us, half.algbw, half.busbw, half.wrong] if half else [None] * 4
            yield [*cells, row.timestamp]


def verdict_text(found: Verdict) -> Iterator[str]:
    """The verdict as lines for people, the sentence first."""
    yield found.sentence
    yield from (f"  also: {reason}" for reason in found.reasons[1:])
    for label, value in _verdict_lines(found):
        yield f"{label + ':':<14}{value}"


def _verdict_lines(found: Verdict) -> Iterator[tuple[str, str]]:
    if found.measured is not None:
        yield "measured", f"{found.measured:.2f} GB/s busbw, best at >= 1 GiB ({found.size} bytes)"
    if found.bound is not None:
        share = f", {found.percent:.1f} % reached" if found.percent is not None else ""
        yield "bound", f"{found.bound.busbw:.4g} GB/s{share}: {found.bound.reason}"
    if found.nic_gbps is not None:
        yield "per NIC", f"{found.nic_gbps:.0f} Gb/s of {found.hardware.nic_gbps:g}"
    if (limits := found.thresholds) is not None:
        target = "" if limits.target is None else f", target {limits.target:.4g} ({limits.target_reason})"
        yield "thresholds", f"floor {limits.floor:.4g} ({limits.floor_reason}){target}"
    who = found.participation
    yield "hosts", f"{'not proven' if who.hosts_seen is None else who.hosts_seen} of {who.hosts_asked}"
    by = f" (by {who.ranks_by})" if who.ranks_by else ""
    yield "ranks", f"{'not proven' if who.ranks_seen is None else who.ranks_seen} of {who.ranks_asked}{by}"
    yield from (("published", row.text) for row in found.neighbours)
    yield from (("note", note) for note in found.notes)


def verdict_json(found: Verdict) -> dict[str, Any]:
    """The verdict with all that it rests on."""
    document = asdict(found)
    document["status"] = str(found.status)
    document["units"] = {"bandwidth": "GB/s (10^9 bytes) of busbw", "nic_gbps": "Gb/s", "size": "bytes"}
    return document


def explanation_text(found: Explanation) -> Iterator[str]:
    """A cause and its remedy as lines for people, wrapped at 100 columns."""
    times = f" ({found.count} lines)" if found.count > 1 else ""
    yield f"{found.area}: {found.line}{times}"
    for label, text in (("cause", found.cause), ("remedy", found.remedy), ("source", found.source)):
        yield from textwrap.wrap(
            f"{label + ':':<8}{text}", 100, initial_indent="  ", subsequent_indent=" " * 10,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
