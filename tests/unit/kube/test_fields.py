"""Fields of the task file in the container: groups, entrypoint, python, utilization_policy; real processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lambdactl import spec
from lambdactl.backends.kubernetes.objects import job
from lambdactl.backends.kubernetes.plan import refuse_unsupported
from lambdactl.backends.kubernetes.podstate import outcome
from lambdactl.backends.kubernetes.view import view_of
from lambdactl.errors import SpecError
from tests.unit.kube.pod_bed import Pod, kube_run

IPS = ("127.0.6.1", "127.0.6.2", "127.0.6.3")
GROUPS = """
groups:
- name: server
  commands: ['echo "server at ${{ groups[0].nodes[0].IP_ADDRESS }}"']
- name: clients
  nodes: 2
  commands:
  - "echo 'client to ${{ groups[0].nodes[0].IP_ADDRESS }}, not ${{ groups[1].nodes[1].IP_ADDRESS }}'"
  - echo "rank $DSTACK_NODE_RANK"
"""


@pytest.fixture(params=[("dash",), ("busybox", "ash")], ids=["dash", "busybox"])
def ranks(request: pytest.FixtureRequest) -> Iterator[Callable[..., list[Pod]]]:
    if shutil.which(request.param[0]) is None:
        pytest.skip(f"{request.param[0]} is not installed (scripts/bootstrap unit installs it)")
    made: list[Pod] = []

    def start(text: str, **options: object) -> list[Pod]:
        run = kube_run(text, keys=False)
        ips = IPS[: run.nodes]
        new = [Pod(run, rank, ip, shell=request.param, **options) for rank, ip in enumerate(ips)]  # type: ignore[arg-type]  # options of any kind, by name
        made.extend(new)
        for pod in new:
            pod.go(ips)
        return new

    yield start
    for pod in made:
        pod.kill()
        shutil.rmtree(pod.base, ignore_errors=True)


def test_each_group_has_its_own_commands_and_knows_the_others_addresses(ranks) -> None:
    pods = ranks(GROUPS)
    assert [pod.wait() for pod in pods] == [0, 0, 0]
    assert pods[0].text() == f"server at {IPS[0]}\n"
    for rank in (1, 2):
        assert pods[rank].text() == f"client to {IPS[0]}, not {IPS[2]}\nrank {rank}\n"


def test_an_entrypoint_gets_the_commands_as_its_arguments(ranks) -> None:
    (pod,) = ranks("image: tool\nentrypoint: \"printf '<%s>'\"\ncommands: [one, \"two $HOME 'three'\"]")
    assert pod.wait() == 0
    assert pod.text() == "<one><two $HOME 'three'>"


def test_python_that_cannot_be_had_is_said(ranks, tmp_path: Path) -> None:
    for tool in ("mkdir", "rm", "sh", "env", "setsid", "dash", "busybox"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    (pod,) = ranks("python: '3.10'\nshell: sh\ncommands: [echo never]", environ={"PATH": str(tmp_path)})
    assert pod.wait() != 0
    assert "there is neither python3.10 nor uv, which could get it, here; name an image" in pod.text()
    assert "never" not in pod.text()


def test_gpus_that_idle_for_the_whole_window_end_the_run(ranks, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "0, 97"\necho "1, 3"\necho "2, [N/A]"\n')
    smi.chmod(0o755)
    text = "utilization_policy: {min_gpu_utilization: 10, time_window: 5m}\nstop_signal: TERM\ncommands: [sleep 300]"
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    pod = ranks(text, environ=environ)[0]
    settings = pod.base / "bin" / "settings"
    assert "lambdactl_util_window=300" in settings.read_text()
    pod.kill()
    # Nobody waits for five minutes here: the same rank with a window of two seconds.
    settings.write_text(settings.read_text().replace("util_window=300", "util_window=2"))
    pod._start([*pod.argv], pod.env, terminal=True)
    assert pod.wait() != 0
    said = (pod.base / "message").read_text()
    assert said == "utilization-policy: GPU 1 was below 10% for 2 s"
    ended = {"state": {"terminated": {"exitCode": 143, "message": said}}, "name": "main"}
    found = outcome({"metadata": {}, "status": {"phase": "Failed", "containerStatuses": [ended]}})
    assert (found["state"], found["reason"]) == ("stopped", "utilization-policy")


def test_a_run_whose_gpus_idled_is_stopped_and_not_failed() -> None:
    made = job(kube_run("name: idle\ncommands: [ls]"))
    made["metadata"] |= {"uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    failed = {"type": "Failed", "status": "True", "message": "Container main for pod default/idle-0-abcde failed"}
    made["status"] = {"conditions": [failed]}
    ended = {"exitCode": 143, "message": "utilization-policy: GPU 1 was below 10% for 300 s"}
    pod = {
        "metadata": {"name": "idle-0-abcde", "uid": "2", "labels": {"batch.kubernetes.io/job-completion-index": "0"}},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Failed", "containerStatuses": [{"name": "main", "state": {"terminated": ended}}]},
    }
    status = view_of(made, [pod]).status()
    assert status is not None
    assert (status.state, status.reason, status.exit_code) == ("stopped", "utilization-policy", 130)
    assert status.message == "rank 0 on node-1: GPU 1 was below 10% for 300 s"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("docker: true\ncommands: [ls]", "set LAMBDACTL_DOCKER_IMAGE to one"),
        ('image: a\nentrypoint: "sh \'x"\ncommands: [ls]', "it cannot be split into words"),
        ("image: a", "do not start an image's own command"),
    ],
)
def test_what_cannot_be_honoured_is_one_sentence(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMBDACTL_DOCKER_IMAGE", raising=False)
    task = spec.loads(f"type: task\n{text}", kind="task")
    assert isinstance(task, spec.TaskSpec)
    with pytest.raises(SpecError, match=said) as caught:
        refuse_unsupported(task)
    assert "\n" not in str(caught.value)


def test_a_shorter_stop_duration_shortens_the_grace() -> None:
    for text, grace in (("stop_duration: 3s", 3), ("stop_duration: off", 10), ("", 10)):
        assert kube_run(f"commands: [ls]\n{text}").stop_grace == grace
