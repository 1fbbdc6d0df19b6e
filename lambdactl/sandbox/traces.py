"""What this user's other programs remember of a sandbox's nodes, and must forget when the nodes are gone.

A node that is made again has a new host key; remembering the old one would refuse it, as it should for a real host.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lambdactl.errors import LambdactlError
from lambdactl.fleet import Fleet, ssh
from lambdactl.sandbox.model import JUMP
from lambdactl.state import State


def forget_nodes(fleet_file: Path, nodes: Iterable[str]) -> None:
    """Forgets the host keys of nodes that were made again, and closes the connection through a jump host that was."""
    fleet = _fleet(fleet_file)
    if fleet is None:
        return
    nodes = list(nodes)
    if JUMP in nodes:
        _close(fleet)
    known_hosts = Path(fleet.known_hosts).expanduser()
    if not known_hosts.exists():
        return
    jump = fleet.hosts[0].route.hops[0]
    for node in nodes:
        entry = f"[{jump.hostname}]:{jump.port}" if node == JUMP else node
        _quietly(["ssh-keygen", "-R", entry, "-f", str(known_hosts)])
    known_hosts.with_name(known_hosts.name + ".old").unlink(missing_ok=True)


def forget_fleet(fleet_file: Path) -> None:
    """Forgets the whole fleet: its connection, its host keys, and the controller's record of it."""
    fleet = _fleet(fleet_file)
    if fleet is None:
        return
    _close(fleet)
    shutil.rmtree(Path(fleet.control_dir).expanduser(), ignore_errors=True)
    Path(fleet.known_hosts).expanduser().unlink(missing_ok=True)
    with State() as state:
        state.forget_fleet(fleet.id)


def _fleet(fleet_file: Path) -> Fleet | None:
    """The fleet of the file; None when there is none, or somebody else wrote into it."""
    try:
        return Fleet.load(fleet_file) if fleet_file.exists() else None
    except LambdactlError:
        return None


def _close(fleet: Fleet) -> None:
    _quietly(ssh.close_argv(fleet, fleet.hosts[0].route.hops))


def _quietly(argv: list[str]) -> None:
    subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False)
