"""`lambdactl ssh HOST [COMMAND]` and `lambdactl ssh-config`: plain OpenSSH with the fleet's own settings."""

from __future__ import annotations

import os
import shlex
import subprocess
from difflib import get_close_matches
from pathlib import Path

from lambdactl.cli import kube_ssh
from lambdactl.cli.select import choose_fleet
from lambdactl.errors import SpecError
from lambdactl.fleet import Fleet, FleetHost
from lambdactl.fleet import ssh as ssh_options
from lambdactl.state import State


def run(host: str, command: list[str], fleet_option: str | None, rank: int | None = None) -> int:
    """Replace this process by ssh, so that the terminal, signals and the exit code are ssh's own."""
    if command[:1] == ["--"]:  # as ssh itself takes it, and many write it before a command with options
        command = command[1:]
    if (code := kube_ssh.run(host, command, fleet_option, rank)) is not None:
        return code
    if rank is not None:
        raise SpecError("'--rank' is for runs on Kubernetes; on an SSH fleet, name the host.")
    with State() as state:
        fleet = choose_fleet(fleet_option, state)
    target = _host(fleet, host)
    Path(fleet.control_dir).expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = ssh_options.node_argv(fleet, target, *([shlex.join(command)] if len(command) > 1 else command))
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        raise SpecError("the ssh program was not found; install OpenSSH's client.") from None


def config(fleet_option: str | None) -> int:
    """Print the fleet's ssh_config."""
    with State() as state:
        fleet = choose_fleet(fleet_option, state)
    Path(fleet.control_dir).expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
    print(ssh_options.ssh_config(fleet), end="")
    return 0


def forget_connections(fleet: Fleet) -> None:
    """Close what `ssh` may have left open to the jump hosts."""
    for hops in {host.route.hops for host in fleet.hosts if host.route.hops}:
        subprocess.run(ssh_options.close_argv(fleet, hops), capture_output=True, check=False)


def _host(fleet: Fleet, name: str) -> FleetHost:
    if name.isdigit() and int(name) < len(fleet.hosts):
        return fleet.hosts[int(name)]
    for host in fleet.hosts:
        if host.name == name:
            return host
    near = get_close_matches(name, [host.name for host in fleet.hosts], 1)
    hint = f"did you mean {near[0]}?" if near else f"its hosts: {', '.join(h.name for h in fleet.hosts[:8])}."
    raise SpecError(f"the fleet {fleet.name} has no host {name}; {hint}")
