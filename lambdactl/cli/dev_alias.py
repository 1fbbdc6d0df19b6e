"""The aliases of dev environments on this machine: made when one is up, taken away when it is over."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable

from lambdactl.cli.console import confirm, note
from lambdactl.errors import LambdactlError
from lambdactl.fleet import Fleet
from lambdactl.fleet.ssh import prepare
from lambdactl.run import aliases, ssh_include
from lambdactl.run.aliases import Alias, Entry
from lambdactl.run.status import RunStatus
from lambdactl.state import state_dir


def include(*, yes: bool) -> bool:
    """Have the user's ~/.ssh/config include ours: with `yes`, or when the user says so; whether it does now."""
    try:
        return _include(yes=yes)
    except LambdactlError as error:
        note(f"{error} Put '{ssh_include.include_line()}' at the top of your ssh_config yourself.")
        return False


def _include(*, yes: bool) -> bool:
    path = ssh_include.user_config()
    if ssh_include.is_included():
        return True
    if not yes and not sys.stdin.isatty():
        note(f"{path} is left alone: nobody can be asked here; -y adds the line '{ssh_include.include_line()}'.")
        return False
    question = f"Add the line '{ssh_include.include_line()}' at the top of {path}, for `ssh RUN` and IDEs?"
    if not confirm(question, yes=yes):
        return False
    ssh_include.add()
    return True


def make(fleet: Fleet, status: RunStatus) -> None:
    """Write the alias of a dev environment that is up. Raises LambdactlError."""
    dev, host = status.dev or {}, status.hosts[0]
    proxy = aliases.proxy_command(fleet, fleet.host(host), status.run_id, aliases.public_key())
    prepare(fleet)
    aliases.put(Alias(status.run_id, status.name, fleet.id, host, str(dev["user"]), str(dev["host_key"]), proxy))


def forget(wanted: Collection[str]) -> None:
    """Take away the aliases of these runs."""
    _drop(lambda entry: entry.run_id in wanted)


def forget_fleet(fleet_id: str) -> None:
    """Take away the aliases of a fleet that is gone."""
    _drop(lambda entry: entry.fleet_id == fleet_id)


def sweep_cluster(fleet_id: str, active: Collection[str]) -> None:
    """Take away the aliases of a Kubernetes fleet's runs, all of whose clusters answered, but for the active runs."""
    _drop(lambda entry: entry.fleet_id == fleet_id and entry.run_id not in active)


def sweep(fleet: Fleet, runs: Iterable[RunStatus], unanswered: Collection[str]) -> None:
    """Take away what a look at the whole fleet shows to be over: ended, or unknown to a node that answered."""
    active = {status.run_id for status in runs if not status.final}
    answered = {host.name for host in fleet.hosts} - set(unanswered)
    _drop(
        lambda entry: (
            entry.fleet_id == fleet.id
            and entry.run_id not in active
            and (entry.host in answered or entry.host not in {host.name for host in fleet.hosts})
        )
    )


def clear() -> int:
    """Take away every alias and the line in the user's ssh_config."""
    names = [entry.name for entry in aliases.drop(lambda _entry: True)]
    removed = ssh_include.remove()
    line = "is without our line again" if removed else "had no line of ours"
    note(f"{len(names)} aliases taken away; {ssh_include.user_config()} {line}.")
    return 0


def _drop(wanted: aliases.Wanted) -> None:
    """Never fails a command: an alias that stays leads nowhere, and the next command takes it away."""
    try:
        gone: list[Entry] = aliases.drop(wanted)
        for entry in gone:
            shutil.rmtree(state_dir() / "kubernetes" / entry.run_id, ignore_errors=True)
        if gone and not aliases.entries():
            ssh_include.remove()
    except LambdactlError as error:
        note(str(error))
