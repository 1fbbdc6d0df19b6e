"""What the ranks of a run execute: the file's commands, of each group its own, or an entrypoint with its arguments."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lambdactl.run import groups, interpolate
from lambdactl.run.plan import join_commands
from lambdactl.run.tools import prelude
from lambdactl.spec import TaskSpec

_ADDRESS = "@lambdactl-address-{}@"
"""Stands for a rank's address, which the entrypoint puts in its place when it is known."""


def scripts(task: TaskSpec) -> dict[str, str]:
    """The scripts by their file names: ``script``, or one a group."""
    names = [_ADDRESS.format(rank) for rank in range(task.nodes)]
    places = groups.addresses(task, names)
    if not task.groups:
        return {"script": _script(task, task.commands, places)}
    return {file_name(index): _script(task, group.commands, places) for index, group in enumerate(task.groups)}


def file_name(group: int) -> str:
    """The file of a group's script."""
    return f"script-{group}"


def of_rank(task: TaskSpec, rank: int) -> str:
    """The file that a rank executes."""
    for index, group in enumerate(task.groups or ()):
        if rank < group.nodes:
            return file_name(index)
        rank -= group.nodes
    return "script"


def _script(task: TaskSpec, commands: Sequence[str], places: Sequence[Sequence[str]]) -> str:
    commands = interpolate.with_addresses(commands, places)
    if task.entrypoint:
        # As in Docker: the words as they are, the commands as their arguments, and no shell between.
        return f"exec {shlex.join([*shlex.split(task.entrypoint), *commands])}\n"
    return join_commands([*prelude(task), *commands])
