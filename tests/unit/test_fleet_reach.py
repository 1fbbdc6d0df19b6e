"""The renderings of a route at work: real ssh and real Ansible through real jump hosts (sshd on loopback)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lambdactl.fleet import ssh
from lambdactl.fleet.model import Fleet
from tests.bed import Bed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with Bed(3, jumps=2) as bed:
        monkeypatch.setenv("HOME", str(bed.home))
        yield bed


@pytest.fixture
def fleet(bed: Bed) -> Iterator[Fleet]:
    path = bed.directory / "bed.dstack.yml"
    path.write_text(yaml.safe_dump(bed.spec(), sort_keys=False))
    fleet = Fleet.load(path)
    ssh.prepare(fleet)
    yield fleet
    subprocess.run(ssh.close_argv(fleet, fleet.hosts[0].route.hops), capture_output=True, check=False)


def sh(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ansible(fleet: Fleet, *args: str) -> str:
    program = str(Path(sys.executable).with_name("ansible"))
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
    }
    argv = [program, "all", "-i", str(fleet.path), *args]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_login_at_each_jump_host_serves_ssh_and_ansible(bed: Bed, fleet: Fleet) -> None:
    hops = fleet.hosts[0].route.hops
    sh(ssh.jump_master_argv(fleet, hops, batch=True))
    sh(ssh.check_argv(fleet, hops))
    for host in fleet.hosts:
        assert sh(ssh.node_argv(fleet, host, "echo", "over", batch=True)) == "over\n"
    assert ansible(fleet, "-m", "ansible.builtin.ping").count("pong") == 3
    assert [bed.jump_logins(0), bed.jump_logins(1)] == [1, 1]
    # Ansible keeps connections to the nodes (it would not, had it seen a ControlPath in our arguments).
    logins = bed.node_logins().total()
    assert ansible(fleet, "-m", "ansible.builtin.ping").count("pong") == 3
    assert bed.node_logins().total() - logins < 3
    assert [bed.jump_logins(0), bed.jump_logins(1)] == [1, 1]
    assert sorted(path.name[0] for path in Path(os.path.expanduser(fleet.control_dir)).iterdir()).count("j") == 1


def test_without_the_shared_connection_each_logs_in_by_itself(bed: Bed, fleet: Fleet) -> None:
    assert sh(ssh.node_argv(fleet, fleet.hosts[0], "echo", "over", batch=True)) == "over\n"
    assert [bed.jump_logins(0), bed.jump_logins(1)] == [1, 1]


def test_the_ssh_config_works_and_shares_the_socket(bed: Bed, fleet: Fleet) -> None:
    config = bed.home / "ssh_config"
    config.write_text(ssh.ssh_config(fleet))
    hops = fleet.hosts[0].route.hops
    sh(ssh.jump_master_argv(fleet, hops, batch=True))
    for host in fleet.hosts:
        assert sh(["ssh", "-F", str(config), "-o", "BatchMode=yes", host.name, "echo over"]) == "over\n"
    assert bed.jump_logins(1) == 1


def test_host_keys_are_learnt_in_the_fleets_own_file_and_a_changed_one_is_refused(bed: Bed, fleet: Fleet) -> None:
    host = fleet.hosts[0]
    sh(ssh.node_argv(fleet, host, "true", batch=True))
    known = Path(os.path.expanduser(fleet.known_hosts))
    lines = known.read_text().splitlines()
    assert len(lines) == 3  # two jump hosts and the node
    other = sh(["ssh-keyscan", "-t", "ed25519", "-p", str(host.route.target.port), host.route.target.hostname]).split()[
        -1
    ]
    changed = other[:-6] + "AAAAAA"
    known.write_text("\n".join(line.replace(other, changed) for line in lines) + "\n")
    done = subprocess.run(
        ssh.node_argv(fleet, host, "true", batch=True), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 255
    assert "HOST IDENTIFICATION HAS CHANGED" in done.stderr
