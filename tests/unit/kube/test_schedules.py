"""`schedule` by the command line on the fake cluster: handed over to CronJobs, whose pods run lambdactl itself."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lambdactl.backends.kubernetes import packing
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.resources import CRONJOBS, PODS, SECRETS
from lambdactl.cli.app import app
from lambdactl.errors import LambdactlError
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live.desk import FLEET, Desk, environment
from tests.unit.kube.bed import ROOT, limited

NIGHTLY = """
type: task
name: nightly
nodes: 2
schedule: {cron: ["30 2 * * *", "0 12 * * 6"]}
env: [TOKEN]
commands: [echo hello]
"""


@pytest.fixture
def command(home: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("TOKEN", "hidden-value")
    monkeypatch.chdir(tmp_path)
    Path("fleet.yml").write_text(FLEET)
    Path("nightly.yml").write_text(NIGHTLY)

    def run(*words: str, rc: int = 0) -> Result:
        done = CliRunner().invoke(app, list(words))
        code = done.exception.exit_code if isinstance(done.exception, LambdactlError) else done.exit_code
        assert code == rc, (done.output, done.exception)
        return done

    run("apply", "-f", "fleet.yml", "-y")
    return run


def test_a_schedule_is_handed_over_and_taken_back(cluster: FakeCluster, command: Any) -> None:
    done = command("apply", "-f", "nightly.yml", "-y")
    assert "nightly is started first at" in done.stderr
    first, second = cluster.objects(CRONJOBS)
    assert [first["spec"]["schedule"], second["spec"]["schedule"]] == ["30 2 * * *", "0 12 * * 0"]
    assert {one["spec"]["concurrencyPolicy"] for one in (first, second)} == {"Forbid"}
    assert not first["spec"]["suspend"]
    pod = first["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["lambdactl", "scheduled", "/lambdactl/schedule", "0"]
    (secret,) = cluster.objects(SECRETS)
    assert len(secret["metadata"]["ownerReferences"]) == 2
    assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {
        "/lambdactl/schedule", "/lambdactl/scratch",
    }  # fmt: skip
    about = json.loads(base64.b64decode(secret["data"]["about.json"]))
    assert about["env"] == {"TOKEN": "hidden-value"}
    assert "hidden-value" not in json.dumps([first, second])
    (shown,) = json.loads(command("ps", "--json").stdout)["runs"]
    assert (shown["name"], shown["state"], shown["nodes"]) == ("nightly", "scheduled", 2)
    assert shown["ranks"][0]["cron"] == ["30 2 * * *", "0 12 * * 6"]
    assert shown["ranks"][0]["next_at"] > time.time()
    assert "next at" in command("run", "get", "nightly").stdout
    for words in (("apply", "-f", "nightly.yml", "-y"), ("logs", "nightly"), ("attach", "nightly")):
        again = command(*words, rc=3 if words[0] == "apply" else 2)
        assert again.exception is not None
    assert "nothing is left over" in command("gc", "-y", "--older-than", "0s").stderr
    assert "the schedule of nightly is removed" in command("stop", "nightly", "-y").stderr
    cluster.wait(lambda: not [key for key in cluster.store.objects if key[0] in ("cronjobs", "secrets")])
    assert json.loads(command("ps", "--json").stdout)["runs"] == []


def test_delete_of_the_fleet_takes_schedules_along(cluster: FakeCluster, command: Any) -> None:
    command("apply", "-f", "nightly.yml", "-y")
    done = command("delete", "-f", "fleet.yml", "-y")
    assert "cronjobs.batch/nightly-cron is left over and will be deleted: is a schedule of nightly" in done.stderr
    cluster.wait(lambda: not [key for key in cluster.store.objects if key[0] in ("cronjobs", "secrets")])


def said(command: Any, *words: str, rc: int) -> str:
    done = command(*words, rc=rc)
    assert "\n" not in str(done.exception), done.exception
    return str(done.exception)


def with_noise(size: int) -> None:
    """A task file beside `nightly.yml` that brings so many bytes that cannot be compressed."""
    Path("data").mkdir(exist_ok=True)
    Path("data/large").write_bytes(random.Random(1).randbytes(size))
    Path("large.yml").write_text(NIGHTLY + "files: [data]\n")


def test_as_many_secrets_as_its_files_need(cluster: FakeCluster, command: Any) -> None:
    with_noise(2 << 20)
    command("apply", "-f", "large.yml", "-y")
    secrets = cluster.objects(SECRETS)
    names = [f"nightly-cron-content-{number}" for number in range(3)]
    assert sorted(one["metadata"]["name"] for one in secrets) == ["nightly-cron", *names]
    assert {len(one["metadata"]["ownerReferences"]) for one in secrets} == {2}
    pod = cluster.objects(CRONJOBS)[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    sources = pod["volumes"][0]["projected"]["sources"]
    assert [source["secret"]["name"] for source in sources] == ["nightly-cron", *names]
    assert sources[1]["secret"]["items"] == [{"key": "0.0000", "path": "content/0.0000"}]
    command("stop", "nightly", "-y")
    cluster.wait(lambda: not [key for key in cluster.store.objects if key[0] in ("cronjobs", "secrets")])


def test_what_cannot_be_is_said_before_anything_is_made(
    cluster: FakeCluster, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "PARTS", 2)
    with_noise(3 << 20)
    text = said(command, "apply", "-f", "large.yml", "-y", rc=2)
    assert "'files' bring 3 MB, and more than 1 MB when compressed, which is what Secrets carry" in text
    assert "name a volume for them by `files_volume`" in text
    assert text.startswith("large.yml:8")
    text = NIGHTLY.replace("type: task", "type: dev-environment").replace("nodes: 2\n", "")
    Path("dev.yml").write_text(text.replace("commands: [echo hello]", "ide: vscode"))
    assert "a dev environment waits for you" in said(command, "apply", "-f", "dev.yml", "-y", rc=2)
    cluster.server.users = {token: user for token, user in cluster.server.users.items() if "lambdactl" not in user.name}
    cluster.user("ada", token="system:serviceaccount:default:lambdactl-token")
    text = said(command, "apply", "-f", "nightly.yml", "-y", rc=4)
    assert "the service account 'lambdactl' does not exist" in text
    assert cluster.left("cronjobs", "secrets", "pods") == []


def test_without_the_right_to_look_at_cron_jobs_there_are_none(cluster: FakeCluster, command: Any) -> None:
    cluster.fail_next("list", "cronjobs", 403, times=9, message='cronjobs is forbidden: User "x" cannot list resource')
    assert json.loads(command("ps", "--json").stdout)["runs"] == []


def test_the_pod_that_cannot_start_is_told_by_ps(cluster: FakeCluster, command: Any) -> None:
    command("apply", "-f", "nightly.yml", "-y")
    cluster.change(CRONJOBS, "nightly-cron", lambda item: item["metadata"]["annotations"].update(
        {"lambdactl.dev/schedule-facts": item["metadata"]["annotations"]["lambdactl.dev/schedule-facts"]
         .replace("30 2", "* *")}))  # fmt: skip
    fired = cluster.fire("nightly-cron")
    assert fired is not None
    assert cluster.fire("nightly-cron") is None  # one after another
    pod = cluster.pod(cluster.wait(lambda: next((p["metadata"]["name"] for p in cluster.store.all(PODS.plural)), "")))
    pod.image_error()
    message = json.loads(command("ps", "--json").stdout)["runs"][0]["message"]
    assert "its image cannot be pulled (ErrImagePull: failed to pull image" in message
    assert "name one that the nodes can pull as `controller_image`" in message


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Desk, FakeCluster]]:
    """Pods are processes here, and those of the image `controller` have this checkout's lambdactl."""
    if (why := usable()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("schedules")
    layer = folder / "layer"
    layer.mkdir()
    (layer / "lambdactl").write_text(f'#!/bin/sh\nexec {sys.executable} -m lambdactl "$@"\n')
    (layer / "lambdactl").chmod(0o755)
    images = {"any": Path("/"), "controller": Path("/")}
    here = list(dict.fromkeys([ROOT, Path(sys.base_prefix), Path(sys.prefix)]))
    shares = {"controller": [*here, (layer, "/usr/local/sbin")]}
    nodes = [FakeNode("node-1"), FakeNode("node-2")]
    with FakeCluster(nodes, mode="process", tls=True, images=images, shares=shares) as cluster:
        target = limited(cluster, folder)
        config = folder / "config" / "lambdactl" / "config.yml"
        config.parent.mkdir(parents=True)
        backend = {"type": "kubernetes", "kubeconfig": {"filename": str(folder / "kubeconfig")}, "image": "any"}
        config.write_text(json.dumps({"backends": [{**backend, "controller_image": "controller"}]}))
        found = Desk(folder, target, environment(folder, str(folder), TOKEN="hidden-value"), "any", fake=True)
        found.fleet()
        yield found, cluster


def message(desk: Desk, name: str, part: str) -> str:
    """What `ps` says of a schedule, as soon as it has this part."""
    deadline = time.monotonic() + 120
    while True:
        runs = json.loads(desk.run("ps", "-a", "--json").stdout)["runs"]
        text = next(str(run["message"]) for run in runs if run["name"] == name and run["state"] == "scheduled")
        if part in text:
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.3)


def now_as_cron() -> tuple[str, float]:
    """An expression that is due in this minute and not again today, and the minute."""
    moment = time.time() // 60 * 60
    return time.strftime("%M %H * * *", time.gmtime(moment)), moment


def test_the_cluster_starts_a_run_by_itself(desk: tuple[Desk, FakeCluster]) -> None:
    at, cluster = desk
    for place in ("data", "code"):
        (at.folder / place).mkdir()
    (at.folder / "data" / "input").write_text("from files")
    noise = random.Random(2).randbytes(2 << 20)  # three Secrets
    (at.folder / "data" / "noise").write_bytes(noise)
    git = ["git", "-C", str(at.folder / "code"), "-c", "user.name=a", "-c", "user.email=a@b"]
    alone = "test $DSTACK_NODE_RANK = 0 || sleep 1000; "  # rank 1 is stopped when rank 0 has failed
    (at.folder / "code" / "main.sh").write_text(
        alone + 'echo "$1 $2 $TOKEN $(cat /data/input) on $DSTACK_NODE_RANK"; '
        f'echo "{hashlib.sha256(noise).hexdigest()}  /whole/noise" | sha256sum -c --status && exit 3\n'
    )
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    cron, moment = now_as_cron()
    text = f"""
schedule: {{cron: "{cron}"}}
nodes: 2
env: [TOKEN, WHO=nobody]
files: ["data/input:/data/input", "data:/whole"]
repos: [code]
commands: ['sh main.sh "$WHO" ${{{{ run.args }}}}']
"""
    name = at.name("self")
    done = at.run("apply", "-f", at.task("self", text), "-y", "-e", "WHO=ada", "--", "big $HOME")
    assert f"{name} is started first at" in done.stderr
    assert cluster.fire(f"{name}-cron", at=moment)
    # Whoever watches the cluster's Jobs sees that the run has failed.
    cluster.wait(lambda: any(map(failed, cluster.store.all("jobs"))), timeout=120)
    assert "was started at" in message(at, name, "was started at")
    log = at.run("logs", name).stdout
    assert log == "ada big $HOME hidden-value from files on 0\n"
    found = [run for run in json.loads(at.run("ps", "-a", "--json").stdout)["runs"] if run["name"] == name]
    ended = next(run for run in found if run["state"] != "scheduled")
    assert (ended["state"], ended["exit_code"]) == ("failed", 3)
    at.run("stop", name, "-y")


def failed(job: dict[str, Any]) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return "-self-cron-" in job["metadata"]["name"] and any(one["type"] == "Failed" for one in conditions)


def test_a_time_at_which_the_run_does_not_fit_is_missed(desk: tuple[Desk, FakeCluster]) -> None:
    at, cluster = desk
    cron, moment = now_as_cron()
    name = at.name("tight")
    at.run("apply", "-f", at.task("tight", f'schedule: {{cron: "{cron}"}}\nnodes: 2\ncommands: [ls]'), "-y")
    cluster.node("node-2").cordon()
    assert cluster.fire(f"{name}-cron", at=moment)
    assert "asks for 2 nodes, but 1 of 2" in message(at, name, "was missed at")
    cluster.node("node-2").cordon(False)
    at.run("stop", name, "-y")


def test_an_image_without_lambdactl_is_named(desk: tuple[Desk, FakeCluster]) -> None:
    at, cluster = desk
    cron, moment = now_as_cron()
    name = at.name("bare")
    config = at.folder / "config" / "lambdactl" / "config.yml"
    held = config.read_text()
    config.write_text(held.replace('"controller"', '"any"'))
    at.run("apply", "-f", at.task("bare", f'schedule: {{cron: "{cron}"}}\ncommands: [ls]'), "-y")
    config.write_text(held)
    assert cluster.fire(f"{name}-cron", at=moment)
    assert "the image any has no lambdactl in it" in message(at, name, "was missed at")
    at.run("stop", name, "-y")
