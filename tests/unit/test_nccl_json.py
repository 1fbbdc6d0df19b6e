"""JSON reports of nccl-tests: every format, cut off, with infinities; secrets never come out again."""

from __future__ import annotations

import json

import pytest

from lambdactl.nccl import render
from lambdactl.nccl.catalogue import explain
from lambdactl.nccl.errors import NcclOutputError
from lambdactl.nccl.hardware import Hardware
from lambdactl.nccl.parser import parse, parse_chunks
from lambdactl.nccl.verdict import Status, verdict
from tests.data.nccl.samples import GIB, report, result

PAIR = Hardware("B200", 8, 2, 8, 400)


def whole() -> str:
    return json.dumps(report())


def test_report() -> None:
    found = parse(whole())
    assert (found.format, found.report_format) == ("json", 3)
    (table,) = found.tables
    assert (table.collective, table.average, table.average_ok, table.complete) == (
        "all_reduce_perf",
        689.0625,
        None,
        True,
    )
    assert [row.size for row in table.rows] == [GIB, 2 * GIB]
    assert table.rows[0].root == -1
    assert table.rows[0].in_place is not None
    assert table.rows[0].in_place.wrong == 0
    assert found.hosts == ("gpu-node-1", "gpu-node-2")
    assert table.settings is not None
    assert (table.settings.step, table.settings.step_kind) == (2, "factor")
    assert verdict(found, PAIR).status is Status.PASS


@pytest.mark.parametrize("number", [1, 2, 3])
def test_formats(number: int) -> None:
    row = result(GIB, 361.0)
    if number >= 2:
        per_iteration = {"min_us": 1.0, "max_us": 3.0, "p99_us": 3.0, "cv_pct": 6.5, "times_us": [1.0]}
        row |= {"out_of_place_per_iter": per_iteration}
    (parsed,) = parse(json.dumps(report([row], version=number))).rows()
    assert parsed.out_of_place is not None
    assert (parsed.out_of_place.iterations is not None) is (number >= 2)


def test_not_checked_not_finite_and_missing_half() -> None:
    row = result(GIB, 361.0)
    row["out_of_place"] = None
    row["in_place"] = {"time": 1.0, "alg_bw": "nan", "bus_bw": 5.5, "nwrong": None}
    text = json.dumps(report([row])).replace("5.5", "inf").replace('"time": 1.0', '"cpu_time": -inf')
    found = parse(text)
    assert list(found.rows()) == []
    assert found.notes[0] == "1 results of the JSON report are incomplete and were left out"
    (row_2,) = parse(json.dumps(report([result(GIB, 2.0)])).replace('"bus_bw": 3.75', '"bus_bw": inf')).rows()
    assert row_2.in_place is not None
    assert (row_2.in_place.algbw, row_2.in_place.busbw) == (2.0, None)


def test_pretty_printed_and_with_byte_order_mark() -> None:
    assert len(list(parse("\ufeff" + json.dumps(report(), indent=4)).rows())) == 2
    assert len(list(parse_chunks(bytes([b]) for b in whole().encode()).rows())) == 2


def test_cut_off_anywhere_keeps_what_was_complete() -> None:
    text = whole()
    assert len(list(parse(text[: text.index('"out_of_bounds"')]).rows())) == 2
    second = text.index('"size"', text.index('"size"') + 1)
    found = parse(text[: second + 30])
    assert len(list(found.rows())) == 1
    assert "cut off" in found.notes[0]
    for end in range(2, len(text), 97):
        try:
            parse(text[:end])
        except NcclOutputError:
            continue


def test_devices_of_processes_with_several_gpus() -> None:
    """With -g 8 the report lists the first device of each process only."""
    document = report()
    config = document["config"]
    assert isinstance(config, dict)
    config |= {"ngpus": 8, "devices": [config["devices"][0], config["devices"][8]]}
    assert verdict(parse(json.dumps(document)), PAIR).participation.ranks_seen == 16


def test_secrets_never_come_out() -> None:
    for text in (whole(), whole()[:-40], "log\n" + whole() + "\nDuplicate GPU detected : A_TOKEN=PLANTED\n"):
        outputs = [repr(explain(text))]
        try:
            found = parse(text)
        except NcclOutputError as error:
            outputs.append(str(error))
        else:
            judged = verdict(found, PAIR)
            outputs += [
                repr(found), json.dumps(render.result_json(found)), render.result_csv(found),
                "\n".join(render.table_text(found)), "\n".join(render.verdict_text(judged)),
                json.dumps(judged.as_json()),
            ]  # fmt: skip
        assert not [output for output in outputs if "PLANTED" in output]


def test_secret_beside_a_message_in_the_environment() -> None:
    env = ["A=Duplicate GPU detected", "MY_PRIVATE=PLANTED"]
    assert "PLANTED" not in repr(explain(json.dumps(report(env=env))))


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 3, "results": 5}', '{"version": ' + "9" * 5000 + "}", '{"results": ' + "[" * 50_000,
        '{"env": ["A=1"]}', '{"version": 1, "start_time": "x"', '{"results": {}}',
    ],
)  # fmt: skip
def test_documents_that_are_no_report(text: str) -> None:
    with pytest.raises(NcclOutputError, match="JSON"):
        parse(text)
