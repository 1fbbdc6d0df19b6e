"""The job templates for a Kubernetes fleet as AWX runs them: sync, frozen inventory, kubeconfig as a file of the job.

The cluster is the fake one, with pods as real processes; the execution environment is that of awx/: ansible-core,
asyncssh and the package kubernetes, and nothing of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.awx import replay as awx
from tests.awx.replay import Job, Replay
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live.desk import FLEET
from tests.unit.kube.bed import limited

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "awx"))

import export  # noqa: E402 - a script beside the playbook

DATA = export.load({"awx_backend": "kubernetes"})
TEMPLATES = {entry["name"]: entry for entry in export.templates(DATA)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    if (why := usable()) is not None:
        pytest.skip(why)
    with FakeCluster([FakeNode("node-1"), FakeNode("node-2")], mode="process") as found:
        yield found


@pytest.fixture(scope="module")
def replay(cluster: FakeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    base = Path(tempfile.mkdtemp(prefix="kawx-", dir="/tmp"))
    folder = tmp_path_factory.mktemp("awx")
    limited(cluster, folder)
    awx.project(base, FLEET, DATA["awx_fleet_file"])
    yield Replay(
        base=base,
        programs=awx.stock_environment(base / "stock", "kubernetes", "asyncssh"),
        fleet_file=DATA["awx_fleet_file"],
        keys_type=DATA["awx_credential_types"][1],
        keys={"kubeconfig": (folder / "kubeconfig").read_text()},
        machine_key="",
    )
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def inventory(replay: Replay) -> dict[str, Any]:
    return replay.sync()


def launch(replay: Replay, inventory: dict[str, Any], what: str, text: str = "", *words: str, **answers: Any) -> Job:
    """Launch a template with its survey's defaults; `text` is the file that it runs."""
    entry = TEMPLATES[f"lambdactl {what}"]
    found = {one["variable"]: one["default"] for one in entry["survey"] if "default" in one}
    if text:
        (replay.base / "project" / "work.dstack.yml").write_text(text)
        found["service_file" if what == "run service" else "task_file"] = "work.dstack.yml"
    return replay.job(entry["playbook"], inventory, {**found, **answers}, *words)


def said(job: Job) -> str:
    """The message of the last task that has one."""
    results = [event["event_data"]["res"] for event in job.events if "res" in event.get("event_data", {})]
    return next(str(result["msg"]) for result in reversed(results) if "msg" in result)


def test_the_sync_has_the_nodes_and_nothing_of_the_kubeconfig(replay: Replay, inventory: dict[str, Any]) -> None:
    assert sorted(inventory["_meta"]["hostvars"]) == ["node-1", "node-2"]
    text = json.dumps(inventory)
    assert "token" not in text
    assert str(replay.base) not in text


def test_a_task_to_its_end(replay: Replay, inventory: dict[str, Any]) -> None:
    text = """
type: task
name: job
nodes: 2
image: any
env: [WHO]
commands:
  - echo "rank $DSTACK_NODE_RANK of $WHO {{ 7 * 7 }}"
  - test $DSTACK_NODE_RANK = 1 || exit $CODE
"""
    answers = {"run_env": "WHO=awx\nCODE=0", "run_name": "from-awx", "run_all_ranks": "true"}
    job = launch(replay, inventory, "run task", text, **answers)
    assert job.rc == 0, job.stdout
    for rank in (0, 1):
        assert f"{rank}: rank {rank} of awx {{{{ 7 * 7 }}}}" in job.stdout
    assert "from-awx: done" in job.stdout
    job = launch(replay, inventory, "run task", text, **{**answers, "run_env": "WHO=awx\nCODE=7"})
    assert job.rc == 2
    assert "from-awx failed with exit code 7: rank 0 on node-" in job.stdout


def test_a_limit_keeps_a_run_on_its_nodes(replay: Replay, inventory: dict[str, Any]) -> None:
    text = "type: task\nname: kept\nimage: any\ncommands: [ls /]\n"
    job = launch(replay, inventory, "run task", text, "-l", "node-2", run_max_duration="2h")
    assert job.rc == 0, job.stdout
    (result,) = job.results("Run the task to its end").values()
    assert [rank["node"] for rank in result["lambdactl_run"]["run"]["ranks"]] == ["node-2"]


def test_a_run_that_was_left_is_stopped(replay: Replay, inventory: dict[str, Any], cluster: FakeCluster) -> None:
    text = "type: task\nname: long\nnodes: 2\nimage: any\ncommands: [sleep infinity]\n"
    job = launch(replay, inventory, "run task", text, run_wait=False)
    assert job.rc == 0, job.stdout
    job = launch(replay, inventory, "stop run", run_name="long", run_abort="true")
    assert job.rc == 0, job.stdout
    assert said(job) == "long is stopped."
    cluster.wait(lambda: not [key for key in cluster.store.objects if key[0] == "jobs"])


def test_cancel_stops_the_run(replay: Replay, cluster: FakeCluster) -> None:
    """What AWX's Cancel comes to: SIGINT for ansible-playbook, whose worker stops the run."""
    (replay.base / "project" / "fleet.dstack.yml").write_text(FLEET)
    (replay.base / "project" / "long.yml").write_text(
        "type: task\nname: long\nimage: any\ncommands: ['echo is up; sleep 1000']\n"
    )
    kubeconfig = replay.base / "kubeconfig"
    kubeconfig.write_text(replay.keys["kubeconfig"])
    argv = [str(replay.programs / "ansible-playbook"), "-i", "fleet.dstack.yml", "playbooks/run_task.yml"]
    env = {"PATH": f"{replay.programs}:{awx.SYSTEM_PATH}", "HOME": str(replay.base), "KUBECONFIG": str(kubeconfig)}
    process = subprocess.Popen(
        [*argv, "-e", "task_file=long.yml"], cwd=replay.base / "project",
        env={**env, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "is up" in line and "echo" not in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    cluster.wait(lambda: not [key for key in cluster.store.objects if key[0] in ("jobs", "pods")], timeout=60)


def test_a_service_and_its_end(replay: Replay, inventory: dict[str, Any]) -> None:
    text = """
type: service
name: web
port: 8000
replicas: 2
image: any
auth: false
commands: [python3 -m http.server 8000]
probes: [{type: http, url: /, interval: 1s}]
"""
    job = launch(replay, inventory, "run service", text)
    assert job.rc == 0, job.stdout
    assert "web: running, 2/2 ready at http://web.default.svc:8000/" in job.stdout
    job = launch(replay, inventory, "stop run", run_name="web")
    assert said(job) == "web is stopped."


def test_a_dev_environment_is_left_once_it_is_up(replay: Replay, inventory: dict[str, Any]) -> None:
    text = "type: dev-environment\nname: box\nide: vscode\nimage: any\ninit: [echo welcome]\n"
    job = launch(replay, inventory, "run task", text)
    if "sshd" in job.stdout and job.rc:
        pytest.skip("this machine has no sshd, which a dev environment needs")
    assert job.rc == 0, job.stdout
    assert "box is up; `lambdactl attach box` leads to it." in job.stdout


def test_what_is_not_for_a_cluster_says_so(replay: Replay, inventory: dict[str, Any], tmp_path: Path) -> None:
    job = replay.job("playbooks/facts.yml", inventory)
    assert job.rc == 2
    assert "are nodes of a Kubernetes cluster, which take no SSH" in said(job)
    other = replay.keys["kubeconfig"].replace("namespace: default", "namespace: ml")
    wrong = Replay(**{**vars(replay), "keys": {"kubeconfig": other}})
    job = launch(wrong, inventory, "stop run", run_name="x")
    assert "the inventory is of the cluster 'fake' and its namespace 'default'" in said(job)


def test_nothing_of_the_login_is_in_a_job_s_records(replay: Replay) -> None:
    token = replay.keys["kubeconfig"].split("token: ")[1].split()[0]
    records = [path for folder in replay.made for path in folder.glob("artifacts/**/*") if path.is_file()]
    assert len(records) > 20
    assert [path for path in records if token in path.read_text(errors="replace")] == []
