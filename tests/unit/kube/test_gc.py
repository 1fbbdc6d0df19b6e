"""`lambdactl gc` on the fake cluster, by the command line, and what counts as left over."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lambdactl.backends.kubernetes import schedules
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.fleet import KubeFleet
from lambdactl.backends.kubernetes.objects import job
from lambdactl.backends.kubernetes.resources import CRONJOBS, JOBS, SECRETS
from lambdactl.backends.kubernetes.schedule_objects import Handed, cron_jobs, secrets
from lambdactl.backends.kubernetes.strays import Strays, strays
from lambdactl.cli.app import app
from lambdactl.state import RunRecord, State, state_dir
from tests.fakes.kube import FakeCluster
from tests.unit.kube.bed import ROOT
from tests.unit.kube.pod_bed import kube_run

FLEET = ROOT / "examples" / "lambda-kubernetes-fleet.dstack.yml"
GONE = str(uuid.uuid4())


@pytest.fixture(autouse=True)
def configured(home: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))


def command(*args: object) -> Result:
    done = CliRunner().invoke(app, list(map(str, args)))
    assert done.exit_code == 0, done.output
    return done


async def make(target: Target, name: str, *, released: bool, **changes: Any) -> None:
    run = kube_run(f"name: {name}\ncommands: [x]", run_id=str(uuid.uuid4()), keys=False, **changes)
    async with open_client(target) as client:
        await client.create(JOBS, job(run))
        if released:
            await client.patch(JOBS, name, {"spec": {"suspend": False}})


def end(cluster: FakeCluster, name: str) -> None:
    cluster.rank(name, 0).run().exit(0)
    cluster.wait(lambda: (cluster.store.find("jobs", "default", name) or {}).get("status", {}).get("completionTime"))


@pytest.fixture
def left(cluster: FakeCluster, target: Target) -> None:
    """A run that has ended, one that was kept, one that is active, and one whose controller died before its start."""

    async def body() -> None:
        await make(target, "ended", released=True)
        await make(target, "kept", released=True, keep=True)
        await make(target, "active", released=True)
        await make(target, "dead", released=False)

    asyncio.run(body())
    cluster.rank("active", 0).run()
    end(cluster, "ended")
    end(cluster, "kept")


def seen(older_than: float | None, later: float) -> Strays:
    return asyncio.run(strays(KubeFleet.load(str(FLEET)), older_than=older_than, now=time.time() + later))


def found(older_than: float | None, later: float) -> dict[str, str]:
    return {stray.title: stray.why for stray in seen(older_than, later).objects}


def test_what_counts_as_left_over(left: None) -> None:
    assert found(3600.0, 60) == {}
    # Kubernetes' clock is in whole seconds.
    assert found(3600.0, 3 * 3600 + 60) == {
        "jobs.batch/ended": "its run has ended (3 h ago)",
        "jobs.batch/dead": "its controller died before the start (3 h ago)",
    }
    assert sorted(found(None, 3 * 3600 + 60)) == ["jobs.batch/dead", "jobs.batch/ended", "jobs.batch/kept"]
    assert seen(3600.0, 3 * 3600).active == ["active"]
    assert sorted(seen(None, 60).active) == ["active", "dead"]


def test_the_command_says_what_and_removes_it(cluster: FakeCluster, left: None) -> None:
    command("apply", "-f", FLEET)
    assert "nothing is left over" in command("gc").stderr
    with State() as state:
        record = state.fleets()[0]
        state.remember_run(RunRecord(GONE, "old", record.id, (), time.time() - 9999, "ended"))
    (state_dir() / "kubernetes" / GONE).mkdir(parents=True)
    said = command("gc", "--older-than", "0s", "--dry-run").stdout
    assert "jobs.batch/ended" in said
    assert f"the SSH key of run {GONE}, here" in said
    assert cluster.get(JOBS, "ended") is not None
    assert "2 removed" in command("gc", "--older-than", "0s", "-y").stderr
    cluster.wait(lambda: cluster.store.find("jobs", "default", "ended") is None)
    assert not (state_dir() / "kubernetes" / GONE).exists()
    assert all(cluster.get(JOBS, name) for name in ("kept", "active", "dead"))
    assert "nothing is left over" in command("gc", "--older-than", "0s", "--fleet", FLEET).stderr


def test_schedules_that_were_never_handed_over_whole(cluster: FakeCluster, target: Target) -> None:
    """An `apply` that died between the Secrets and the release, and one that was whole."""
    command("apply", "-f", FLEET)
    made = {
        name: Handed(
            name=name, id=str(uuid.uuid4()), owner="ada", fleet="x", nodes=1, cron=("0 2 * * *", "0 3 * * *"),
            submitted_at=time.time(), texts={"task.yml": b"x"}, parts=({"0.0000": b"x"},),
        )
        for name in ("half", "whole")
    }  # fmt: skip

    async def hand_over() -> None:
        async with open_client(target) as client:
            await schedules.add(client, made["whole"], target)
            owners = [(await client.create(CRONJOBS, body))["metadata"] for body in cron_jobs(made["half"], target)]
            for body in secrets(made["half"], owners)[:1]:
                await client.create(SECRETS, body)

    asyncio.run(hand_over())
    assert found(3600.0, 60) == {}
    why = "was not handed over whole (3 h ago)"
    assert found(3600.0, 3 * 3600 + 60) == {"cronjobs.batch/half-cron": why, "cronjobs.batch/half-cron-1": why}
    assert "2 removed" in command("gc", "--older-than", "0s", "-y").stderr
    names = {("cronjobs", "whole-cron"), ("cronjobs", "whole-cron-1")}
    names |= {("secrets", "whole-cron"), ("secrets", "whole-cron-content-0")}
    kinds = ("cronjobs", "secrets")
    cluster.wait(lambda: {(key[0], key[2]) for key in cluster.store.objects if key[0] in kinds} == names)
