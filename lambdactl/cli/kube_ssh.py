"""`lambdactl ssh RUN [--rank N] [COMMAND]` for a run on Kubernetes."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lambdactl.cli.console import note
from lambdactl.cli.kube_runs import candidates
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.state import state_dir

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.config import Target


def run(key: str, command: Sequence[str], fleet_option: str | None, rank: int | None) -> int | None:
    """Replace this process by ssh to a rank.

    Args:
        key: a run's name or id.
        command: what to run there; empty is a login. ``--rank N`` may stand at its beginning.
        fleet_option: the fleet, where one is named.
        rank: which rank; 0 where none is given.

    Returns:
        None where it can only be a host of an SSH fleet.

    Raises:
        SpecError: there is no such run, and it cannot be a host either.
    """
    targets, certain = _targets(key, fleet_option)
    if not targets:
        return None
    rank, command = _rank(rank, list(command))
    words = [shlex.join(command)] if len(command) > 1 else command
    try:
        argv = asyncio.run(_argv(targets, key, rank, words))
    except LambdactlError as error:
        if certain:
            raise
        note(f"{error} (looking for a host of that name instead)")
        return None
    if argv is None and certain:
        raise SpecError(f"no run named {key} is on {', '.join(target.name for target in targets)}; see `lambdactl ps`.")
    if argv is None:
        return None
    try:
        os.execvp(argv[0], argv)
    except FileNotFoundError:
        raise SpecError("the ssh program was not found; install OpenSSH's client.") from None


def _targets(key: str, option: str | None) -> tuple[list[Target], bool]:
    """The clusters that may have the run, and whether it cannot be a host of an SSH fleet."""
    fleets, certain = candidates(key, option)
    found = {(target.name, target.namespace): target for fleet in fleets for target in fleet.targets}
    return list(found.values()), certain


def _rank(rank: int | None, command: list[str]) -> tuple[int, list[str]]:
    """The rank, and the command without the option that may stand before it."""
    if rank is None and command and command[0].partition("=")[0] == "--rank":
        text = command[0].partition("=")[2] if "=" in command[0] else (command[1:2] or [""])[0]
        if not text.isdigit():
            raise SpecError(f"'--rank' must be a number, not '{text}'.")
        return int(text), command[1 if "=" in command[0] else 2 :]
    return rank or 0, command


async def _argv(targets: Sequence[Target], key: str, rank: int, command: Sequence[str]) -> list[str] | None:
    from lambdactl.backends.kubernetes.client import open_client
    from lambdactl.backends.kubernetes.reach import find_rank, ssh_argv

    for target in targets:
        async with open_client(target, patience=10) as client:
            found = await find_rank(client, key, rank)
            if found is not None:
                return await ssh_argv(client, found, command, state_dir() / "kubernetes")
    return None
