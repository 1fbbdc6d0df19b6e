"""utilization_policy on a node: the window by a fake clock, and a run that is stopped, with the fake nvidia-smi."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl.node.errors import NodeError
from lambdactl.node.utilization import Policy, Window, read
from tests.unit.node_bed import PYTHONS, Bed, Refused

FAKE = Path(__file__).resolve().parents[1] / "fakes" / "nvidia-smi"


def test_a_gpu_that_idles_for_the_whole_window_ends_the_run() -> None:
    window = Window(Policy({"min": 10, "window": 300}), now=1000.0)
    assert window.add(1000.0, {0: 0, 1: 0}, 100) == []
    assert window.add(1090.0, {0: 10, 1: 9}, 100) == []
    assert window.add(1180.0, {0: 0, 1: 9}, 100) == []
    assert window.add(1270.0, {0: 0, 1: 9}, 100) == []
    assert window.add(1299.0, {0: 0, 1: 0}, 100) == []
    assert window.add(1300.0, {0: 0, 1: 9}, 100) == [1], "any GPU of the run"
    assert window.add(1390.0, {0: 9, 1: 50}, 100) == [0]


def test_without_news_the_window_begins_anew() -> None:
    window = Window(Policy({"min": 10, "window": 300}), now=0.0)
    assert window.add(50.0, {0: 0}, 100) == []
    assert window.add(400.0, {0: 0}, 100) == []
    for now in (490.0, 580.0, 670.0):
        assert window.add(now, {0: 0}, 100) == []
    assert window.add(700.0, {0: 0}, 100) == [0]


def test_what_nvidia_smi_says() -> None:
    assert read(b"0, 97\n1, 0\n2, [N/A]\ngarbage\n") == {0: 97, 1: 0}
    for wrong in ({}, {"min": 101, "window": 1}, {"min": True, "window": 1}, {"min": 1, "window": 0}, []):
        with pytest.raises(NodeError):
            Policy(wrong)


@pytest.fixture(params=PYTHONS, ids=lambda path: "py38" if "3.8" in path else "py")
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 2)
    programs = tmp_path / "programs"
    programs.mkdir()
    shutil.copy(FAKE, programs / "nvidia-smi")
    bed.env["PATH"] = f"{programs}:{bed.env['PATH']}"
    for node in bed.nodes:
        node.env["PATH"] = bed.env["PATH"]
        node.env["FAKE_GPU_COUNT"] = "2"
    yield bed
    bed.close()


def test_an_idle_gpu_on_any_node_stops_the_run(bed: Bed) -> None:
    bed.nodes[0].env["FAKE_GPU_COUNT"] = "0"  # rank 0 has none, so the reason comes from rank 1
    run = bed.start("sleep 1000", 2, utilization={"min": 5, "window": 1})
    value = bed.finish(run)
    assert (value["gang"]["state"], value["gang"]["reason"]) == ("stopped", "utilization-policy")
    assert value["gang"]["message"] == "GPUs 0, 1 were below 5% for 1 s (node n1)"
    bed.no_leftovers(run)
    bed.no_runner(run)


def test_a_busy_gpu_a_missing_program_and_a_short_run_are_left_alone(bed: Bed) -> None:
    run = bed.start("sleep 2", 1, utilization={"min": 0, "window": 0.5})
    assert bed.finish(run)["state"] == "done"
    (bed.base / "programs" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    run = bed.start("sleep 2", 1, utilization={"min": 5, "window": 0.5})
    assert bed.finish(run)["state"] == "done"
    with pytest.raises(Refused, match=r"utilization\.min"):
        bed.start("true", 1, utilization={"min": "x", "window": 1})
