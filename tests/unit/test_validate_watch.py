"""The verdict and the causes from a log that passes by, and the hardware from the nodes' facts."""

from __future__ import annotations

from typing import Any

import pytest

from lambdactl.fleet.facts import NodeFacts
from lambdactl.nccl.hardware import Hardware
from lambdactl.validate.hardware import Network, hardware, network
from lambdactl.validate.watch import TAIL, LogWatch, explanation_lines, verdict_line
from tests.data.nccl.samples import REFERENCE, output

B200 = Hardware("NVIDIA B200", 8, 2, 8, 400)
FAILED = b"worker-1: NCCL WARN Call to ibv_modify_qp failed with error Connection timed out\n"


def port(
    device: str = "mlx5_1", *, state: str = "ACTIVE", layer: str = "InfiniBand", rate: float = 400
) -> dict[str, Any]:
    return {"device": device, "port": 1, "state": state, "link_layer": layer, "rate_gbps": rate}


def facts(*ports: dict[str, Any], gpus: int = 8, gpu: str = "NVIDIA B200") -> NodeFacts:
    return NodeFacts.from_probe({"gpus": [{"index": i, "name": gpu} for i in range(gpus)], "infiniband": list(ports)})


ONE_CC = (port("mlx5_0", layer="Ethernet", rate=100), *(port(f"mlx5_{n}") for n in range(1, 9)))


@pytest.mark.parametrize("piece", [7, 1000, 1 << 20])
def test_the_reference_log_is_judged_however_it_arrives(piece: int) -> None:
    watch = LogWatch()
    log = b"mpirun: starting\n" * 10 + REFERENCE
    for start in range(0, len(log), piece):
        watch.feed(log[start : start + piece])
    line = verdict_line(watch, B200) or ""
    assert line.startswith("PASS: 702.9 GB/s reaches the target")
    assert line.endswith("93.7 % of the bound 750 GB/s, 375 Gb/s per NIC.")


@pytest.mark.parametrize("log", [b"", b"epoch 1\nepoch 2\n" * 1000, b"nccl-tests will run later\n"])
def test_another_log_gets_no_line(log: bytes) -> None:
    watch = LogWatch()
    watch.feed(log)
    assert verdict_line(watch, B200) is None


def test_behind_the_test_a_long_log_is_not_read() -> None:
    watch = LogWatch()
    watch.feed(REFERENCE)
    for _ in range(40):
        watch.feed(b"a training step\n" * 65536)
    assert watch._left <= 0
    assert (verdict_line(watch, B200) or "").startswith("PASS")


def test_unknown_hardware_says_why() -> None:
    watch = LogWatch()
    watch.feed(output().encode())
    assert verdict_line(watch, "the nodes have unlike GPUs") == "no verdict: the nodes have unlike GPUs."


def test_a_failed_run_is_explained_from_its_last_64_kb() -> None:
    watch = LogWatch()
    watch.feed(FAILED)
    watch.feed(b"x" * 100 + b"\n")
    lines = list(explanation_lines(watch))
    assert [line.partition(":")[0] for line in lines] == ["cause", "remedy"]
    watch.feed(b"y\n" * TAIL)
    assert list(explanation_lines(watch)) == []


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ((), None),
        (ONE_CC, Network(8, 400)),
        ((port(layer="Ethernet", rate=200), port("mlx5_2", layer="Ethernet", rate=200)), Network(2, 200)),
        ((port(state="DOWN"), port("mlx5_2")), Network(1, 400)),
        ((port(layer="Ethernet", rate=25),), None),
    ],
)
def test_the_network_of_a_node(ports: tuple[dict[str, Any], ...], expected: Network | None) -> None:
    assert network(facts(*ports)) == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([facts(*ONE_CC)] * 2, Hardware("NVIDIA B200", 8, 2, 8, 400)),
        ([facts()], Hardware("NVIDIA B200", 8, 1, infiniband=False)),
        ([facts(gpus=0)], "the nodes have no GPUs"),
        ([facts(), facts(gpus=7)], "the nodes have unlike GPUs (7 x NVIDIA B200 and 8 x NVIDIA B200)"),
        ([facts(*ONE_CC), facts(*ONE_CC[:-1])], "the nodes have unlike networks: not all have the same number"),
    ],
)
def test_the_hardware_of_nodes(nodes: list[NodeFacts], expected: Hardware | str) -> None:
    found = hardware(nodes)
    assert found.startswith(expected) if isinstance(expected, str) and isinstance(found, str) else found == expected


def test_the_user_may_state_the_network() -> None:
    assert hardware([facts()] * 2, given=Network(8, 400)) == Hardware("NVIDIA B200", 8, 2, 8, 400)
