"""SSH to ranks: through the jump pod, and through the API's port-forward, by real OpenSSH to a real sshd in a pod."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from lambdactl.backends.kubernetes import jump
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import JumpAddress, Target
from lambdactl.backends.kubernetes.reach import find_rank, own_key, ssh_argv
from lambdactl.backends.kubernetes.resources import JOBS, SECRETS, SERVICES
from lambdactl.errors import CapacityError, LambdactlError, SpecError
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.unit.kube.bed import ROOT, limited

SSHD = Path("/usr/sbin/sshd")
needs_pods = pytest.mark.skipif(
    usable() is not None or not SSHD.exists() or shutil.which("ssh") is None,
    reason=str(usable() or "needs OpenSSH's server and client"),
)
RANK = """\
mkdir -p /run/sshd /k; cp /keys/* /k; chmod 600 /k/*; cp /k/id_ed25519.pub /k/authorized_keys
exec /usr/sbin/sshd -D -e -p 12345 -o HostKey=/k/host_ed25519 -o AuthorizedKeysFile=/k/authorized_keys \\
  -o StrictModes=no -o UsePAM=no -o PidFile=none -f /dev/null
"""


@pytest.fixture
def real() -> Iterator[FakeCluster]:
    nodes = [FakeNode("n1", external_ip="127.0.0.1"), FakeNode("n2", external_ip="127.0.0.1")]
    with FakeCluster(nodes, mode="process") as found:
        yield found


def put_run(cluster: FakeCluster, name: str = "train") -> None:
    """A run of one rank as it stands in the cluster: Job, Secret with its keys, and a pod with sshd."""
    labels = {"app.kubernetes.io/managed-by": "lambdactl", "lambdactl.dev/run": name, "lambdactl.dev/run-id": "id-1"}
    data = {}
    for kind in ("id", "host"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        data[f"{kind}_ed25519"] = base64.b64encode(key.export_private_key("openssh")).decode()
        data[f"{kind}_ed25519.pub"] = base64.b64encode(key.export_public_key("openssh")).decode()
    cluster.put(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-ssh", "labels": labels}, "data": data}
    )
    container = {
        "name": "main", "image": "x", "command": ["sh", "-c", RANK],
        "volumeMounts": [{"name": "keys", "mountPath": "/keys"}],
        "readinessProbe": {"tcpSocket": {"port": 12345}},
    }  # fmt: skip
    pod = {"restartPolicy": "Never", "containers": [container], "terminationGracePeriodSeconds": 1,
           "volumes": [{"name": "keys", "secret": {"secretName": f"{name}-ssh"}}]}  # fmt: skip
    facts = {"lambdactl.dev/run-facts": json.dumps({"nodes": 1, "ssh_port": 12345})}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"completions": 1, "parallelism": 1, "completionMode": "Indexed", "backoffLimit": 0, "template": template}
    metadata = {"name": name, "labels": labels, "annotations": facts}
    cluster.put({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})


def ready(cluster: FakeCluster, name: str = "train") -> None:
    def find() -> bool:
        pods = [p for p in cluster.store.all("pods") if p["metadata"]["name"].startswith(name)]
        return any(
            c["type"] == "Ready" and c["status"] == "True" for p in pods for c in p["status"].get("conditions") or []
        )

    cluster.wait(find, timeout=60)


def argv(target: Target, folder: Path, *command: str, key: str = "train", rank: int = 0) -> list[str]:
    async def inside() -> list[str]:
        async with open_client(target) as client:
            found = await find_rank(client, key, rank)
            assert found is not None
            return await ssh_argv(client, found, command, folder)

    return asyncio.run(asyncio.wait_for(inside(), 120))


def ssh(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=env)


def free_node_port() -> int:
    return 30000 + os.getpid() % 2700


def keys(cluster: FakeCluster) -> list[str]:
    secret = cluster.get(SECRETS, jump.KEYS) or {}
    return base64.b64decode(secret["data"]["authorized_keys"]).decode().splitlines()


@needs_pods
def test_through_the_jump_pod(real: FakeCluster, tmp_path: Path) -> None:
    put_run(real)
    ready(real)
    target = replace(limited(real, tmp_path), proxy_jump=JumpAddress(port=free_node_port()))
    words = argv(target, tmp_path / "s", "echo $0 from $(hostname)")
    done = ssh(words)
    assert (done.returncode, "from train-0" in done.stdout) == (0, True), done.stderr
    # Again: the same pod, and the key once.
    assert ssh(argv(target, tmp_path / "s", "true")).returncode == 0
    assert len(keys(real)) == 1
    assert keys(real)[0].startswith('restrict,port-forwarding,command="/bin/false" ssh-ed25519 ')
    # The jump pod is for forwarding only.
    proxy = next(word for word in words if word.startswith("ProxyCommand=")).removeprefix("ProxyCommand=")
    plain = proxy.split(" -W ")[0] + " 127.0.0.1 id"
    assert "uid=" not in ssh(["sh", "-c", plain]).stdout
    # A stranger's key is not let in, and a second user's comes and goes without the first one's.
    stranger = tmp_path / "t"
    own_key(stranger)
    foreign = proxy.replace(str(tmp_path / "s" / "jump_ed25519"), str(stranger / "jump_ed25519"))
    assert "Permission denied" in ssh(["sh", "-c", foreign.replace("%h:%p", "127.0.0.1:1")]).stderr
    _, second = own_key(stranger)
    _, first = own_key(tmp_path / "s")

    async def come_and_go() -> list[bool]:
        async with open_client(target) as client:
            await jump.allow(client, second, "b@there")
            await jump.allow(client, second, "b@there")
            count = len(keys(real))
            assert count == 2
            return [await jump.leave(client, second), await jump.leave(client, first)]

    assert asyncio.run(come_and_go()) == [True, False]
    real.wait(
        lambda: not [key for key in real.store.objects if key[2].startswith("lambdactl-jump") and key[0] != "events"]
    )


@needs_pods
def test_through_the_api_where_there_is_no_jump_pod(real: FakeCluster, tmp_path: Path) -> None:
    put_run(real)
    ready(real)
    target = limited(real, tmp_path)
    environment = {"LAMBDACTL_KUBECONFIG": str(tmp_path / "kubeconfig")}
    done = ssh(argv(target, tmp_path / "s", "head -c 300000 /dev/zero | wc -c; exit 7", key="id-1"), **environment)
    assert (done.returncode, done.stdout.strip()) == (7, "300000"), done.stderr
    assert not [name for name in real.left() if "jump" in name]


@needs_pods
def test_the_command(real: FakeCluster, home: Path, tmp_path: Path) -> None:
    """From a fleet that was applied here: the run by its name, and the jump pod goes with the fleet."""
    put_run(real)
    ready(real)
    limited(real, tmp_path)
    config = home / "config" / "lambdactl" / "config.yml"
    config.parent.mkdir(parents=True)
    port = free_node_port() - 1
    kubeconfig = f"kubeconfig: {{filename: {tmp_path}/kubeconfig}}"
    config.write_text(f"backends:\n- type: kubernetes\n  {kubeconfig}\n  proxy_jump: {{port: {port}}}\n")
    fleet = tmp_path / "f.dstack.yml"
    fleet.write_text("type: fleet\nname: ff\nnodes: 0..\nbackends: [kubernetes]\n")
    lambdactl = str(Path(sys.executable).with_name("lambdactl"))
    assert ssh([lambdactl, "apply", "-f", str(fleet)]).returncode == 0
    done = ssh([lambdactl, "ssh", "train", "--rank", "0", "sh", "-c", "hostname; exit 5"])
    assert (done.returncode, done.stdout) == (5, "train-0\n"), done.stderr
    ansible = str(Path(sys.executable).with_name("ansible"))
    done = subprocess.run(
        [ansible, "-i", str(fleet), "run_train", "-m", "ansible.builtin.raw", "-a", "hostname"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "train-0\n" in done.stdout.partition(">>")[2], done.stdout + done.stderr
    wrong = ssh([lambdactl, "ssh", "nothing"])
    assert (wrong.returncode, "no run named nothing is on fake" in wrong.stderr) == (2, True)
    real.remove(JOBS, "train", propagationPolicy="Background")
    real.wait(lambda: not [k for k in real.store.objects if k[0] == "pods" and k[2].startswith("train")])
    assert ssh([lambdactl, "delete", "-f", str(fleet), "-y"]).returncode == 0
    real.wait(lambda: not [k for k in real.store.objects if k[2].startswith("lambdactl-jump") and k[0] != "events"])
    assert real.left() == []


def refused(cluster: FakeCluster, target: Target, folder: Path, **options: Any) -> LambdactlError:
    with pytest.raises(LambdactlError) as caught:
        argv(target, folder, "true", **options)
    return caught.value


def test_what_can_be_wrong_with_a_rank(cluster: FakeCluster, target: Target, tmp_path: Path) -> None:
    put_run(cluster)
    cluster.rank("train", 0).placed()
    error = refused(cluster, target, tmp_path)
    assert isinstance(error, CapacityError)
    assert "rank 0 of train does not run (its pod is Pending)" in str(error)
    error = refused(cluster, target, tmp_path, rank=3)
    assert isinstance(error, SpecError)
    assert "has no rank 3; its ranks are 0 to 0" in str(error)
    cluster.rank("train", 0).run()
    cluster.remove(SECRETS, "train-ssh")
    assert "takes no SSH" in str(refused(cluster, target, tmp_path))


def test_what_can_be_wrong_with_the_jump_pod(
    cluster: FakeCluster, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jump, "READY_WITHIN", 1.0)
    put_run(cluster)
    cluster.rank("train", 0).run()
    metadata = {"name": "other", "namespace": "kube-system"}
    spec = {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30022}]}
    cluster.put({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    for port, why in ((30022, "is taken by another Service"), (22, "is not one of the cluster's NodePorts")):
        error = refused(cluster, replace(target, proxy_jump=JumpAddress(port=port)), tmp_path)
        assert isinstance(error, SpecError)
        assert why in str(error)
    free = replace(target, proxy_jump=JumpAddress())
    assert "ContainerCreating" in str(refused(cluster, free, tmp_path))
    cluster.pod("lambdactl-jump").image_error()
    assert "ErrImagePull: failed to pull image" in str(refused(cluster, free, tmp_path))
    assert (cluster.get(SERVICES, jump.NAME) or {})["spec"]["ports"][0]["nodePort"]


def test_a_port_that_is_not_reached_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jump, "REACHED_WITHIN", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(CapacityError, match=r"does not take connections to its port \d+ .* through the firewall"):
            asyncio.run(jump.reached(jump.Jump("127.0.0.1", taken.getsockname()[1], "ssh-ed25519 x")))
