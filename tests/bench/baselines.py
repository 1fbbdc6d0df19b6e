"""The usual tools on the same nodes, as fast as their documentation lets them be.

Ansible has pipelining, 32 forks, no facts, ControlPersist, curve25519 behind the jump host, and the shared connection
to the jump host opened before it starts: what performance guides ask for, and what this project's ansible.cfg and
inventory give to anybody who runs ansible-playbook on them.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from lambdactl import content
from lambdactl.fleet import ssh
from tests.bench.meter import BenchError, Meter, Sample, tool
from tests.bench.place import Place, at_home, ends, wait_for_stamps

UNREACHABLE = 4  # ansible-playbook's exit code when hosts could not be reached; they are counted as lost


class Ansible:
    """Tuned ansible-core on a place; `warm` keeps the nodes' connections from run to run."""

    def __init__(self, meter: Meter, place: Place, folder: Path) -> None:
        self.meter, self.place, self.folder = meter, place, folder
        with at_home(place) as fleet:
            self.nodes = len(fleet.hosts)
            self._open = shlex.join(ssh.jump_master_argv(fleet, fleet.hosts[0].route.hops, batch=True))
            self._check = shlex.join(ssh.check_argv(fleet, fleet.hosts[0].route.hops))

    def play(self, playbook: Path, *arguments: str, warm: bool) -> Sample:
        """Run a playbook to its end, opening the shared connection first where it is not open."""
        if not warm:
            disconnect(self.meter, self.place)
        argv = [tool("ansible-playbook"), "-i", str(self.place.fleet_file), *arguments, str(playbook)]
        line = f"{self._check} >/dev/null 2>&1 || {self._open} || exit 1; exec {shlex.join(argv)}"
        sample = self.meter.run(["/bin/sh", "-c", line], env=self.place.env, check=False)
        if sample.rc not in (0, UNREACHABLE):
            raise BenchError(f"ansible-playbook ended with {sample.rc}: {sample.out[-1500:]}{sample.err[-500:]}")
        return replace(sample, values={**sample.values, "lost": float(sample.out.count("UNREACHABLE!"))})

    def tasks(self, number: int, command: str = "/bin/true") -> Path:
        """A playbook of that many commands."""
        task = {"name": "Command", "ansible.builtin.command": {"argv": ["/bin/sh", "-c", command]}}
        plays = [{"hosts": "all", "gather_facts": False, "tasks": [task] * number}]
        path = self.folder / f"tasks-{number}.yml"
        path.write_text(yaml.dump(plays, Dumper=_Plain, sort_keys=False))
        return path

    def stamped(self, *, warm: bool) -> Sample:
        """One `command` on all nodes; seconds until it has run on the last one."""
        self.place.forget_stamps()
        playbook = self.tasks(1, self.place.stamp)
        return until_last(self.place, self.play(playbook, warm=warm), self.nodes)

    def roles(self) -> Sample:
        """Every role on every node."""
        return self.play(content.path("playbooks", "provision.yml"), "-e", "lambdactl_force=true", warm=True)


def disconnect(meter: Meter, place: Place) -> None:
    """End the connections that earlier runs left open; a socket without its master would be in a new one's way."""
    meter.end_processes()
    folder = Path(place.env["HOME"]) / ".ansible" / "cp"
    for path in folder.rglob("*"):
        if path.is_socket():
            path.unlink(missing_ok=True)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def until_last(place: Place, sample: Sample, nodes: int) -> Sample:
    """The same sample, with `seconds` until the stamp command ran on the last node, and how many nodes were lost."""
    stamps = wait_for_stamps(place, nodes)
    if not stamps:
        raise BenchError(f"the command ran on no node: {sample.err[-500:]}")
    values = {**sample.values, "lost": float(nodes - len(stamps))}
    return replace(sample, seconds=max(stamps) - sample.started, values=values)


def parallel_openssh(meter: Meter, place: Place) -> Sample:
    """One shared connection, then one ssh a node, all at once."""
    place.forget_stamps()
    with at_home(place) as fleet:
        opening = shlex.join(ssh.jump_master_argv(fleet, fleet.hosts[0].route.hops, batch=True))
        logins = [shlex.join(ssh.node_argv(fleet, host, place.stamp, batch=True)) for host in fleet.hosts]
    disconnect(meter, place)
    script = "\n".join([f"{opening} || exit 1", *(f"{login} &" for login in logins), "wait"])
    # From a file: one argument may have 128 KB (Linux's MAX_ARG_STRLEN), and 256 logins are longer.
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        sample = meter.run(["/bin/sh", file.name], env=place.env, check=False)
    return until_last(place, sample, len(logins))


PYTHON = "/usr/bin/python3 -I -S -c pass"


def floor(meter: Meter, place: Place, *, before: str = "") -> Sample:
    """asyncssh and nothing else; with `before` a command that runs before the one that is waited for."""
    place.forget_stamps()
    with at_home(place) as fleet:
        argv = module("floor", place_arguments(fleet, f"{before}; {place.stamp}" if before else place.stamp))
        return until_last(place, meter.run(argv, env=place.env), len(fleet.hosts))


def module(name: str, arguments: Sequence[str]) -> list[str]:
    """A program of this package."""
    return [tool("python"), "-m", f"tests.bench.{name}", *arguments]


def place_arguments(fleet: object, command: str) -> list[str]:
    """The arguments of `floor` and `perline`."""
    from lambdactl.fleet import Fleet

    assert isinstance(fleet, Fleet)
    jump, nodes = ends(fleet)
    first = nodes[0]
    words = [str(first.port), jump.hostname, str(jump.port), first.user or "", first.identity_file or "", command]
    return [*words, *(node.hostname for node in nodes)]


def plain_jump(meter: Meter, place: Place, folder: Path) -> Sample:
    """`ssh -J` for every node at once, as people write it; the figure `answered` counts those that had an answer."""
    with at_home(place) as fleet:
        jump, nodes = ends(fleet)
    config = folder / "plain_config"
    config.write_text(
        f"Host *\n  IdentityFile {nodes[0].identity_file}\n  IdentitiesOnly yes\n  BatchMode yes\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    hop = f"{jump.user}@{jump.hostname}:{jump.port}"
    lines = [
        f"ssh -F {config} -J {hop} -p {node.port} {node.user}@{node.hostname} echo answered 2>/dev/null &"
        for node in nodes
    ]
    sample = meter.run(["/bin/sh", "-c", "\n".join([*lines, "wait"])], env=place.env)
    return replace(sample, values={**sample.values, "answered": float(sample.out.count("answered"))})
