"""The container's side of a run on Kubernetes, as real processes under dash, busybox ash and bash."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from lambdactl.node.env import hostfile
from tests.unit.kube.pod_bed import RUN_ID, Pod, kube_run

SHELLS = {"dash": ("dash",), "busybox": ("busybox", "ash"), "bash": ("bash", "--posix")}
IPS = ("127.0.3.1", "127.0.3.2")
NAMES = (
    "RUN_ID", "JOB_ID", "RUN_NAME", "REPO_ID", "REPO_DIR", "WORKING_DIR", "NODES_IPS", "MASTER_NODE_IP",
    "NODE_IP", "NODE_RANK", "NODES_NUM", "GPUS_PER_NODE", "GPUS_NUM", "MPI_HOSTFILE",
)  # fmt: skip


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    words = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed (scripts/bootstrap unit installs it)")
    return words


@pytest.fixture
def start() -> Iterator[Callable[..., Pod]]:
    pods: list[Pod] = []

    def make(*arguments: object, **options: object) -> Pod:
        pods.append(Pod(*arguments, **options))  # type: ignore[arg-type]  # options of any kind, by name
        return pods[-1]

    yield make
    for pod in pods:
        pod.kill()
        shutil.rmtree(pod.base, ignore_errors=True)


def test_every_variable_on_every_rank_and_dstacks_hostfile(start, shell) -> None:
    lines = "\n".join(f'  - echo "{name}=[$DSTACK_{name}]"' for name in NAMES)
    run = kube_run(f"nodes: 2\nworking_dir: /tmp\ncommands:\n{lines}\n", keys=False, gpus=8)
    pods = [start(run, rank, ip, shell=shell) for rank, ip in enumerate(IPS)]
    for pod in pods:
        pod.go(IPS)
    assert [pod.wait() for pod in pods] == [0, 0]
    for rank, pod in enumerate(pods):
        text = pod.text()
        for name, value in {
            "RUN_ID": RUN_ID, "JOB_ID": run.job_id(rank), "RUN_NAME": "demo", "REPO_ID": "", "REPO_DIR": "/tmp",
            "WORKING_DIR": "/tmp",
            "NODES_IPS": "\n".join(IPS), "MASTER_NODE_IP": IPS[0], "NODE_IP": IPS[rank], "NODE_RANK": str(rank),
            "NODES_NUM": "2", "GPUS_PER_NODE": "8", "GPUS_NUM": "16",
            "MPI_HOSTFILE": str(pod.base / "run" / "hostfile"),
        }.items():  # fmt: skip
            assert f"{name}=[{value}]\n" in text
        assert pod.file("hostfile") == hostfile(list(IPS), [8, 8])
        assert (pod.base / "run" / "hostfile").stat().st_mode & 0o777 == 0o644


def test_hostfile_without_gpus_is_bare(start, shell) -> None:
    pod = start(kube_run("commands: ['true']"), 0, IPS[0], shell=shell)
    pod.go(IPS[:1])
    assert pod.wait() == 0
    assert pod.file("hostfile") == hostfile([IPS[0]], [0])


def test_commands_share_a_shell_and_the_first_failure_ends_them(start, shell) -> None:
    run = kube_run("image: x\ncommands: ['cd /usr; export A=1', 'echo $PWD $A', 'sh -c \"exit 7\"', 'echo never']")
    pod = start(run, 0, IPS[0], shell=shell)
    pod.go(IPS[:1])
    assert pod.wait() == 7
    assert "/usr 1\n" in pod.text()
    assert "never" not in pod.text()


def test_the_users_variables_win_and_reach_the_commands_as_they_are(start, shell) -> None:
    value = 'it\'s "$(HOME)" {{ 7*7 }} `x`\nsecond line'
    run = kube_run(
        'commands: [\'printf "%s|" "$A" "$DSTACK_NODE_RANK" "$run" "$lambdactl_base"; echo "$PATH"\']',
        env={"A": value, "DSTACK_NODE_RANK": "77", "run": "mine", "PATH": "/nowhere:/bin:/usr/bin"},
    )
    pod = start(run, 0, IPS[0], shell=shell)
    pod.go(IPS[:1])
    assert pod.wait() == 0
    assert f"{value}|77|mine||/nowhere:/bin:/usr/bin\n" in pod.text()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_deleted_pod_gets_the_stop_signal_not_sigterm(start, shell, terminal: bool) -> None:
    run = kube_run(
        "image: x\nstop_grace: 30\n"
        "commands: ['trap \"echo got INT; exit 9\" INT; echo up; while :; do sleep 0.1; done']"
    )
    pod = start(run, 0, IPS[0], shell=shell, terminal=terminal)
    pod.go(IPS[:1])
    pod.until("up")
    pod.terminate()
    assert pod.wait() == 9
    assert "got INT" in pod.text()


def test_plain_sleep_ends_by_the_stop_signal(start, shell) -> None:
    pod = start(kube_run("image: x\nstop_grace: 60\ncommands: ['echo up', 'sleep 300']"), 0, IPS[0], shell=shell)
    pod.go(IPS[:1])
    pod.until("up")
    time.sleep(0.3)
    pod.terminate()
    assert pod.wait() == 128 + signal.SIGINT


def test_after_the_grace_time_the_group_is_killed(start, shell) -> None:
    run = kube_run("stop_grace: 1\ncommands: ['trap \"\" INT TERM; echo up; while :; do sleep 0.1; done']")
    pod = start(run, 0, IPS[0], shell=shell)
    pod.go(IPS[:1])
    pod.until("up")
    pod.terminate()
    assert pod.wait() == 128 + signal.SIGKILL


def test_another_stop_signal(start, shell) -> None:
    run = kube_run(
        "stop_signal: USR1\ncommands: ['trap \"echo got USR1; exit 3\" USR1; echo up; while :; do sleep 0.1; done']"
    )
    pod = start(run, 0, IPS[0], shell=shell)
    pod.go(IPS[:1])
    pod.until("up")
    pod.terminate()
    assert pod.wait() == 3


def test_a_pod_deleted_before_its_turn_ends_without_commands(start, shell) -> None:
    pod = start(kube_run("nodes: 2\ncommands: [echo never]", keys=False), 0, IPS[0], shell=shell)
    time.sleep(0.5)
    pod.terminate()
    assert pod.wait() == 143
    assert "never" not in pod.text()


def test_what_cannot_start_says_why(start, shell) -> None:
    pod = start(kube_run("shell: /opt/fish\nimage: tiny:1\ncommands: [ls]"), 0, IPS[0], shell=shell)
    pod.go(IPS[:1])
    assert pod.wait() == 125
    sentence = "the image tiny:1 has no /opt/fish; set 'shell: sh', or use an image that has it."
    assert f"lambdactl: {sentence}\n" in pod.text()
    assert (pod.base / "message").read_text() == f"start-failed: {sentence}"


def test_a_missing_user_is_named(start, shell) -> None:
    pod = start(kube_run("user: nosuchuser\ncommands: [ls]"), 0, IPS[0], shell=shell)
    pod.go(IPS[:1])
    assert pod.wait() == 125
    assert "has no user nosuchuser" in pod.text()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_user_by_name(start, shell) -> None:
    pod = start(
        kube_run("user: nobody\nworking_dir: /tmp\ncommands: ['id -un; echo $HOME $0']"), 0, IPS[0], shell=shell
    )
    os.chmod(pod.base, 0o755)
    for name in ("bin", "pod"):
        os.chmod(pod.base / name, 0o755)
    pod.go(IPS[:1])
    assert pod.wait() == 0, pod.text()
    assert "nobody\n" in pod.text()


def test_started_appears_only_when_the_commands_have_started(start, shell) -> None:
    pod = start(kube_run("commands: ['echo up', 'sleep 300']"), 0, IPS[0], shell=shell)
    time.sleep(0.3)
    assert not (pod.base / "run" / "started").exists()
    pod.go(IPS[:1])
    pod.until("up")
    deadline = time.monotonic() + 30
    while not (pod.base / "run" / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
