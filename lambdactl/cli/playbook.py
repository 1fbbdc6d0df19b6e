"""`lambdactl playbook path|list|run`: this project's playbooks, wherever it is installed, by plain ansible-playbook."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lambdactl import content
from lambdactl.cli.console import print_table
from lambdactl.errors import EXIT_OK, LambdactlError, SpecError

# What ansible.cfg says, for a user who has a configuration of their own in ANSIBLE_CONFIG.
_PATHS = {
    "ANSIBLE_ROLES_PATH": "roles",
    "ANSIBLE_INVENTORY_PLUGINS": "inventory_plugins",
    "ANSIBLE_ACTION_PLUGINS": "playbooks/action_plugins",
}
_ENABLED = "lambda_fleet,ansible.builtin.script,plain_yaml,ansible.builtin.host_list"


def path() -> int:
    """Print the folder of the playbooks."""
    print(content.path("playbooks"))
    return EXIT_OK


def list_playbooks() -> int:
    """Print each playbook's name and what it does."""
    print_table(("NAME", "WHAT IT DOES"), [(file.stem, summary(file)) for file in playbooks()])
    return EXIT_OK


def run(name: str, arguments: Sequence[str]) -> int:
    """Become `ansible-playbook PLAYBOOK ARGUMENTS`, with this project's ansible.cfg; does not return.

    Raises:
        SpecError: there is no such playbook.
        LambdactlError: ansible-playbook is not installed beside this Python.
    """
    names = [file.stem for file in playbooks()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."
        raise SpecError(f"there is no playbook {name}; {hint}")
    # Installed by pipx or uv, only our own script is on PATH; ansible-playbook lies beside this interpreter.
    program = Path(sys.executable).with_name("ansible-playbook")
    if not program.is_file():
        raise LambdactlError(f"{program} is missing.", remedy="Install lambdactl again: ansible-core comes with it.")
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    os.execve(program, [str(program), str(content.path("playbooks", f"{name}.yml")), *arguments], environment())


def playbooks() -> list[Path]:
    """The playbooks, by name."""
    return sorted(content.path("playbooks").glob("*.yml"))


def summary(file: Path) -> str:
    """The first sentence of a playbook's opening comment."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("# "):
            break
        lines.append(line[2:].strip())
        if line.rstrip().endswith((".", ":")):
            break
    return " ".join(lines).partition(":")[0].rstrip(".")


def environment() -> dict[str, str]:
    """The environment in which ansible-playbook finds this project's roles and plugins; the user's settings win."""
    ours = {"ANSIBLE_CONFIG": str(content.path("ansible.cfg"))}
    if "ANSIBLE_CONFIG" in os.environ:
        ours = {name: str(content.path(*part.split("/"))) for name, part in _PATHS.items()}
        ours["ANSIBLE_INVENTORY_ENABLED"] = _ENABLED
    beside = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])}
    return {**ours, **os.environ, **beside}
