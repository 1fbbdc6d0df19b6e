"""Groups that differ in what they need: several Jobs that are one run; pods are real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambdactl import spec
from lambdactl.backends.kubernetes import parts
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.control import fetch, stop
from lambdactl.backends.kubernetes.fleet import KubeFleet
from lambdactl.backends.kubernetes.model import KubeRun
from lambdactl.backends.kubernetes.nodes import look
from lambdactl.backends.kubernetes.objects import job, other_jobs
from lambdactl.backends.kubernetes.plan import make_plan
from lambdactl.backends.kubernetes.reach import find_rank
from lambdactl.backends.kubernetes.resources import JOBS
from lambdactl.backends.kubernetes.session import RunSession
from lambdactl.backends.kubernetes.start import submit
from lambdactl.backends.kubernetes.strays import strays
from lambdactl.errors import CapacityError, SpecError
from lambdactl.run.plan import Overrides
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.unit.kube.bed import limited
from tests.unit.kube.test_runs import Outcome, follow, nothing_left

NODES = (FakeNode("node-1", gpus=8), FakeNode("node-2"), FakeNode("node-3"))
needs_processes = pytest.mark.skipif(usable() is not None, reason=str(usable()))


def task(commands: tuple[str, str, str], more: str = "") -> str:
    one, two, three = (f"[{command!r}]" for command in commands)
    return f"""
type: task
name: unlike
{more}
groups:
- name: driver
  commands: {one}
- name: trainer
  resources: {{gpu: 4}}
  commands: {two}
- name: reader
  resources: {{cpu: 1}}
  commands: {three}
"""


def fleet_of(*targets: Target) -> KubeFleet:
    parsed = spec.loads("type: fleet\nname: all\nnodes: 0..\nbackends: [kubernetes]\n", kind="fleet")
    return KubeFleet("all", "all", parsed, None, targets)


async def planned(target: Target, text: str) -> KubeRun:
    fleet = fleet_of(target)
    async with open_client(target) as client:
        return make_plan(spec.loads(text), fleet, target, await look(client), Overrides()).run


@pytest.fixture(scope="module")
def machines() -> Iterator[FakeCluster]:
    with FakeCluster(NODES, mode="process") as running:
        yield running


def perform(cluster: FakeCluster, folder: Path, text: str, meanwhile: Any = None) -> Outcome:
    async def whole() -> Outcome:
        return await follow(cluster, folder, await planned(limited(cluster, folder), text), meanwhile)

    outcome = asyncio.run(whole())
    nothing_left(cluster)
    return outcome


def test_each_part_has_its_job_and_the_first_owns_the_others(tmp_path: Path) -> None:
    with FakeCluster(NODES) as cluster:
        run = asyncio.run(planned(limited(cluster, tmp_path), task(("a", "b", "c"), "stop_criteria: master-done")))
    assert [(part.first, part.nodes, part.gpus, part.places) for part in run.parts] == [
        (0, 1, 0, ("node-2",)),
        (1, 1, 4, ("node-1",)),
        (2, 1, 0, ("node-3",)),
    ]
    first, *others = [job(next(parts.of_run(run))), *other_jobs(run, {"name": "unlike", "uid": "7"})]
    assert first["metadata"]["name"] == "unlike"
    assert [one["metadata"]["name"] for one in others] == [f"unlike-{run.run_id[:8]}-g{index}" for index in (1, 2)]
    assert {one["metadata"]["ownerReferences"][0]["uid"] for one in others} == {"7"}
    assert ["successPolicy" in one["spec"] for one in (first, *others)] == [True, False, False]
    pods = [one["spec"]["template"] for one in (first, *others)]
    limits = [pod["spec"]["containers"][0]["resources"].get("limits") for pod in pods]
    assert limits == [None, {"nvidia.com/gpu": "4"}, {"cpu": "1"}]
    assert [pod["metadata"]["annotations"]["lambdactl.dev/first-rank"] for pod in pods] == ["0", "1", "2"]
    assert "ttlSecondsAfterFinished" not in first["spec"]


def test_what_does_not_fit_or_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    with FakeCluster(NODES[1:]) as cluster:
        target = limited(cluster, tmp_path)
        with pytest.raises(CapacityError, match=r"unlike does not fit: ranks 1 to 1 want 1 nodes, and 0 can take them"):
            asyncio.run(planned(target, task(("a", "b", "c"))))
        with pytest.raises(SpecError, match=r"several Jobs, which Kueue's queue 'team' would not start together"):
            asyncio.run(planned(replace(target, queue="team"), task(("a", "b", "c"))))
    with FakeCluster(NODES[:2]) as cluster, pytest.raises(CapacityError, match="want the same nodes"):
        asyncio.run(planned(limited(cluster, tmp_path), task(("a", "b", "c"))))


def a_job(index: int, *ends: tuple[str, str, str]) -> dict[str, Any]:
    conditions = [
        {"type": kind, "status": "True", "reason": reason, "message": f"pod default/j{index}-0-abcde",
         "lastTransitionTime": f"2026-01-01T00:00:{at}Z"}
        for kind, reason, at in ends
    ]  # fmt: skip
    return {"metadata": {"name": f"j{index}"}, "status": {"conditions": conditions}}


FAILED, LATE = ("Failed", "PodFailurePolicy", "05"), ("Failed", "DeadlineExceeded", "04")
MASTER, COMPLETE = ("Complete", "SuccessPolicy", "03"), ("Complete", "CompletionsReached", "06")


@pytest.mark.parametrize(
    ("ends", "ignore", "said"),
    [
        ([None, None], False, None),
        ([COMPLETE, None], False, None),
        ([COMPLETE, COMPLETE], False, ("Complete", "CompletionsReached")),
        ([None, FAILED], False, ("FailureTarget", "PodFailurePolicy")),
        ([LATE, FAILED], False, ("Failed", "PodFailurePolicy")),
        ([LATE, LATE], False, ("Failed", "DeadlineExceeded")),
        ([MASTER, None], False, ("SuccessCriteriaMet", "SuccessPolicy")),
        ([MASTER, LATE], False, ("Complete", "SuccessPolicy")),
        ([MASTER, FAILED], False, ("Failed", "PodFailurePolicy")),
        ([None, FAILED], True, None),
        ([COMPLETE, FAILED], True, ("Failed", "PodFailurePolicy")),
    ],
)
def test_the_jobs_ends_are_one_end(ends: list[Any], ignore: bool, said: tuple[str, str] | None) -> None:
    first, *others = [a_job(index, *([end] if end else [])) for index, end in enumerate(ends)]
    made = parts.combined(first, others, ignore=ignore)["status"]["conditions"]
    assert [(one["type"], one["reason"]) for one in made] == ([said] if said else [])


@needs_processes
def test_ranks_count_on_from_part_to_part(machines: FakeCluster, tmp_path: Path) -> None:
    line = "echo rank $DSTACK_NODE_RANK of $DSTACK_NODES_NUM has $DSTACK_GPUS_PER_NODE of $DSTACK_GPUS_NUM"
    text = task((f"{line}; cat $DSTACK_MPI_HOSTFILE | wc -l", line, f"{line}; echo $DSTACK_MASTER_NODE_IP"))

    async def look_inside(session: RunSession) -> None:
        await session.until(lambda view: len(view.pods) == 3)
        assert {rank: pod["spec"]["nodeName"] for rank, pod in session.view.pods.items()}[1] == "node-1"

    outcome = perform(machines, tmp_path, text, look_inside)
    assert outcome.status is not None
    assert (outcome.status.state, outcome.status.exit_code) == ("done", 0)
    for rank, gpus in enumerate((0, 4, 0)):
        assert f"{rank}: rank {rank} of 3 has {gpus} of 4\n" in outcome.log
    assert "0: 3\n" in outcome.log


@needs_processes
def test_a_rank_that_fails_ends_those_of_other_jobs(machines: FakeCluster, tmp_path: Path) -> None:
    outcome = perform(machines, tmp_path, task(("sleep infinity", "sleep 1; exit 7", "sleep infinity")))
    status = outcome.status
    assert status is not None
    assert (status.state, status.exit_code, status.first_failed_rank) == ("failed", 7, 1)
    assert status.message == "rank 1 on node-1: the commands exited with code 7"
    assert [rank["state"] for rank in status.ranks] == ["stopped", "failed", "stopped"]


@needs_processes
def test_the_end_of_rank_0_ends_all(machines: FakeCluster, tmp_path: Path) -> None:
    text = task(
        ("sleep 1", "sleep infinity", "sleep infinity"), "stop_criteria: master-done\nstartup_order: workers-first"
    )
    status = perform(machines, tmp_path, text).status
    assert status is not None
    assert (status.state, status.reason, status.exit_code) == ("done", "master-done", 0)


@needs_processes
def test_it_is_seen_stopped_and_cleared_as_one_run(machines: FakeCluster, tmp_path: Path) -> None:
    """Rank 0's Job has ended, and the others go on: the run is active."""

    async def meanwhile(session: RunSession) -> None:
        client = session.client
        await session.until(lambda view: view.jobs and parts.finished(view.jobs["unlike"]))
        (view,) = await fetch(client, "unlike")
        status = view.status()
        assert status is not None
        assert (status.state, [rank["state"] for rank in status.ranks]) == ("running", ["done", "running", "running"])
        assert (await find_rank(client, "unlike", 2)).pod.endswith(view.pods[2]["metadata"]["name"])  # type: ignore[union-attr]  # it is there, or the test fails here
        with pytest.raises(CapacityError, match=r"a run named unlike of .* is active"):
            await submit(client, await planned(client.target, task(("a", "b", "c"))))
        found = await strays(fleet_of(client.target))
        assert (found.active, found.objects) == (["unlike"], [])
        await stop(client, "unlike", session.view.job["metadata"]["uid"])  # type: ignore[index]  # it is there, or the test fails here

    outcome = perform(machines, tmp_path, task(("true", "sleep infinity", "sleep infinity")), meanwhile)
    assert outcome.status is not None
    assert (outcome.status.state, outcome.status.reason) == ("stopped", "stopped-by-user")


@needs_processes
def test_one_of_its_jobs_that_is_deleted_ends_the_run(machines: FakeCluster, tmp_path: Path) -> None:
    async def meanwhile(session: RunSession) -> None:
        await session.until(lambda view: len(view.pods) == 3 and len(view.jobs) == 3)
        status = session.view.status()
        while status is None or status.state != "running":
            await session.change(timeout=1.0)
            status = session.view.status()
        name = next(name for name in session.view.jobs if name.endswith("-g2"))
        machines.remove(JOBS, name, propagationPolicy="Background")

    outcome = perform(machines, tmp_path, task(("sleep infinity", "sleep infinity", "sleep infinity")), meanwhile)
    assert outcome.status is not None
    assert (outcome.status.state, outcome.status.exit_code) == ("failed", 5)
