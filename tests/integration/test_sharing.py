"""Runs that share a node by its blocks, and runs that wait for it: real systemd, a fake nvidia-smi, two shells."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from tests.integration.conftest import STACK, Cli, Outcome, _up

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
LIMITS = """
unit=$(sed -n 's,^.*/\\(lambdactl-[^/]*.service\\).*$,\\1,p' /proc/self/cgroup | head -n 1)
systemctl show -p MemoryMax -p CPUQuotaPerSecUSec -p AllowedCPUs "$unit"
nvidia-smi -L | grep -c GPU
slots=$(sed 's/.*slots=//' $DSTACK_MPI_HOSTFILE)
echo "GPUs=$CUDA_VISIBLE_DEVICES per_node=$DSTACK_GPUS_PER_NODE cpus=$(nproc) slots=$slots"
"""


class Shared:
    """A node of two blocks, and its command lines."""

    def __init__(self, cluster: Sandbox, cli: Cli, folder: Path) -> None:
        self.cluster, self.cli, self.folder = cluster, cli, folder
        data = yaml.safe_load(cluster.fleet_file.read_text())
        self.fleet = folder / "fleet.dstack.yml"
        self.fleet.write_text(yaml.safe_dump({**data, "blocks": 2}))

    def task(self, name: str, script: str, **fields: Any) -> Path:
        path = self.folder / f"{name}.dstack.yml"
        path.write_text(yaml.safe_dump({"type": "task", "name": name, "commands": [script], **fields}))
        return path

    def apply(self, path: Path, *options: str) -> Outcome:
        return self.cli("apply", "-f", path, "--fleet", self.fleet, "-y", *options)

    def runs(self) -> dict[str, dict[str, Any]]:
        listed = json.loads(self.cli("ps", "--json", "--fleet", self.fleet).out)
        return {run["name"]: run for run in listed["runs"]}

    def stop(self, name: str) -> None:
        done = self.cli("stop", name, "-x", "-y", "--fleet", self.fleet)
        assert done.rc == 0, done.err

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        return value

    def queue(self) -> list[str]:
        return self.cluster.exec("worker-0", "ls /var/lib/lambdactl/queue").stdout.split()


@pytest.fixture(scope="module")
def shared(engine: None, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    cluster = _up(workers=1, packages=STACK, files={"/usr/bin/nvidia-smi": ROOT / "tests" / "fakes" / "nvidia-smi"})
    try:
        program = "/opt/nccl-tests/build/all_reduce_perf"  # in the place of what the role would build
        cluster.exec("worker-0", f"mkdir -p /opt/nccl-tests/build; cp /bin/true {program}", check=True)
        found = Shared(cluster, cli, tmp_path_factory.mktemp("shared"))
        done = cli("apply", "-f", found.fleet, "-y", timeout=600)
        assert done.rc == 0, done.err
        yield found
    finally:
        sandboxes.down(cluster.name)


def test_runs_share_the_node_and_are_kept_to_their_part(shared: Shared) -> None:
    first = shared.apply(shared.task("first", "sleep 1000", resources={"gpu": "B200:4"}), "-d")
    assert first.rc == 0, first.err
    got = shared.cli("fleet", "get", shared.fleet)
    assert "1/2 busy" in got.out, got.out
    second = shared.apply(shared.task("second", LIMITS, resources={"gpu": 2}))
    assert second.rc == 0, second.err
    uuids = ",".join(f"GPU-fa4e0000-0000-4000-8000-{index:012x}" for index in range(4, 8))
    cpus = int(shared.cluster.exec("worker-0", "nproc").stdout)
    assert f"GPUs={uuids} per_node=4 cpus={cpus // 2} slots=4" in second.out
    facts = dict(line.partition("=")[::2] for line in second.out.split() if "=" in line)
    memory = 1024 * int(shared.cluster.exec("worker-0", "awk '/^MemTotal/ {print $2}' /proc/meminfo").stdout)
    assert 0 <= memory / 2 - int(facts["MemoryMax"]) < 4096
    assert facts["CPUQuotaPerSecUSec"] == f"{cpus // 2}s" or facts.get("AllowedCPUs")
    example = shared.apply(ROOT / "examples" / "shared-node.dstack.yml")
    assert example.rc == 0, example.err
    assert "GPUs GPU-fa4e0000" in example.out
    shared.stop("first")


def test_a_full_node_queues_across_command_lines(shared: Shared) -> None:
    assert shared.apply(shared.task("holder", "sleep 1000", max_duration="2h"), "-d").rc == 0
    assert shared.apply(shared.task("other", "sleep 1000"), "-d").rc == 0
    late = shared.task("late", "echo late has run", resources={"gpu": 8})
    refused = shared.apply(late)
    assert refused.rc == 3
    assert "has 0 of 2 blocks free, 2 wanted; in use by run holder of" in refused.err
    assert "THEN FREE" in refused.err
    assert "Pass --wait to wait for your turn." in refused.err
    attached = shared.cli.start("apply", "-f", late, "--fleet", shared.fleet, "-y", "--wait")
    shared.until(lambda: shared.runs().get("late", {}).get("state") == "queued")
    soon = shared.apply(shared.task("soon", "echo soon has run"), "-d", "--wait")
    assert soon.rc == 0, soon.err
    assert "soon is in the hands of process" in soon.err
    gone = shared.cli.start("apply", "-f", shared.task("gone", "true"), "--fleet", shared.fleet, "-y", "--wait")
    waiting = shared.until(lambda: (runs := shared.runs()) and "gone" in runs and runs)
    assert {name: waiting[name]["queue"]["place"] for name in ("late", "soon", "gone")} == {
        "late": 1, "soon": 2, "gone": 3,
    }  # fmt: skip
    assert "in use by run" in shared.until(lambda: shared.runs()["late"]["message"])
    gone.send_signal(signal.SIGINT)
    assert gone.wait(PATIENCE) == 130
    assert len(shared.queue()) == 2
    assert shared.apply(shared.task("late", "true")).rc == 3  # a run that waits has its name
    shared.stop("other")
    time.sleep(5)
    assert shared.runs()["soon"]["state"] == "queued"  # it would fit, and late would wait the longer for it
    shared.stop("holder")
    out, err = attached.communicate(timeout=PATIENCE)
    assert attached.returncode == 0, err
    assert "late has run" in out
    assert "in the queue" in err
    shared.until(lambda: "soon" not in shared.runs() or shared.runs()["soon"]["state"] == "done")
    assert "soon has run" in shared.cli("logs", "soon", "--fleet", shared.fleet).out
    assert shared.queue() == []


def test_a_run_that_fails_is_tried_again_and_can_be_stopped_while_it_rests(shared: Shared) -> None:
    path = shared.task("flaky", "test -e /tmp/twice || { touch /tmp/twice; exit 7; }", retry={"on_events": ["error"]})
    done = shared.apply(path)
    assert done.rc == 0, done.err
    assert "attempt 1 of flaky failed" in done.err
    status = json.loads(shared.cli("run", "get", "flaky", "--json", "--fleet", shared.fleet).out)
    assert (status["attempt"], status["state"]) == (2, "done")
    assert [attempt["exit_code"] for attempt in status["attempts"]] == [7]
    hopeless = shared.cli.start(
        "apply", "-f", shared.task("hopeless", "false", retry=True), "--fleet", shared.fleet, "-y"
    )
    shared.until(lambda: shared.runs().get("hopeless", {}).get("state") == "resting")
    shared.stop("hopeless")
    assert hopeless.wait(PATIENCE) == 130
