"""`${{ ... }}` of dstack's files: run.args and groups in commands, secrets and env where values are meant.

`$${{ ... }}` is an escape and becomes `${{ ... }}`. What names none of the known things is left to the shell.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lambdactl.errors import SpecError
from lambdactl.spec import EnvVar, TaskSpec, line_in, merge_env, placed, resolve_env
from lambdactl.spec.container import RegistryAuth

_REFERENCE = re.compile(r"(\$?)\$\{\{\s*([^{}]*?)\s*\}\}")
_SECRET = re.compile(r"secrets\.([A-Za-z0-9_-]{1,200})")
_ENV = re.compile(r"env\.([A-Za-z_][A-Za-z0-9_]*)")
_GROUP = re.compile(r"groups\[(\d{1,9})\]\.nodes\[(\d{1,9})\]\.IP_ADDRESS", re.ASCII)
_KNOWN = re.compile(r"(run\.args|secrets\.|env\.|groups\[).*", re.DOTALL)


def _fill(text: str, value: Callable[[str], str | None]) -> str:
    """Replace what `value(name)` knows; None leaves the reference as it stands."""

    def one(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:] if _KNOWN.fullmatch(match[2]) else match[0]
        found = value(match[2])
        return match[0] if found is None else found

    return _REFERENCE.sub(one, text) if "${{" in text else text


def escaped(text: str) -> str:
    """A text that `value` and `with_addresses` turn back into this one, whatever references it seems to have."""
    return _REFERENCE.sub(lambda match: f"${match[0]}" if _KNOWN.fullmatch(match[2]) else match[0], text)


def references(text: str) -> list[str]:
    """The names that a text refers to, escapes left out."""
    return [match[2] for match in _REFERENCE.finditer(text) if not match[1]]


def with_args(task: TaskSpec, arguments: Sequence[str]) -> TaskSpec:
    """The task with `${{ run.args }}` in its commands replaced by the arguments, each quoted for the shell.

    Raises:
        SpecError: there are arguments that no command takes, or a command refers to a secret.
    """
    lists = [task.commands, *(group.commands for group in task.groups or ())]
    names = [name for commands in lists for command in commands for name in references(command)]
    secret = next((name for name in names if name.startswith("secrets.")), None)
    if secret is not None:
        raise SpecError(
            f"a command refers to {secret}; secrets reach a run by its environment: write "
            f"'NAME=${{{{ {secret} }}}}' under 'env' and use $NAME.",
            filename=task.source.filename,
            line=line_in(task, "groups" if task.groups else "commands"),
        )
    if arguments and "run.args" not in names:
        raise SpecError(
            f"arguments are given ({shlex.join(arguments)[:80]}), but no command takes them; "
            "write ${{ run.args }} where they belong.",
            filename=task.source.filename,
            line=line_in(task, "groups" if task.groups else "commands"),
        )
    words = {"run.args": shlex.join(arguments)}

    def filled(commands: tuple[str, ...]) -> tuple[str, ...]:
        # The escape of a groups reference stays until the addresses are known.
        return tuple(_fill_only(command, words) for command in commands)

    groups = task.groups and tuple(replace(group, commands=filled(group.commands)) for group in task.groups)
    return replace(task, commands=filled(task.commands), groups=groups)


def _fill_only(text: str, words: Mapping[str, str]) -> str:
    return re.sub(
        r"(?<!\$)\$\{\{\s*([^{}]*?)\s*\}\}", lambda match: words.get(match[1], match[0]), text
    )  # fmt: skip


def with_addresses(commands: Sequence[str], groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Commands with `${{ groups[i].nodes[j].IP_ADDRESS }}` filled in, and escapes taken off.

    Args:
        groups: the addresses of each group's nodes.
    """

    def value(name: str) -> str | None:
        match = _GROUP.fullmatch(name)
        if match is None or int(match[1]) >= len(groups) or int(match[2]) >= len(groups[int(match[1])]):
            return None
        return groups[int(match[1])][int(match[2])]

    return tuple(_fill(command, value) for command in commands)


def value(text: str, where: str, *, secrets: Callable[[str], str | None], env: Mapping[str, str] | None = None) -> str:
    """A value of the file with `${{ secrets.X }}`, and where `env` is given `${{ env.X }}`, filled in.

    Args:
        where: the place in the file, for errors.
        secrets: a secret's value by its name; None: it is not set.

    Raises:
        SpecError: a secret or a variable is not set. The value is never part of the message.
    """

    def look_up(name: str) -> str | None:
        if match := _SECRET.fullmatch(name):
            found = secrets(match[1])
            if found is None:
                raise SpecError(
                    f"{where} refers to the secret {match[1]}, which is not set here; set it by "
                    f"`lambdactl secret set {match[1]}`, or in the environment as LAMBDACTL_SECRET_{match[1]}."
                )
            return found
        match = _ENV.fullmatch(name) if env is not None else None
        if match and env is not None:
            if match[1] not in env:
                raise SpecError(f"{where} refers to env.{match[1]}, which 'env' does not have; add it there.")
            return env[match[1]]
        return None

    return _fill(text, look_up)


def env_values(env: Sequence[EnvVar], secrets: Callable[[str], str | None]) -> tuple[EnvVar, ...]:
    """The variables of a file with their secrets; those that come from the caller's environment are left alone."""
    return tuple(
        variable
        if variable.value is None
        else EnvVar(variable.name, value(variable.value, f"'env' ({variable.name})", secrets=secrets))
        for variable in env
    )


def environment(
    task: TaskSpec,
    secrets: Callable[[str], str | None],
    *,
    given: Sequence[EnvVar] = (),
    around: Sequence[EnvVar] = (),
) -> dict[str, str]:
    """The variables of a run; a later layer wins: what is `around` it (its fleet's), its file's, those `given` to it.

    Raises:
        SpecError: a secret is not set, or the caller's environment lacks a variable that has no value; with its place.
    """
    mine, theirs = {variable.name for variable in task.env}, {variable.name for variable in given}
    with placed(task, "env"):
        own = env_values(task.env, secrets)
        resolve_env(tuple(variable for variable in own if variable.name not in theirs), os.environ)
    outer = env_values([variable for variable in around if variable.name not in mine], secrets)
    return resolve_env(merge_env(outer, own, tuple(given)), os.environ)


def login(task: TaskSpec, env: Mapping[str, str], secrets: Callable[[str], str | None]) -> RegistryAuth | None:
    """The login of a registry with its references filled in: secrets, the run's variables, else the caller's.

    Raises:
        SpecError: one of them is not set.
    """
    if (auth := task.registry_auth) is None:
        return None
    known = {**os.environ, **env}
    with placed(task, "registry_auth"):
        return RegistryAuth(
            username=value(auth.username, "'registry_auth' (username)", secrets=secrets, env=known),
            password=value(auth.password, "'registry_auth' (password)", secrets=secrets, env=known),
        )
