"""Whatever the input, the library gives a result or its one error."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from lambdactl.nccl import render
from lambdactl.nccl.catalogue import explain
from lambdactl.nccl.errors import NcclOutputError
from lambdactl.nccl.hardware import Hardware
from lambdactl.nccl.parser import parse, parse_chunks
from lambdactl.nccl.verdict import verdict
from tests.data.nccl import samples

TEXT = samples.output().encode()
PIECES = [
    *TEXT.splitlines(keepends=True)[:12], *samples.REFERENCE.splitlines(keepends=True)[-6:],
    b"gpu-node-1:1:2 [0] NCCL INFO via NET/Socket\n", b"0: ", b"[1,0]<stdout>:", b"\x1b[31m", b"\r", b"N/A", b"nan ",
    b"1e999 ", b"9" * 400, b"\xff\xfe", b"\x00", b'{"results":[', b'"env":["A=B"],', b"Test NCCL failure ", b"\n",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=10,
)


def check(data: bytes) -> None:
    try:
        result = parse(data)
    except NcclOutputError:
        return
    judged = verdict(result, Hardware("B200", 8, 2, 8, 400))
    assert judged.reasons
    json.dumps(render.result_json(result), allow_nan=False)
    json.dumps(judged.as_json(), allow_nan=False)
    render.result_csv(result).encode()
    "\n".join((*render.table_text(result), *render.verdict_text(judged))).encode()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    check(data)
    explain(data)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=30))
def test_any_order_of_what_such_logs_hold(pieces: list[bytes]) -> None:
    check(b"".join(pieces))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(TEXT)), st.integers(0, 40), st.binary(max_size=20))
def test_damaged_output(at: int, length: int, inserted: bytes) -> None:
    check(TEXT[:at] + inserted + TEXT[at + length :])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(list(samples.report())), JSON, max_size=6))
def test_reports_with_any_values(values: dict[str, object]) -> None:
    check(json.dumps(samples.report(**values)).encode())


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["size", "count", "type", "redop", "root", "out_of_place", "in_place"]), JSON))
def test_results_with_any_values(values: dict[str, object]) -> None:
    check(json.dumps(samples.report([samples.result(1 << 30, 361.0) | values])).encode())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_the_same_however_it_is_cut(cuts: list[int]) -> None:
    chunks, rest = [], TEXT
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert parse_chunks([*chunks, rest]) == parse(TEXT)
