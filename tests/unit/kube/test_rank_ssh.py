"""SSH between the ranks of a run on Kubernetes: real sshd in two mount namespaces, each with an address of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bed.sshd import SSHD
from tests.unit.kube.pod_bed import Pod, kube_run

IPS = ("127.0.4.1", "127.0.4.2")
HOME = pwd.getpwuid(os.geteuid()).pw_dir
# Every pod has a home folder of its own; without a program's file (LAMBDACTL_HIDE) the "image" lacks it.
_NAMESPACE = (
    'mount --bind "$HOME" '
    + HOME
    + ' || exit 99; for file in $LAMBDACTL_HIDE; do mount --bind /dev/null "$file"; done; exec "$@"'
)
WRAPPER = ("unshare", "--mount", "sh", "-c", _NAMESPACE, "-")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace and an sshd for root need root"),
    pytest.mark.skipif(not Path(SSHD).exists(), reason="sshd is not installed (scripts/bootstrap unit installs it)"),
]


@pytest.fixture(params=[("dash",), ("busybox", "ash")], ids=["dash", "busybox"])
def pods(request: pytest.FixtureRequest) -> Iterator[Callable[..., list[Pod]]]:
    if shutil.which(request.param[0]) is None:
        pytest.skip(f"{request.param[0]} is not installed (scripts/bootstrap unit installs it)")
    made: list[Pod] = []

    def start(text: str, hide: str = "", **changes: object) -> list[Pod]:
        run = kube_run(f"nodes: 2\n{text}", **{"run_id": str(uuid.uuid4())} | changes)
        environ = {"LAMBDACTL_HIDE": hide}
        made.extend(
            Pod(run, rank, ip, shell=request.param, wrapper=WRAPPER, environ=environ) for rank, ip in enumerate(IPS)
        )
        for pod in made:
            pod.go(IPS)
        return made

    yield start
    for pod in made:
        pod.kill()
        shutil.rmtree(pod.base, ignore_errors=True)


EVERYBODY = """
commands:
  - |
    if [ "$DSTACK_NODE_RANK" = 0 ]; then
      for ip in $DSTACK_NODES_IPS; do ssh $ip 'echo "rank $DSTACK_NODE_RANK of $DSTACK_NODES_NUM: $GREETING"'; done
    else
      sleep 300
    fi
"""


def test_rank_0_reaches_everybody_and_finds_their_environment(pods) -> None:
    first, _second = pods(EVERYBODY, env={"GREETING": "it's\ntwo lines"})
    assert first.wait() == 0, first.text()
    for rank in (0, 1):
        assert f"rank {rank} of 2: it's\ntwo lines\n" in first.text()


def test_keys_are_the_runs_own_and_private(pods) -> None:
    first, second = pods("commands: ['stat -c %a ~/.ssh/config; cat ~/.ssh/config', 'sleep 300']")
    first.until("Include")
    for name in ("id_ed25519", "host_ed25519", "env", "ssh_config"):
        assert stat.S_IMODE((first.base / "run" / name).stat().st_mode) == 0o600, name
    assert first.file("authorized_keys").count("ssh-ed25519") == 1
    assert second.file("known_hosts").startswith("lambdactl ssh-ed25519 ")


def test_a_host_key_that_is_not_the_runs_is_refused(pods) -> None:
    spoil = "echo lambdactl $(cat $LAMBDACTL_DIR/keys/id_ed25519.pub) > $LAMBDACTL_DIR/run/known_hosts; for ip"
    text = EVERYBODY.replace("for ip", spoil)
    first, _second = pods(text)
    first.wait()
    assert "rank 1 of 2" not in first.text()


def test_an_image_without_sshd_is_named_when_the_commands_need_it(pods) -> None:
    hide = " ".join(path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(path).exists())
    first, second = pods("image: tiny:1\ncommands: ['mpirun hostname']", hide=hide)
    assert (first.wait(), second.wait()) == (125, 125)
    assert (
        "the image tiny:1 has no sshd (package openssh-server), and the commands reach the other ranks by SSH"
        in first.text()
    )


def test_an_image_without_sshd_runs_what_does_not_need_it(pods) -> None:
    hide = " ".join(path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(path).exists())
    first, second = pods("image: tiny:1\ncommands: ['echo rank $DSTACK_NODE_RANK']", hide=hide)
    assert (first.wait(), second.wait()) == (0, 0)
    assert first.text() == "rank 0\n"
