"""Every job template of awx/, as AWX would run it: the sync, the frozen inventory, the job with its credentials.

The execution environment has ansible-core and nothing of ours, so this also tests that the project works from its
checkout alone, over OpenSSH.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl.sandbox import Sandbox
from tests.awx import replay as awx
from tests.awx.replay import Job, Replay

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "awx"))

import export  # noqa: E402 - a script beside the playbook

pytestmark = pytest.mark.sandbox
DATA = export.load()
FLEET_FILE = DATA["awx_fleet_file"]
TEMPLATES = {entry["name"]: entry for entry in DATA["awx_job_templates"]}
FIRST = "worker-0"
TASK = "examples/sandbox-allreduce.dstack.yml"


@pytest.fixture(scope="module")
def replay(provisioned: Sandbox) -> Iterator[Replay]:
    """The project in an AWX, with credentials for the shared cluster; the fleet file names a key that is not there."""
    base = Path(tempfile.mkdtemp(prefix="lawx-", dir="/tmp"))
    spec = yaml.safe_load(provisioned.fleet_file.read_text())
    spec["ssh_config"]["identity_file"] = "~/.ssh/id_rsa"
    spec["ssh_config"]["proxy_jump"]["identity_file"] = "~/.ssh/id_rsa"
    awx.project(base, yaml.safe_dump(spec, sort_keys=False), FLEET_FILE)
    key = provisioned.identity_file.read_text()
    project = Replay(
        base=base,
        programs=awx.stock_environment(base / "stock"),
        fleet_file=FLEET_FILE,
        keys_type=DATA["awx_credential_types"][0],
        keys={"jump_key": key},
        machine_key=key,
    )
    yield project
    awx.forget_connections(project)
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def inventory(replay: Replay) -> dict[str, Any]:
    """The inventory as a sync leaves it."""
    return replay.sync()


def launch(replay: Replay, inventory: dict[str, Any], template: str, *arguments: str, **answers: Any) -> Job:
    """Launch a job template with the answers given, and its survey's defaults for the others."""
    entry = TEMPLATES[template]
    defaults = {
        question["variable"]: question["default"] for question in entry.get("survey", ()) if "default" in question
    }
    return replay.job(entry["playbook"], inventory, {**defaults, **answers}, *arguments)


def changed(job: Job) -> set[str]:
    """The tasks that changed something on a host."""
    events = [event["event_data"] for event in job.events if event["event"] == "runner_on_ok"]
    return {data["task"] for data in events if data["res"].get("changed")}


def test_the_sync_keeps_nothing_of_its_container(
    replay: Replay, inventory: dict[str, Any], provisioned: Sandbox
) -> None:
    text = json.dumps(inventory)
    assert sorted(inventory["_meta"]["hostvars"]) == sorted(node.name for node in provisioned.workers)
    assert "__ansible_unsafe" not in text
    assert str(replay.base) not in text
    assert "LAMBDACTL_JUMP_KEY" in text
    assert "PRIVATE KEY" not in text
    assert all("ansible_ssh_private_key_file" not in host for host in inventory["_meta"]["hostvars"].values())


def test_facts(replay: Replay, inventory: dict[str, Any], provisioned: Sandbox) -> None:
    job = launch(replay, inventory, "lambdactl facts")
    assert job.rc == 0, job.stdout
    facts = job.results("Show them")
    assert sorted(facts) == sorted(node.name for node in provisioned.workers)
    assert all(known["lambdactl_facts"]["hostname"] == name for name, known in facts.items())


@pytest.mark.parametrize("mode", ["run", "check"])
def test_provision(replay: Replay, inventory: dict[str, Any], mode: str) -> None:
    job = launch(replay, inventory, "lambdactl provision", *(["--check", "--diff"] if mode == "check" else []))
    assert job.rc == 0, job.stdout
    assert not changed(job)
    assert "ready, nothing changed" in job.stdout


def test_run_task(replay: Replay, inventory: dict[str, Any]) -> None:
    job = launch(replay, inventory, "lambdactl run task", task_file=TASK, run_name="from-awx")
    assert job.rc == 0, job.stdout
    assert "Avg bus bandwidth" in job.stdout
    assert "from-awx: done" in job.stdout


def test_a_failed_run_fails_the_job(replay: Replay, inventory: dict[str, Any]) -> None:
    (replay.base / "project" / "seven.dstack.yml").write_text("type: task\ncommands: ['echo {{ 7 * 7 }}', exit 7]\n")
    job = launch(replay, inventory, "lambdactl run task", task_file="seven.dstack.yml", run_name="seven")
    assert job.rc == 2
    assert "{{ 7 * 7 }}" in job.stdout
    assert "exit code 7" in job.stdout


def test_stop_run(replay: Replay, inventory: dict[str, Any]) -> None:
    (replay.base / "project" / "long.dstack.yml").write_text("type: task\nnodes: 2\ncommands: [sleep infinity]\n")
    task = {"task_file": "long.dstack.yml", "run_name": "long"}
    job = replay.job(TEMPLATES["lambdactl run task"]["playbook"], inventory, {**task, "run_wait": False})
    assert job.rc == 0, job.stdout
    job = launch(replay, inventory, "lambdactl stop run", run_name="long")
    assert job.rc == 0, job.stdout
    assert changed(job)


def test_doctor(replay: Replay, inventory: dict[str, Any], provisioned: Sandbox) -> None:
    job = launch(replay, inventory, "lambdactl doctor", doctor_report_only="true")
    assert job.rc == 0, job.stdout
    assert all(node.name in job.stdout for node in provisioned.workers)


def test_validate(replay: Replay, inventory: dict[str, Any]) -> None:
    job = launch(replay, inventory, "lambdactl validate", validate_cpu="true", validate_rounds=1)
    assert job.rc == 0, job.stdout
    assert job.results("Measure, judge and blame")[FIRST]["status"] == "no verdict"


def test_run_service_and_the_ingress_in_front_of_it(replay: Replay, inventory: dict[str, Any]) -> None:
    job = launch(replay, inventory, "lambdactl run service", service_file="examples/sandbox-service.dstack.yml")
    assert job.rc == 0, job.stdout
    assert "web" in job.stdout
    job = launch(replay, inventory, "lambdactl stop run", run_name="web")
    assert job.rc == 0, job.stdout
    job = launch(replay, inventory, "lambdactl ingress", "--check")
    assert job.rc == 0, job.stdout
    assert not changed(job)
    # The cluster is shared: it is left as it was.
    absent = {"ingress_state": "absent", "ingress_host": FIRST}
    job = replay.job(TEMPLATES["lambdactl ingress"]["playbook"], inventory, absent)
    assert job.rc == 0, job.stdout
    assert changed(job)


def test_teardown_over_ansibles_own_ssh(replay: Replay, inventory: dict[str, Any]) -> None:
    """Its roles run on the node; in check mode, because the cluster is shared."""
    job = launch(replay, inventory, "lambdactl teardown", "--check", "--diff", "-l", FIRST)
    assert job.rc == 0, job.stdout
    assert "Remove what the manifest of runner names" in changed(job)


def test_every_job_template_was_replayed() -> None:
    here = Path(__file__).read_text()
    assert [name for name in TEMPLATES if f'launch(replay, inventory, "{name}"' not in here] == []


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        pytest.param("jump_key", "refused the login of user ubuntu with key $LAMBDACTL_JUMP_KEY", id="no-jump-key"),
        pytest.param("machine_key", "worker-0", id="no-machine-credential"),
    ],
)
def test_a_missing_credential_is_one_sentence(
    replay: Replay, inventory: dict[str, Any], tmp_path: Path, secret: str, says: str
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    wrong = (tmp_path / "key").read_text()
    changes = {"keys": {"jump_key": wrong}} if secret == "jump_key" else {"machine_key": wrong}
    job = launch(dataclasses.replace(replay, **changes), inventory, "lambdactl facts")
    assert job.rc == 2
    assert says in job.stdout
    assert "Traceback" not in job.stdout


def test_nothing_of_the_keys_is_in_a_job_s_records(replay: Replay) -> None:
    """After all jobs: their artifacts and events hold the paths of key files, never a key."""
    body = replay.machine_key.splitlines()[2]
    records = [path for folder in replay.made for path in folder.glob("artifacts/**/*") if path.is_file()]
    assert len(records) > 100
    assert [path for path in records if body in path.read_text(errors="replace")] == []
