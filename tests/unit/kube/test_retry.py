"""Attempts of a run, and the wait for free nodes: the command line on the fake cluster, pods as real processes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes.changes import watched
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.run import retry
from lambdactl.run.status import RunStatus
from tests.bed.sshd import SSHD
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live.desk import Desk, environment
from tests.unit.kube.bed import limited

FAILS_TWICE = """
retry: {on_events: [error], duration: 1h}
volumes: ["%s:/count"]
commands:
  - echo x >>/count/tries
  - test $(wc -l </count/tries) -ge 3 || exit 9
  - echo third time
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    if (why := usable()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("retry")
    # The back-off is dstack's, 15 s and more: a shorter one for the command line's process.
    (folder / "sitecustomize.py").write_text("import lambdactl.run.retry as r\nr.DELAYS = (1.0, 1.0, 60.0)\n")
    with FakeCluster([FakeNode("node-1", gpus=8)], mode="process") as cluster:
        target = limited(cluster, folder)
        env = environment(folder, str(folder), LAMBDACTL_KUBECONFIG=str(folder / "kubeconfig"), PYTHONPATH=str(folder))
        found = Desk(folder, target, env, "any", fake=True)
        found.fleet()
        yield found


def test_a_run_that_fails_is_tried_again_until_it_is_done(desk: Desk) -> None:
    done = desk.apply("again", FAILS_TWICE % "/mnt/again")
    assert done.stdout == "third time\n"
    for number in (1, 2):
        assert f"attempt {number} of {desk.name('again')} failed (rank 0 on node-1: the commands" in done.stderr
    desk.nothing_left("again")


def test_what_is_no_event_of_the_file_is_not_tried_again(desk: Desk) -> None:
    text = "retry: {on_events: [interruption], duration: 1h}\ncommands: [exit 4]"
    assert "the next one is in" not in desk.apply("once", text, rc=4).stderr
    desk.nothing_left("once")


def test_stop_between_two_attempts(desk: Desk) -> None:
    name = desk.name("pause")
    text = (FAILS_TWICE % "/mnt/pause").replace("-ge 3", "-ge 99")
    following = desk.start("apply", "-f", desk.task("pause", text), "-y")
    assert following.stderr is not None
    for line in following.stderr:
        if "attempt 3 of" in line and "the next one is in 60 s" in line:
            break
    deadline = time.monotonic() + 60
    said: dict[str, Any] = {}
    while "attempt 4 begins at" not in str(said.get("message")):
        assert time.monotonic() < deadline, said
        said = json.loads(desk.run("run", "get", name, "--json").stdout)
    assert said["attempt"] == 3
    assert len(said["attempts"]) == 2
    assert "is not tried again" in desk.run("stop", name, "-y").stderr
    _, rest = following.communicate(timeout=60)
    assert following.returncode == 130
    assert f"{name} was stopped between two attempts" in rest
    desk.nothing_left("pause")


def test_a_detached_run_is_tried_again_in_the_background(desk: Desk) -> None:
    name = desk.name("behind")
    done = desk.apply("behind", FAILS_TWICE % "/mnt/behind", "-d")
    assert "is in the hands of process" in done.stderr
    log = Path(desk.env["XDG_STATE_HOME"]) / "lambdactl" / "waiting" / f"{name}.log"
    deadline = time.monotonic() + 120
    while desk.left("behind") or "attempt 2 of" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def test_a_disruption_is_an_interruption() -> None:
    ended = RunStatus("1", "a", "failed", (), 1, 0.0, "me", reason="disrupted")
    assert retry.events(ended) == {"interruption", "error"}


def test_a_full_cluster_is_looked_at_again_when_something_changes(cluster: FakeCluster, target: Target) -> None:
    async def body() -> None:
        async with open_client(target) as client, watched([client]) as changes:
            for _ in range(3):  # what was there at first
                await changes.next(limit=1)
            changed = asyncio.ensure_future(changes.next(limit=600))
            await asyncio.sleep(0.2)
            assert not changed.done()
            cluster.node("node-1").cordon()
            await asyncio.wait_for(changed, 30)

    asyncio.run(body())


DEV = """
type: dev-environment
name: {name}
image: any
retry: {{on_events: [error], duration: 1h}}
volumes: ["/mnt/{name}:/count"]
init:
  - echo x >>/count/tries
  - test $(wc -l </count/tries) -ge 3 || exit 9
  - echo third time
"""


@pytest.mark.skipif(not Path(SSHD).exists(), reason="sshd is not installed (scripts/bootstrap unit does it)")
def test_a_dev_environment_is_tried_again_until_it_is_up(desk: Desk) -> None:
    name = desk.name("box")
    (desk.folder / "dev.yml").write_text(DEV.format(name=name))
    done = desk.run("apply", "-f", "dev.yml", "-y", "-d")
    assert "third time" in done.stdout
    assert f"SSH: ssh {name}" in done.stdout
    for number in (1, 2):
        assert f"attempt {number} of {name} failed (rank 0 on node-1: the commands exited with code 9" in done.stderr
    found = json.loads(desk.run("run", "get", name, "--json").stdout)
    assert (found["state"], found["attempt"]) == ("running", 3)
    config = desk.folder / ".ssh" / "lambdactl" / "config"
    assert f"Host {name}" in config.read_text()
    desk.run("stop", name, "-y")
    desk.nothing_left("box")


@pytest.mark.skipif(not Path(SSHD).exists(), reason="sshd is not installed (scripts/bootstrap unit does it)")
def test_a_dev_environment_that_fails_for_another_reason_is_not(desk: Desk) -> None:
    text = DEV.format(name=desk.name("sad")).replace("[error]", "[interruption]")
    (desk.folder / "dev.yml").write_text(text)
    assert "the next one is in" not in desk.run("apply", "-f", "dev.yml", "-y", "-d", rc=9).stderr
    desk.nothing_left("sad")
