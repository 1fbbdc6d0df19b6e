"""`runner.pyz node-shell`: forced command of the fleet's node-to-node key.

When the caller's environment names a run that is active here, this process joins the run's control group before it
becomes what was asked for: mpirun's daemons on peers then have the run's variables and end with it. Where the run lives
in a container, it becomes `enter`, which executes in there. Otherwise it just executes.
"""

from __future__ import annotations

import os
import pwd

from . import control, paths, repair
from .env import RUN_VARIABLE
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def _join(run: str, command: str | None) -> dict[str, str]:
    """Variables of the run that this process is now a part of; empty when there is no such active run."""
    if not paths.RUN_ID.fullmatch(run):
        return {}
    try:
        answer = control.call(run, {"op": "adopt"}, timeout=3.0) or {}
    except NodeError:
        return {}
    if answer.get("container") or (not answer and os.path.exists(paths.run_dir(run) + "/container.json")):
        enter(run, command)
    variables = answer.get("env")
    return {str(name): str(value) for name, value in variables.items()} if isinstance(variables, dict) else {}


def enter(run: str, command: str | None) -> None:
    """Become `enter`: root's work, because the engine is root's; the login user has sudo, as for everything here."""
    sudo = [] if os.geteuid() == 0 or paths.ROOT else ["sudo", "-n"]
    words = [*sudo, *repair.runner_argv(run), "enter", run, *([] if command is None else ["--", command])]
    os.execvp(words[0], words)


def execute(command: str | None, variables: dict[str, str]) -> NoReturn:
    """Become the command, or without one a login shell. Raises NodeError (internal)."""
    shell = pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    name = os.path.basename(shell)
    try:
        if command is None:
            os.execve(shell, ["-" + name], variables)
        os.execve(shell, [name, "-c", command], variables)
    except OSError as error:
        raise NodeError("internal", f"cannot execute {shell}: {error.strerror}") from None


def main(args: list[str]) -> NoReturn:
    """Become the command that the SSH client asked for, or a login shell."""
    if args:
        raise NodeError("bad-request", "usage: runner.pyz node-shell")
    command = os.environ.pop("SSH_ORIGINAL_COMMAND", None)
    variables = {**os.environ, **_join(os.environ.get(RUN_VARIABLE, ""), command)}
    execute(command, variables)
