"""The sandbox itself: who may connect to whom, systemd, repair, two side by side, and nothing left."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import LABEL, Sandbox, SandboxError
from lambdactl.sandbox.docker import docker, labelled

pytestmark = pytest.mark.sandbox

Up = Callable[..., Sandbox]


def ssh(cluster: Sandbox, node: str, command: str, known_hosts: Path) -> subprocess.CompletedProcess[str]:
    """Plain OpenSSH from this machine to a node through the jump host, with the sandbox's key."""
    options = [
        "-F", "none", "-i", str(cluster.identity_file), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={known_hosts}", "-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR",
    ]  # fmt: skip
    jump = f"ssh {' '.join(options)} -p {cluster.jump_port} -W [%h]:%p ubuntu@{cluster.jump_address}"
    return subprocess.run(
        ["ssh", *options, "-o", f"ProxyCommand={jump}", f"ubuntu@{node}", command],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


def can_connect(address: str, source: str = "") -> bool:
    try:
        with socket.create_connection((address, 22), timeout=3, source_address=(source, 0) if source else None):
            return True
    except OSError:
        return False


NODE_FACTS = [
    ("the host name is the node's name", "hostname", "worker-0"),
    ("systemd is PID 1", "cat /proc/1/comm", "systemd"),
    ("no unit failed", "systemctl is-system-running", "running"),
    ("the user is ubuntu", "id -un", "ubuntu"),
    ("sudo asks for no password", "sudo -n id -un", "root"),
    ("names resolve", "getent hosts worker-1 jump | wc -l", "2"),
    ("transient units run", "sudo -n systemd-run --quiet --wait --pipe --collect echo hello", "hello"),
    (
        "units may ask for limits that the container cannot give",
        "sudo -n systemd-run --quiet --wait --pipe --collect -p LimitMEMLOCK=infinity -p OOMScoreAdjust=-900 "
        "-p MemoryMax=256M -p LimitNOFILE=1048576 echo hello",
        "hello",
    ),
    ("packages can be installed", "test -e /usr/sbin/policy-rc.d || echo unrestricted", "unrestricted"),
]


@pytest.mark.parametrize(("command", "expected"), [case[1:] for case in NODE_FACTS], ids=[c[0] for c in NODE_FACTS])
def test_a_node_is_like_a_real_one(sandbox: Sandbox, tmp_path: Path, command: str, expected: str) -> None:
    done = ssh(sandbox, "worker-0", command, tmp_path / "known_hosts")
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr


def test_nodes_share_nothing_that_must_differ(sandbox: Sandbox) -> None:
    for path in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"):
        values = {sandbox.exec(node.name, ["cat", path], check=True).stdout for node in sandbox.nodes}
        assert len(values) == len(sandbox.nodes), path
        assert "" not in values


def test_workers_accept_ssh_only_from_inside(sandbox: Sandbox, tmp_path: Path) -> None:
    first, second = sandbox.workers
    probe = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{second.address}/22 && head -c 4 <&3'"
    assert sandbox.exec("jump", probe).stdout == "SSH-"
    assert sandbox.exec(first.name, probe).stdout == "SSH-"
    assert not can_connect(first.address), "from this machine, which has the gateway's address"
    assert not can_connect(first.address, source=_own_address()), "nor with another address of this machine"
    assert ssh(sandbox, first.name, "true", tmp_path / "known_hosts").returncode == 0, "but through the jump host"


def _own_address() -> str:
    """An address of this machine outside of Docker's networks; loopback's when it has no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only picks a route
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def test_workers_reach_the_package_mirror(sandbox: Sandbox) -> None:
    done = sandbox.exec(
        "worker-0", "apt-get update -qq && apt-cache policy openmpi-bin | grep -c Candidate", timeout=180
    )
    assert done.stdout.strip() == "1", done.stderr


def test_up_again_changes_nothing(sandbox: Sandbox) -> None:
    said: list[str] = []
    before = sandbox.fleet_file.stat().st_mtime_ns
    assert sandboxes.up(sandbox.name, progress=said.append) == sandbox
    assert said == []
    assert sandbox.fleet_file.stat().st_mtime_ns == before


def test_status_names_what_is_wrong(make_sandbox: Up) -> None:
    cluster = make_sandbox(workers=2)
    assert cluster.exec("worker-0", "command -v mpirun").returncode != 0, "Open MPI is left to provisioning"
    assert sandboxes.status(cluster.name).ready
    cluster.pause("worker-0")
    docker("rm", "--force", cluster.node("worker-1").container)
    found = sandboxes.status(cluster.name)
    assert not found.ready
    assert {node.name: node.state for node in found.nodes} == {
        "jump": "ready", "worker-0": "paused", "worker-1": "missing",
    }  # fmt: skip


def break_nothing_but_stop(cluster: Sandbox) -> None:
    cluster.stop("jump")


def kill_a_worker(cluster: Sandbox) -> None:
    cluster.kill("worker-0")


def pause_a_worker(cluster: Sandbox) -> None:
    cluster.pause("worker-0")


def remove_a_worker(cluster: Sandbox) -> None:
    docker("rm", "--force", cluster.node("worker-0").container)


def stop_a_workers_sshd(cluster: Sandbox) -> None:
    cluster.exec("worker-0", "systemctl stop ssh.service", check=True)


def remove_the_network(cluster: Sandbox) -> None:
    for node in cluster.nodes:
        cluster.kill(node.name)
    docker("network", "rm", cluster.network)


def cut_a_worker_off(cluster: Sandbox) -> None:
    docker("network", "disconnect", "--force", cluster.network, cluster.node("worker-0").container)


def lose_the_key(cluster: Sandbox) -> None:
    cluster.identity_file.unlink()


def lose_the_fleet_file(cluster: Sandbox) -> None:
    cluster.fleet_file.unlink()


BREAKS = [
    break_nothing_but_stop,
    kill_a_worker,
    pause_a_worker,
    remove_a_worker,
    stop_a_workers_sshd,
    remove_the_network,
    cut_a_worker_off,
    lose_the_key,
    lose_the_fleet_file,
]


def test_up_repairs_what_is_broken(make_sandbox: Up, tmp_path: Path) -> None:
    cluster = make_sandbox(workers=2)
    cluster.exec("worker-1", "echo kept > /var/lib/kept", check=True)
    for number, damage in enumerate(BREAKS):
        damage(cluster)
        again = sandboxes.up(cluster.name)
        assert again.jump_port == cluster.jump_port, damage.__name__
        assert [node.address for node in again.nodes] == [node.address for node in cluster.nodes], damage.__name__
        assert sandboxes.status(cluster.name).ready, damage.__name__
        for node in ("worker-0", "worker-1"):
            done = ssh(again, node, "hostname", tmp_path / f"known_hosts{number}")
            assert done.stdout.strip() == node, (damage.__name__, done.stderr)
        assert not can_connect(again.workers[0].address), damage.__name__
        assert again.exec("worker-1", "cat /var/lib/kept").stdout == "kept\n", damage.__name__
        cluster = again


def test_workers_are_added_and_removed(make_sandbox: Up) -> None:
    cluster = make_sandbox(workers=1)
    host_key = cluster.exec("worker-0", "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout
    for workers in (3, 1):
        cluster = sandboxes.up(cluster.name, workers)
        names = [f"worker-{index}" for index in range(workers)]
        assert [node.name for node in cluster.workers] == names
        assert [line.strip("- ") for line in cluster.fleet_file.read_text().splitlines() if "- worker" in line] == names
    assert cluster.exec("worker-0", "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout == host_key


def test_two_sandboxes_side_by_side_and_nothing_left(make_sandbox: Up, tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho fake\n")
    fake.chmod(0o755)
    one = make_sandbox(workers=1, files={"/usr/local/bin/nvidia-smi": fake})
    two = make_sandbox(workers=1)
    assert one.jump_port != two.jump_port
    assert one.subnet != two.subnet
    assert ssh(one, "worker-0", "nvidia-smi", tmp_path / "one").stdout == "fake\n"
    assert ssh(two, "worker-0", "command -v nvidia-smi", tmp_path / "two").returncode != 0
    foreign = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{two.workers[0].address}/22'"
    assert one.exec("worker-0", foreign).returncode != 0, "a sandbox reaches no other sandbox"
    for cluster in (one, two):
        for _ in range(2):
            sandboxes.down(cluster.name)
        assert labelled("container", cluster.name) == []
        assert labelled("network", cluster.name) == []
        assert not cluster.state_dir.exists()
        assert not sandboxes.status(cluster.name).exists
    volumes = docker("volume", "ls", "--quiet", "--filter", f"label={LABEL}={one.name}").stdout
    assert volumes == ""


def test_a_node_that_cannot_boot_is_named_with_its_journal(make_sandbox: Up) -> None:
    cluster = make_sandbox(workers=1)
    cluster.exec("worker-0", "echo Nonsense yes >> /etc/ssh/sshd_config && systemctl stop ssh.service", check=True)
    with pytest.raises(SandboxError, match=r"worker-0 is not ready: systemd says \w+, ssh\.service is") as caught:
        sandboxes.up(cluster.name, timeout=5)
    assert "Bad configuration option: Nonsense" in str(caught.value)
