"""Dev environments on Kubernetes: by a real ssh client, used as IDEs do, and their container's side."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed.sshd import SSHD
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live.desk import Desk, environment
from tests.unit.kube.bed import ROOT, limited
from tests.unit.kube.pod_bed import Pod, kube_run
from tests.unit.kube.test_rank_ssh import WRAPPER

needs_sshd = pytest.mark.skipif(
    not Path(SSHD).exists(), reason="sshd is not installed (scripts/bootstrap unit does it)"
)
EXAMPLE = ROOT / "examples" / "dev-environment.dstack.yml"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with FakeCluster([FakeNode("node-1"), FakeNode("node-2")], mode="process") as cluster:
        # ssh looks for ~ in the user database; the commands write below HOME.
        env = environment(tmp_path, str(tmp_path), LAMBDACTL_KUBECONFIG=str(tmp_path / "kubeconfig"))
        found = Desk(tmp_path, limited(cluster, tmp_path), env, "any", fake=True)
        found.fleet()
        yield found
        assert cluster.left("jobs", "pods", "configmaps", "secrets", "services") == []


@needs_sshd
@pytest.mark.skipif(usable() is not None, reason=str(usable()))
def test_an_ide_uses_it_until_it_is_stopped(desk: Desk) -> None:
    (desk.folder / "dev.yml").write_text(EXAMPLE.read_text())
    done = desk.run("apply", "-f", "dev.yml", "-y", "-d")
    assert "VS Code: vscode://vscode-remote/ssh-remote+devbox/root\nSSH: ssh devbox\n" in done.stdout
    assert "Python 3" in done.stdout  # what `init` prints
    config = desk.folder / ".ssh" / "lambdactl" / "config"
    assert f"Include {config}\n" in (desk.folder / ".ssh" / "config").read_text()
    control = desk.folder / "cm"
    ssh = ["-F", str(config), "-o", "BatchMode=yes", "-o", f"ControlPath={control}"]
    port = free_port()
    forward = f"{port}:127.0.0.1:8123"
    subprocess.run(
        ["ssh", *ssh, "-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-fN", "-L", forward, "devbox"],
        check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        said = run("ssh", *ssh, "devbox", "echo $DSTACK_RUN_NAME in $PWD of $DSTACK_NODES_NUM")
        assert said == "devbox in /root of 1\n"
        (desk.folder / "file").write_text("carried\n")
        batch = desk.folder / "batch"
        batch.write_text(f"put {desk.folder / 'file'} /tmp/file\n")
        run("sftp", "-q", *ssh, "-b", str(batch), "devbox")
        assert run("ssh", *ssh, "devbox", "cat /tmp/file") == "carried\n"
        run("ssh", *ssh, "devbox", "nohup python3 -m http.server 8123 >/dev/null 2>&1 </dev/null & sleep 1")
        assert "200 OK" in until(lambda: asked(port))
        # The pod counts its connections every two seconds.
        status = until(lambda: (seen := status_of(desk))["dev"]["sessions"] and seen)
        assert (status["dev"]["sessions"], status["dev"]["directory"], status["state"]) == (1, "/root", "running")
        assert "runs from another file" in again(desk, "ide: vscode", "ide: zed", rc=3)
        assert "inactivity_duration is 1h00m now" in again(desk, "inactivity_duration: 2h", "inactivity_duration: 1h")
    finally:
        subprocess.run(["ssh", *ssh, "-O", "exit", "devbox"], check=False, capture_output=True, timeout=30)
    assert "devbox" in desk.run("ps").stdout
    desk.run("stop", "devbox", "-y")
    assert "Host devbox" not in config.read_text()
    assert not (desk.folder / ".ssh" / "config").exists()


def status_of(desk: Desk) -> Any:
    return json.loads(desk.run("run", "get", "devbox", "--json").stdout)


def again(desk: Desk, old: str, new: str, rc: int = 0) -> str:
    (desk.folder / "dev.yml").write_text(EXAMPLE.read_text().replace(old, new))
    return desk.run("apply", "-f", "dev.yml", "-y", "-d", rc=rc).stderr


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(4096).decode()
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], patience: float = 60) -> Any:
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.fixture(params=[("dash",), ("busybox", "ash")], ids=["dash", "busybox"])
def pod(request: pytest.FixtureRequest) -> Iterator[Callable[..., Pod]]:
    if os.geteuid() != 0:
        pytest.skip("a mount namespace and an sshd for root need root")
    if shutil.which(request.param[0]) is None:
        pytest.skip(f"{request.param[0]} is not installed (scripts/bootstrap unit installs it)")
    made: list[Pod] = []

    def start(commands: list[str], *, limit: int, hide: str = "") -> Pod:
        dev = {"ide": None, "inactivity": limit, "digest": "d"}
        text = f"image: tiny:1\nstop_grace: 2s\ncommands: {json.dumps(commands)}"
        task = kube_run(text, run_id=str(uuid.uuid4()), keys=True, dev=dev)
        made.append(Pod(task, 0, "127.0.4.3", shell=request.param, wrapper=WRAPPER, environ={"LAMBDACTL_HIDE": hide}))
        made[0].annotate("inactivity", str(limit))
        made[0].go(["127.0.4.3"])
        return made[0]

    yield start
    for one in made:
        one.kill()
        shutil.rmtree(one.base, ignore_errors=True)


UP = ': >"$LAMBDACTL_DIR/run/up"'


@needs_sshd
def test_it_ends_well_when_nobody_has_been_there(pod: Callable[..., Pod]) -> None:
    one = pod(["echo init", UP, "exec tail -f /dev/null"], limit=2)
    assert one.wait() == 0, one.text()
    assert (one.base / "message").read_text() == "inactivity: nobody was connected for 2 s"
    assert one.file("dev").startswith("user=root\ndirectory=")


@needs_sshd
def test_a_connection_and_a_sign_of_presence_count(pod: Callable[..., Pod]) -> None:
    one = pod([UP, "exec tail -f /dev/null"], limit=3)
    one.annotate("present", "a 1")
    until(lambda: (one.base / "run" / "up").exists())
    until(lambda: (one.base / "run" / "sessions").exists())
    time.sleep(5)
    assert one.process.poll() is None
    port = int(one.file("sshd_config").split()[1])
    with socket.create_connection(("127.0.4.3", port)):
        one.annotate("present", "gone")
        until(lambda: "sessions=1" in one.file("sessions"))
        time.sleep(5)
        assert one.process.poll() is None
    assert one.wait() == 0


def test_an_image_without_sshd_is_named(pod: Callable[..., Pod]) -> None:
    hide = " ".join(path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(path).exists())
    one = pod([UP], limit=60, hide=hide)
    assert one.wait() == 125
    assert "the image tiny:1 has no sshd (package openssh-server), by which a dev environment is entered" in one.text()
