"""The verdict: bounds, the rule against published results, proof of participation, and what gets no verdict."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lambdactl.errors import SpecError
from lambdactl.nccl import bounds, stats
from lambdactl.nccl.baselines import Baseline, baselines, neighbours
from lambdactl.nccl.hardware import Hardware, gpu_model
from lambdactl.nccl.parser import parse
from lambdactl.nccl.verdict import Status, judge, verdict
from tests.data.nccl import samples
from tests.data.nccl.samples import GIB, REFERENCE, output

PAIR = Hardware("B200", 8, 2, 8, 400)


def b200(busbw: float, **more: object) -> str:
    return output({GIB: busbw * 0.97, 2 * GIB: busbw}, **more)  # type: ignore[arg-type]  # a row of any kind, by name


@pytest.mark.parametrize(
    ("nodes", "bound"), [(2, 750), (3, 575), (4, 516.7), (8, 450), (16, 423), (32, 411), (4096, 400)]
)
def test_hierarchical_bound(nodes: int, bound: float) -> None:
    assert bounds.hierarchical(replace(PAIR, nodes=nodes)) == pytest.approx(bound, abs=0.6)


def test_other_bounds() -> None:
    assert bounds.ring(PAIR) == 400
    assert bounds.hierarchical(replace(PAIR, nic_gbps=800)) == 1500
    assert bounds.in_network(replace(PAIR, nodes=64)) == pytest.approx(800, abs=2)


@pytest.mark.parametrize(
    ("hardware", "floor", "target"),
    [
        (PAIR, 360, 637.5),
        (Hardware("H100", 8, 2, 8, 400), 360, 406.3),
        (Hardware("H200", 8, 2, 8, 400), 360, 409.7),
        (Hardware("A100", 8, 2, 16, 100), 180, 199.75),
        (Hardware("A100", 8, 4, 8, 200), 180, 184),
        (Hardware("A100", 8, 2, 4, 100), 45, 79.7),
        (Hardware("B200", 8, 4, 8, 400), 360, 368),
        (Hardware("B200", 8, 2, 8, 800), 720, 720),
        (Hardware("B200", 8, 2, 8, 400, "ring"), 360, 368),
        (Hardware("A100", 8, 1), 205, None), (Hardware("H100", 8, 1), 430, None),
        (Hardware("H200", 8, 1), 430, None), (Hardware("B200", 8, 1), 700, None),
    ],
)  # fmt: skip
def test_thresholds(hardware: Hardware, floor: float, target: float | None) -> None:
    model = gpu_model(hardware.gpu)
    assert model is not None
    found = bounds.thresholds(hardware, model)
    assert found is not None
    assert (found.floor, found.target) == (pytest.approx(floor, abs=0.1), target and pytest.approx(target, abs=0.1))


def test_every_baseline_is_complete() -> None:
    rows = baselines()
    assert len(rows) >= 30
    for row in rows:
        assert row.source, row
        assert row.kind in ("measured", "threshold", "rule-of-thumb"), row
        assert row.expect in ("PASS", "WARN", "none"), row
        assert 0 < row.low <= row.high < 2000, row
        assert row.algorithm in ("default", "ring"), row
        assert row.size is None or re.fullmatch(r"\d+[MG](-\d+G)?", row.size), row
        assert (row.nics is None) == (row.nic_gbps is None), row
        if row.expect != "none":
            assert row.kind == "measured", row
            assert gpu_model(row.gpu) is not None, row


@pytest.mark.parametrize("row", [r for r in baselines() if r.expect != "none"], ids=lambda row: row.text[:60])
def test_rule_against_every_published_result(row: Baseline) -> None:
    """No published healthy result fails, and those known to be slow warn."""
    hardware = Hardware(row.gpu, row.gpus_per_node, row.nodes, row.nics, row.nic_gbps, row.algorithm)
    model = gpu_model(row.gpu)
    assert model is not None
    for busbw in (row.low, row.high):
        assert judge(busbw, hardware, model)[0] == row.expect
        bound = bounds.bound_for(hardware, model, busbw)
        assert bound is not None, "a published result exceeds the bound"
        assert busbw <= bound.busbw * 1.02


def test_reference_sample() -> None:
    found = verdict(parse(REFERENCE), PAIR)
    assert found.status is Status.PASS
    assert (found.measured, found.size) == (702.91, 2 * GIB)
    assert found.bound is not None
    assert (found.bound.busbw, found.bound.algorithm) == (750, "hierarchical")
    assert found.percent == pytest.approx(93.7, abs=0.05)
    assert found.nic_gbps == pytest.approx(375, abs=0.5)
    assert found.participation.ranks_seen == 16
    assert found.participation.hosts_seen is None
    assert any("outlier: 524288 bytes out-of-place" in note for note in found.notes)
    assert {row.nodes for row in found.neighbours[:3]} == {2}
    assert all("http" in row.source for row in found.neighbours)


@pytest.mark.parametrize(
    ("busbw", "status"), [(703, "PASS"), (468, "WARN"), (200, "FAIL"), (360, "WARN"), (359, "FAIL")]
)
def test_statuses(busbw: float, status: str) -> None:
    found = verdict(parse(b200(busbw)), PAIR)
    assert found.status == status
    assert f"{busbw} GB/s" in found.reasons[0]
    assert found.sentence.startswith(f"{status}: ")


@pytest.mark.parametrize(
    ("text", "hardware", "reason"),
    [
        (b200(703, gpu="NVIDIA L40S"), replace(PAIR, gpu="L40S"), "no rule is proven for the GPU 'L40S'"),
        (b200(703), replace(PAIR, gpu="GB200"), "no rule is proven for the GPU 'GB200'"),
        (b200(703), replace(PAIR, gpu="NVIDIA H100 PCIe"), "no rule is proven"),
        (b200(703, nodes=4, gpus=4), replace(PAIR, gpus_per_node=4, nodes=4), "no rule is proven for 4 GPUs a node"),
        (b200(703), replace(PAIR, nics=None), "number of NICs"),
        (b200(703), replace(PAIR, gpu="H100"), "the rank lines name 'NVIDIA B200', not 'H100'"),
        (b200(703), replace(PAIR, nic_gbps=200), "more than this hardware can give"),
        (b200(703, name="all_gather_perf", redop="none"), PAIR, "this is all_gather_perf"),
        (b200(703, group=1), PAIR, "split into groups"),
        (output(nodes=4), PAIR, "4 hosts took part where 2 were given"),
        (output({1 << 20: 17.0, 512 << 20: 619.0}), PAIR, "no size of at least 1 GiB"),
        (output({GIB: 677.0}), PAIR, "only one size of at least 1 GiB"),
        (output({GIB: 300.0, 2 * GIB: 340.0}), PAIR, "still rises"),
        (samples.CPU_BENCHMARK, Hardware("B200", 1, 2, 8, 400), "CPU benchmark"),
        (samples.OLD_GATHER, Hardware("A100", 8, 2, 8, 200), "another collective"),
        (b200(682, nodes=1), Hardware("B200", 8, 1, algorithm="ring"), "no threshold is published"),
    ],
)
def test_no_verdict_rather_than_a_guess(text: str, hardware: Hardware, reason: str) -> None:
    found = verdict(parse(text), hardware)
    assert found.status is Status.NONE
    assert reason in found.reasons[0]


SINGLE = "".join(output({GIB: 0.0, 2 * GIB: 0.0}, nodes=1, gpus=1) for _ in range(16))
SOCKET = "gpu-node-1:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/Socket/0\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b200(838, nodes=1), "a single-node run: 1 of 2 hosts took part (gpu-node-1)"),
        (b200(703, ranks=12), "12 of 16 ranks took part (by rank lines)"),
        (re.sub(r"(?m)^#.*\n", "", b200(838, nodes=1)), "8 of 16 ranks took part (by busbw/algbw)"),
        (SINGLE, "16 processes each ran a test of one rank"),
        (re.sub(r"(?m)^#.*\n", "", SINGLE), "busbw is 0 at every size"),
        (b200(703, wrong="3"), "wrong results: 3 wrong elements at 1073741824 bytes"),
        (SOCKET + b200(703), "TCP was used where InfiniBand is there: 1 channels went via NET/Socket"),
        ("gpu-node-1:1:2 [0] NCCL INFO Using network Socket\n" + b200(703), "NCCL says: Using network Socket"),
        (b200(703) + "gpu-node-1: Test NCCL failure common.cu:9 'unhandled system error / '\n", "reported an error"),
        ("# nccl-tests version 2.19.6 nccl-headers=22807 nccl-library=22807\n", "without a single measurement"),
        (output({GIB: 300.0, 2 * GIB: 200.0}), "below the floor"),
    ],
)  # fmt: skip
def test_failures(text: str, reason: str) -> None:
    found = verdict(parse(text), PAIR)
    assert found.status is Status.FAIL
    assert any(reason in item for item in found.reasons), found.reasons


def test_tcp_is_no_fault_where_there_is_no_rdma() -> None:
    assert verdict(parse(SOCKET + b200(703)), replace(PAIR, infiniband=False)).status is Status.PASS


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b200(703, footer=False), "cut off"), (output({GIB: 740.0, 2 * GIB: 650.0}), "unstable: no two sizes")],
)
def test_doubts_turn_a_pass_into_a_warning(text: str, reason: str) -> None:
    found = verdict(parse(text), PAIR)
    assert found.status is Status.WARN
    assert reason in found.reasons[0]


def test_bound_follows_the_algorithm_in_use() -> None:
    four = replace(PAIR, nodes=4)
    for busbw, algorithm, nic in ((382, "ring", 382), (470, "hierarchical", 364), (740, "in-network", 382)):
        found = verdict(parse(b200(busbw, nodes=4)), four)
        assert found.status is Status.PASS
        assert found.bound is not None
        assert found.bound.algorithm == algorithm
        assert found.nic_gbps == pytest.approx(nic, abs=1)


def test_one_node() -> None:
    found = verdict(parse(b200(838, nodes=1)), Hardware("B200", 8, 1))
    assert (found.status, found.nic_gbps) == (Status.PASS, None)
    assert verdict(parse(b200(650, nodes=1)), Hardware("B200", 8, 1)).status is Status.FAIL


@pytest.mark.parametrize(("ranks", "algbw"), [(2, 40.0), (8, 300.0), (16, 371.23), (32, 200.0), (64, 198.7)])
def test_ranks_by_the_figures(ranks: int, algbw: float) -> None:
    factor = 2 * (ranks - 1) / ranks
    rows = parse(output({GIB: algbw * factor, 2 * GIB: algbw * 1.07 * factor}, nodes=1, gpus=ranks)).rows()
    found = stats.inferred_ranks(rows)
    assert found is not None
    assert found[0] <= ranks <= (found[1] or ranks)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("B200", "B200"), ("b200", "B200"), ("NVIDIA B200", "B200"), ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA H200", "H200"), ("GB200", None), ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-PCIE-40GB", None), ("NVIDIA H100 NVL", None), ("H1000", None), ("", None), ("B300", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)  # fmt: skip
def test_gpu_names(name: str, model: str | None) -> None:
    found = gpu_model(name)
    assert (found.name if found else None) == model


def test_neighbours_of_unknown_hardware() -> None:
    assert [row.gpu for row in neighbours(Hardware("GB200", 4, 18))] == ["GB200"] * 4


@pytest.mark.parametrize("values", [(0, 2, 8, 400.0), (8, -1, 8, 400.0), (8, 2, 0, 400.0), (8, 2, 8, float("nan"))])
def test_impossible_hardware(values: tuple[int, int, int, float]) -> None:
    gpus, nodes, nics, rate = values
    with pytest.raises(SpecError, match="must be between"):
        Hardware("B200", gpus, nodes, nics, rate)
