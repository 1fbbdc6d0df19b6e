"""The parser reads every layout and wrapping of nccl-tests' text output."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from lambdactl.nccl import parser, stats
from lambdactl.nccl.errors import NcclOutputError
from lambdactl.nccl.model import Result
from lambdactl.nccl.parser import parse, parse_chunks
from tests.data.nccl import samples
from tests.data.nccl.samples import GIB, REFERENCE


def lines(change: Callable[[str], str]) -> bytes:
    return "".join(change(line) + "\n" for line in REFERENCE.decode().splitlines()).encode()


def interleaved(at: int) -> bytes:
    """Every fifth row is cut after `at` characters by messages of other ranks."""
    out = []
    for number, line in enumerate(REFERENCE.decode().splitlines()):
        if number % 5 == 0 and line.startswith(" "):
            info = "gpu-node-2:4011:4077 [3] NCCL INFO Channel 07/0 : 3[3] -> 11[3] [send] via NET/IB/3/GDRDMA\n"
            out.append(f"{line[:at]}{info}{info}{line[at:]}\n")
        else:
            out.append(line + "\n")
    return "".join(out).encode()


VARIANTS = {
    "as dstack prints it": REFERENCE,
    "without '#'": re.sub(rb"(?m)^# ?", b"", REFERENCE),
    "rows alone": b"\n".join(line for line in REFERENCE.splitlines() if not line.startswith(b"#")),
    "carriage returns": REFERENCE.replace(b"\n", b"\r\n"),
    "no newline at the end": REFERENCE.rstrip(),
    "colours": lines(lambda line: f"\x1b[36m{line}\x1b[0m"),
    "srun -l": lines(lambda line: f"0: {line}"),
    "lambdactl --all, padded": lines(lambda line: f"  7: {line}"),
    "lambdactl --all, coloured": lines(lambda line: f"\x1b[33m 0: \x1b[0m{line}"),
    "hydra -l": lines(lambda line: f"[0] {line}"),
    "mpirun 4 --tag-output": lines(lambda line: f"[1,0]<stdout>:{line}"),
    "mpirun 5 --tag-output": lines(lambda line: f"[prterun-gpu-node-1-4711@1,0]<stdout>: {line}"),
    "mpirun --timestamp-output": lines(lambda line: f"Mon Nov 23 08:00:00 2026<stdout>:{line}"),
    "mpirun, both": lines(lambda line: f"Mon Nov 23 08:00:00 2026[1,0]<stdout>:{line}"),
    "kubectl --timestamps": lines(lambda line: f"2026-11-23T08:00:00.123456789Z {line}"),
    "kubectl --prefix": lines(lambda line: f"[pod/nccl-launcher-x7k/main] {line}"),
    "bracketed time": lines(lambda line: f"[2026-11-23 08:00:00] {line}"),
    "journalctl": lines(lambda line: f"Nov 23 08:00:00 gpu-node-1 bash[4711]: {line}"),
    "srun -l in a container's log": lines(lambda line: f"2026-11-23T08:00:00Z 0: {line}"),
    "torn in the time": interleaved(68),
    "torn between columns": interleaved(75),
    "torn in the in-place half": interleaved(110),
}


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS.keys())
def test_reference_sample_in_every_wrapping(text: bytes) -> None:
    result = parse(text)
    rows = list(result.rows())
    assert len(rows) == 29
    assert stats.mean_busbw(rows) == pytest.approx(137.178276, abs=1e-6)
    assert stats.inferred_ranks(rows) == (16, 16)
    assert stats.peak(rows) == stats.Peak(702.91, 2 * GIB, in_place=True)
    assert not result.notes


def test_reference_sample_table() -> None:
    """Every property that is known of the published sample."""
    result = parse(REFERENCE)
    (table,) = result.tables
    rows = table.rows
    assert [row.size for row in rows] == [8 << i for i in range(29)]
    assert all(
        row.count * 4 == row.size and row.type == "float" and row.redop == "sum" and row.root == -1 for row in rows
    )
    assert all(half.wrong == 0 for row in rows for half in row.halves)
    out = [row.out_of_place.busbw or 0 for row in rows if row.out_of_place]
    into = [row.in_place.busbw or 0 for row in rows if row.in_place]
    assert (sum(out), sum(into)) == (pytest.approx(3977.53), pytest.approx(3978.81))
    assert table.average == 137.179
    assert abs((stats.mean_busbw(rows) or 0) - 137.179) <= 0.005
    assert abs((stats.recomputed_mean_busbw(rows, 15 / 8) or 0) - 137.179) <= 0.0006
    means = {GIB: 688.47, GIB // 2: 661.62, GIB // 8: 589.30, GIB // 32: 507.48, 1 << 20: 329.49}
    for size, mean in means.items():
        assert stats.mean_from(rows, size) == pytest.approx(mean, abs=0.005)
    assert [(o.size, o.in_place) for o in stats.outliers(rows)] == [(512 << 10, False)]
    assert stats.smallest_latency(rows) == 35.49
    assert (table.version, table.nccl_headers, table.nccl_library) == ("2.17.6", 22602, 22602)
    assert (table.collective, table.out_of_bounds, table.out_of_bounds_ok) == ("all_reduce_perf", 0, True)
    assert (result.ranks, result.hosts, result.banners) == ([], (), 1)


@pytest.mark.parametrize("flags", [{}, {"stamp": True}, {"iterations": True}, {"iterations": True, "stamp": True}])
def test_column_flags(flags: dict[str, bool]) -> None:
    result = parse(samples.output(**flags))  # type: ignore[arg-type]  # flags of any kind, by name
    rows = list(result.rows())
    assert [row.size for row in rows] == [1 << 20, 256 << 20, GIB, 2 * GIB]
    assert stats.peak(rows) == stats.Peak(702.0, 2 * GIB, in_place=False)
    assert (rows[0].timestamp == "2026-11-23 08:00:00") is flags.get("stamp", False)
    for row in rows:
        for half in row.halves:
            assert (half.iterations is not None) is flags.get("iterations", False)
    if half.iterations:
        assert half.iterations.cv_percent == 3.25
    (table,) = result.tables
    assert table.settings is not None
    assert (table.settings.max_bytes, table.settings.iterations, table.settings.aggregate) == (2 * GIB, 20, 1)
    assert len(result.ranks) == 16
    assert result.hosts == ("gpu-node-1", "gpu-node-2")
    assert result.ranks[9].gpu == "NVIDIA B200"
    assert result.ranks[9].bus_id == "0000:1c:00"


def test_not_checked_and_half_missing() -> None:
    (row, *_) = parse(samples.output(wrong="N/A")).rows()
    assert [half.wrong for half in row.halves] == [None, None]
    only_out = samples.row(GIB, samples.half(GIB, 40.0, 0.875), "      N/A     N/A     N/A     N/A", redop="none")
    (row,) = parse(only_out).rows()
    assert row.in_place is None
    assert row.out_of_place is not None
    only_in = samples.row(GIB, " " * 32, samples.half(GIB, 40.0, 0.875))
    (row,) = parse(only_in).rows()
    assert row.out_of_place is None
    assert row.in_place is not None


def test_old_layouts() -> None:
    result = parse(samples.OLD_LAYOUT)
    rows = list(result.rows())
    assert len(rows) == 2
    assert rows[0].root is None
    assert rows[0].out_of_place is not None
    assert (rows[0].out_of_place.wrong, rows[0].out_of_place.deviation) == (None, 7e-07)
    assert result.hosts == ("gpu-node-1",)
    assert result.ranks[0].bus_id == "0x06"
    assert stats.inferred_ranks(rows) == (8, 8)
    (first, _) = parse(samples.OLD_GATHER).rows()
    assert (first.redop, first.root) == (None, None)
    (broadcast,) = parse(samples.OLD_BROADCAST).rows()
    assert (broadcast.redop, broadcast.root) == (None, 0)


@pytest.mark.parametrize(
    ("token", "wrong", "deviation"),
    [("1e+06", 1_000_000, None), ("0e+00", None, 0.0), ("7e-07", None, 7e-07), ("12", 12, None)],
)
def test_wrong_and_deviation_are_told_apart(token: str, wrong: int | None, deviation: float | None) -> None:
    (row,) = parse(samples.row(GIB, samples.half(GIB, 4.0, 1.0, token), samples.half(GIB, 4.0, 1.0, token))).rows()
    assert row.in_place is not None
    assert (row.in_place.wrong, row.in_place.deviation) == (wrong, deviation)


def test_numbers_without_decimals_and_not_finite() -> None:
    start = "  1073741824     268435456     float     sum      -1"
    line = f"{start}  1.2e+07    0.1  0.15e0       0      inf     nan    -nan    N/A"
    (row,) = parse(line).rows()
    assert row.out_of_place is not None
    assert row.out_of_place.time_us == 1.2e7
    assert row.in_place is not None
    assert (row.in_place.time_us, row.in_place.busbw) == (None, None)


def test_several_tables_of_one_log() -> None:
    text = samples.output() + samples.output(name="all_gather_perf", redop="none") + REFERENCE.decode()
    result = parse(text)
    assert [table.collective for table in result.tables] == ["all_reduce_perf", "all_gather_perf", "all_reduce_perf"]
    assert [len(table.rows) for table in result.tables] == [4, 4, 29]
    assert result.banners == 3


def test_ranks_of_one_log_keep_their_tables_apart() -> None:
    one, two = samples.output(nodes=1), samples.output({GIB: 5.0}, nodes=1)
    mixed = [
        f"{rank}: {line}"
        for pair in zip(one.splitlines(), two.splitlines(), strict=False)
        for rank, line in enumerate(pair)
    ]
    result = parse("\n".join(mixed))
    assert {table.source for table in result.tables} == {0, 1}


def test_banner_with_a_commit() -> None:
    text = samples.output().replace("2.19.6", "2.20.0 (a0b82b2)")
    assert parse(text).tables[0].version == "2.20.0 (a0b82b2)"


def test_cut_off_output() -> None:
    cut = REFERENCE[: REFERENCE.index(b"  1073741824") + 60]
    result = parse(cut)
    assert len(list(result.rows())) == 27
    assert result.notes == ["1 rows are cut off or mixed with other output and were left out"]
    assert not result.tables[0].complete


def test_error_behind_the_first_columns_of_a_row() -> None:
    text = (
        samples.output(footer=False)
        + "           8             2     float     sum      -1gpu-node-1: Test CUDA failure common.cu:253 'x'\n"
    )
    assert parse(text).errors == ["gpu-node-1: Test CUDA failure common.cu:253 'x'"]


def test_other_lines() -> None:
    text = (
        "# Writing JSON output to /tmp/out.json.0\n#\n# Reducing maxBytes to 1073741824 due to memory limitation\n"
        "gpu-node-1:1:2 [0] NCCL INFO Using network IB\nNCCL version 2.26.2+cuda12.8\n"
        "gpu-node-1:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/Socket/0\n" + samples.output()
    )
    result = parse(text)
    assert result.json_paths == ["/tmp/out.json.0"]
    assert result.reduced_max_bytes == GIB
    assert result.nccl_version == "2.26.2+cuda12.8"
    assert (result.transports.socket, result.transports.using) == (1, ("IB",))


def test_cpu_benchmark() -> None:
    result = parse(samples.CPU_BENCHMARK)
    assert result.cpu
    assert result.hosts == ("worker-0", "worker-1")
    assert len(list(result.rows())) == 2


def test_unknown_option_prints_usage_only() -> None:
    result = parse("all_reduce_perf: invalid option -- 'Q'\ninvalid option '?'\nUSAGE: all_reduce_perf \n")
    assert result.errors == ["invalid option '?'"]
    assert list(result.rows()) == []


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"hello\n", b"\x00\xff" * 99, b"{", b"{}", b"[]", b'{"a": 1}', b"\x1b[", b"PNG"]
)
def test_nothing_of_nccl_tests_is_one_clear_error(text: bytes) -> None:
    with pytest.raises(NcclOutputError, match=r"nccl-tests|JSON") as caught:
        parse(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_pieces_of_any_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same result however the stream is cut, also where a chunk ends within a torn row."""
    monkeypatch.setattr(parser, "_CHUNK", 512)
    text = interleaved(75)
    result = parse_chunks(text[i : i + size] for i in range(0, len(text), size))
    assert len(list(result.rows())) == 29


def test_flat_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the log's length, the number of things kept has a limit, and nothing is lost silently."""
    monkeypatch.setattr(parser, "MAX_ROWS", 40)
    monkeypatch.setattr(parser, "MAX_TABLES", 3)
    result = parse_chunks(REFERENCE for _ in range(50))
    assert len(list(result.rows())) == 40
    assert result.rows_left_out == 29 * 50 - 40
    assert "rows beyond the first 40 were not kept" in result.notes[-1]
    assert len(result.tables) <= 3


def test_long_info_log_is_not_kept() -> None:
    info = b"gpu-node-1:12345:12400 [3] NCCL INFO Channel 07/0 : 3[3] -> 11[3] [send] via NET/IB/3/GDRDMA\n" * 5000
    whole = parse_chunks([REFERENCE[:1500], *[info] * 8, b"\n"])
    assert isinstance(whole, Result)
    assert whole.transports.infiniband == 40_000
    machine = parser.Parser()
    for _ in range(8):
        machine.feed(info)
    assert machine._pending_size < 2 * len(info) + parser._CHUNK
