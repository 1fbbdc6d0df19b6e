"""The task file of dstack's page on Lambda, unchanged, on nodes that a fake nvidia-smi gives eight B200 each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from tests.integration.conftest import STACK, Cli, _up

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TASK = ROOT / "examples" / "lambda-nccl-tests.dstack.yml"

# A fake of nccl-tests' program, which needs GPUs: every rank says who it is and what it was asked to do.
FAKE_PERF = """#!/bin/sh
echo "rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE on $(hostname): $* HCA=$NCCL_IB_HCA"
"""


@pytest.fixture(scope="module")
def b200(engine: None, cli: Cli) -> Iterator[Sandbox]:
    """Two provisioned nodes with fake GPUs and the fake program in nccl-tests' place."""
    cluster = _up(workers=2, packages=STACK, files={"/usr/bin/nvidia-smi": ROOT / "tests" / "fakes" / "nvidia-smi"})
    try:
        yield provisioned_with_fakes(cluster, cli)
    finally:
        sandboxes.down(cluster.name)


def provisioned_with_fakes(cluster: Sandbox, cli: Cli) -> Sandbox:
    for node in cluster.workers:
        cluster.exec(node.name, "mkdir -p /opt/nccl-tests/build", check=True)
        path = "/opt/nccl-tests/build/all_reduce_perf"
        cluster.exec(node.name, f"cat > {path}; chmod 755 {path}", stdin=FAKE_PERF, check=True)
    done = cli("apply", "-f", cluster.fleet_file, "-y", timeout=600)
    assert done.rc == 0, done.err
    assert re.search(r"^worker-0 .* 8 x B200 179GB +570", done.out, re.MULTILINE), done.out
    return cluster


def test_the_pages_task_starts_16_ranks_8_a_node(b200: Sandbox, cli: Cli) -> None:
    fleet = ("--fleet", b200.fleet_file)
    done = cli("apply", "-f", TASK, *fleet, "-y")
    assert done.rc == 0, done.err
    ranks = re.findall(r"^rank (\d+) of 16 on (\S+): (.*)$", done.out, re.MULTILINE)
    assert sorted(int(rank) for rank, _, _ in ranks) == list(range(16))
    assert Counter(host for _, host, _ in ranks) == {"worker-0": 8, "worker-1": 8}
    assert {words for _, _, words in ranks} == {"-b 8 -e 2G -f 2 -t 1 -g 1 -c 1 -n 100 HCA=^mlx5_0"}
    status = json.loads(cli("run", "get", "nccl-tests", "--json", *fleet).out)
    assert (status["state"], status["reason"]) == ("done", "master-done")
    ended = {rank["rank"]: rank["finished_at"] for rank in status["ranks"]}
    assert ended[1] - ended[0] < 5
    for node in b200.workers:
        listed = b200.exec(node.name, ["ps", "-eo", "args"]).stdout
        assert not re.search("sleep infinity|orted|mpirun|runner.pyz", listed), listed


def test_gpus_are_leased_and_shown(b200: Sandbox, cli: Cli, tmp_path: Path) -> None:
    fleet = ("--fleet", b200.fleet_file)
    path = tmp_path / "hold.dstack.yml"
    path.write_text("type: task\nname: hold\ncommands: [sleep 1000]\nresources:\n  gpu: B200:8\n")
    assert cli("apply", "-f", path, *fleet, "-y", "-d").rc == 0
    refused = cli("apply", "-f", TASK, *fleet, "-y")
    assert refused.rc == 3
    assert "worker-0 is in use by run hold of" in refused.err
    assert cli("stop", "hold", "-y", *fleet).rc == 0
    path.write_text("type: task\nname: more\ncommands: ['true']\nresources:\n  gpu: H100:8\n")
    wrong = cli("apply", "-f", path, *fleet, "-y")
    assert wrong.rc == 3
    assert re.search("worker-0 has .*B200.*H100", wrong.err), wrong.err
