"""`runner.pyz node-shell`: forced command of the fleet's node-to-node key.

When the caller's environment names a run that is active here, this process joins the run's control group before it
becomes what was asked for: mpirun's daemons on peers then have the run's variables and end with it. Where the run lives
in a container, it becomes `enter`, which executes in there. Otherwise it just executes.
"""

from __future__ import annotations

import os
import pwd

from . import control, paths, repair, volumes
from .env import RUN_VARIABLE
from .errors import NodeError
from .launch import become, find_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

KEPT_PATH = "LAMBDACTL_KEPT_PATH"


def _join(run: str, command: str | None) -> dict[str, Any]:
    """What the run that this process is now a part of says; empty when there is no such active run.

    `env` are the run's variables here, `inside` is a process whose mount namespace the run's commands see, or None.
    """
    if not paths.is_run_id(run):
        return {}
    try:
        answer = control.call(run, {"op": "adopt"}, timeout=3.0) or {}
    except NodeError:
        return {}
    if answer.get("container") or (not answer and os.path.exists(paths.run_dir(run) + "/container.json")):
        enter(run, command)
    return answer


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
    answer = _join(os.environ.get(RUN_VARIABLE, ""), command)
    given = answer.get("env")
    own = {str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {}
    variables = {**os.environ, **own}
    if answer.get("inside"):
        _see_volumes(int(answer["inside"]), command, variables)
    execute(command, variables)


def _see_volumes(pid: int, command: str | None, variables: dict[str, str]) -> NoReturn:
    """Go on where the run's volumes are mounted; only root may, so this goes through sudo, and back to the user."""
    argv = ["python3", "-I", "-S", paths.self_path(), "enter-volumes", str(pid), str(os.getuid())]
    if command is not None:
        variables = {**variables, "SSH_ORIGINAL_COMMAND": command}
    if os.getuid() != 0:
        variables = {**variables, KEPT_PATH: variables.get("PATH", "")}  # sudo puts its own in the place of this one
        argv = ["sudo", "-n", "-E", *argv]
    try:
        os.execvpe(argv[0], argv, variables)
    except OSError as error:
        raise NodeError("internal", f"cannot execute {argv[0]}: {error.strerror}") from None


def enter_volumes(args: list[str]) -> NoReturn:
    """`runner.pyz enter-volumes PID UID`, as root: see what the process sees, then be the user again."""
    if len(args) != 2 or not all(word.isdigit() for word in args) or os.geteuid() != 0:
        raise NodeError("bad-request", "usage, as root: runner.pyz enter-volumes PID UID")
    directory = os.getcwd()
    user = find_user(args[1])
    try:
        volumes.join(int(args[0]))
        os.chdir(directory)
    except OSError as error:
        raise NodeError("internal", f"the run's volumes cannot be entered: {error.strerror}") from None
    become(user)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SUDO_")}
    variables.update(HOME=user.home, USER=user.name, LOGNAME=user.name, SHELL=user.shell)
    variables["PATH"] = variables.pop(KEPT_PATH, variables.get("PATH", ""))
    execute(variables.pop("SSH_ORIGINAL_COMMAND", None), variables)
