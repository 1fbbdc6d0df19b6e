"""Whole runs on the fake cluster: pods are real processes there, in network namespaces of their own."""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.control import fetch, stop
from lambdactl.backends.kubernetes.following import KubeFollower
from lambdactl.backends.kubernetes.model import KubeRun
from lambdactl.backends.kubernetes.resources import JOBS
from lambdactl.backends.kubernetes.session import RunSession, open_session
from lambdactl.backends.kubernetes.start import Starter, submit
from lambdactl.run.screen import LogOutput
from lambdactl.run.status import RunStatus
from tests.bed.sshd import SSHD
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.unit.kube.bed import limited
from tests.unit.kube.pod_bed import kube_run

pytestmark = pytest.mark.skipif(usable() is not None, reason=str(usable()))


@pytest.fixture(scope="module")
def machines() -> Iterator[FakeCluster]:
    with FakeCluster([FakeNode("node-1"), FakeNode("node-2")], mode="process") as running:
        yield running


def nothing_left(cluster: FakeCluster) -> None:
    """Wait until the namespace holds nothing of any run."""
    deadline = time.monotonic() + 60
    while left := cluster.left("jobs", "pods", "configmaps", "secrets", "services"):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


class Outcome:
    """What a followed run came to: its status, its log by the screen's rules, and what the user was told."""

    def __init__(self) -> None:
        self.status: RunStatus | None = None
        self.stream = io.BytesIO()
        self.notes: list[str] = []

    @property
    def log(self) -> str:
        return self.stream.getvalue().decode()


async def follow(
    cluster: FakeCluster, folder: Path, run: KubeRun, meanwhile: Callable[[RunSession], Awaitable[Any]] | None = None
) -> Outcome:
    """Submit and follow a run to its end."""
    outcome = Outcome()
    async with open_client(limited(cluster, folder)) as client:
        await submit(client, run)
        async with open_session(client, run.run_id, run.run_name) as session:
            ranks = list(range(run.nodes))
            output = LogOutput(ranks, stream=outcome.stream)  # type: ignore[arg-type]  # a stand-in with what is asked of it
            starter = Starter(session, notify=outcome.notes.append)
            follower = KubeFollower(
                session, output, show=ranks, notify=outcome.notes.append, starter=starter, tidy=True
            )
            task = asyncio.create_task(follower.run())
            if meanwhile is not None:
                await meanwhile(session)
            await asyncio.wait_for(task, 120)
            outcome.status = await follower.status()
    return outcome


def perform(cluster: FakeCluster, folder: Path, text: str, meanwhile: Any = None, **changes: Any) -> Outcome:
    run = kube_run(text, run_id=str(uuid.uuid4()), **changes)
    outcome = asyncio.run(follow(cluster, folder, run, meanwhile))
    nothing_left(cluster)
    return outcome


@pytest.mark.skipif(not Path(SSHD).exists(), reason="sshd is not installed (scripts/bootstrap unit installs it)")
def test_rank_0_drives_the_others_by_ssh_and_ends_them(machines: FakeCluster, tmp_path: Path) -> None:
    text = """
name: by-ssh
nodes: 2
startup_order: workers-first
stop_criteria: master-done
commands:
  - echo "rank $DSTACK_NODE_RANK up"
  - |
    if [ $DSTACK_NODE_RANK = 0 ]; then
      for ip in $(cat $DSTACK_MPI_HOSTFILE); do ssh $ip 'echo "hello from $DSTACK_NODE_RANK of $DSTACK_NODES_NUM"'; done
    else
      sleep infinity
    fi
"""
    outcome = perform(machines, tmp_path, text)
    assert outcome.status is not None
    assert (outcome.status.state, outcome.status.reason, outcome.status.exit_code) == ("done", "master-done", 0)
    assert [rank["state"] for rank in outcome.status.ranks] == ["done", "done"]
    assert "0: hello from 0 of 2\n" in outcome.log
    assert "0: hello from 1 of 2\n" in outcome.log
    assert outcome.log.index("1: rank 1 up") < outcome.log.index("0: rank 0 up")


def test_the_first_rank_that_fails_ends_the_run_with_its_code(machines: FakeCluster, tmp_path: Path) -> None:
    text = "name: failing\nnodes: 2\ncommands: ['test $DSTACK_NODE_RANK = 1 || sleep infinity', 'exit 7']"
    outcome = perform(machines, tmp_path, text)
    assert outcome.status is not None
    assert (outcome.status.state, outcome.status.exit_code, outcome.status.first_failed_rank) == ("failed", 7, 1)
    assert outcome.status.message == "rank 1 on node-2: the commands exited with code 7"
    assert outcome.status.ranks[0]["state"] == "stopped"


def test_max_duration(machines: FakeCluster, tmp_path: Path) -> None:
    outcome = perform(machines, tmp_path, "name: long\ncommands: [sleep infinity]", max_duration=1)
    assert outcome.status is not None
    assert (outcome.status.reason, outcome.status.exit_code) == ("max-duration", 124)


def test_stop_sends_the_signal_and_leaves_nothing(machines: FakeCluster, tmp_path: Path) -> None:
    text = "name: stopped\ncommands: ['trap \"echo got INT; exit 0\" INT; echo up; while :; do sleep 0.1; done']"

    async def meanwhile(session: RunSession) -> None:
        await session.until(lambda view: view.rank_state(0)["state"] == "running", timeout=60)
        await asyncio.sleep(1)
        view = (await fetch(session.client, "stopped"))[0]
        assert view.job is not None
        await stop(session.client, "stopped", view.job["metadata"]["uid"])

    outcome = perform(machines, tmp_path, text, meanwhile)
    assert outcome.status is not None
    assert (outcome.status.state, outcome.status.reason, outcome.status.exit_code) == (
        "stopped",
        "stopped-by-user",
        130,
    )
    assert "got INT" in outcome.log


def test_what_the_image_lacks_is_the_runs_reason(machines: FakeCluster, tmp_path: Path) -> None:
    outcome = perform(machines, tmp_path, "name: no-shell\nimage: tiny\nshell: /opt/fish\ncommands: [ls]")
    assert outcome.status is not None
    assert outcome.status.reason == "start-failed"
    assert outcome.status.exit_code == 1
    assert "rank 0 on" in str(outcome.status.message)
    assert "the image tiny has no /opt/fish" in str(outcome.status.message)


def test_a_started_run_needs_no_controller(machines: FakeCluster, tmp_path: Path) -> None:
    run = kube_run(
        "name: alone\nnodes: 2\nstop_criteria: master-done\n"
        "commands: ['test $DSTACK_NODE_RANK = 0 || sleep infinity', 'sleep 2; echo done']",
        run_id=str(uuid.uuid4()),
        keep=True,
    )

    async def begin() -> None:
        async with open_client(limited(machines, tmp_path)) as client:
            await submit(client, run)
            async with open_session(client, run.run_id, run.run_name) as session:
                assert await Starter(session).run()

    async def look() -> RunStatus | None:
        async with open_client(limited(machines, tmp_path)) as client:
            return (await fetch(client, "alone"))[0].status()

    asyncio.run(begin())
    deadline = time.monotonic() + 60
    while (status := asyncio.run(look())) is None or not status.final:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    assert (status.state, status.exit_code) == ("done", 0)
    machines.remove(JOBS, "alone")
    nothing_left(machines)
