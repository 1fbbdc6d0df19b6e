"""The options of the action lambdactl_run, which are the variables of playbooks/run_task.yml (docs/ansible.md)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdactl.errors import SpecError
from lambdactl.run.admission import Patience
from lambdactl.run.container import check_engine
from lambdactl.run.plan import NODE_TIMEOUT, Overrides
from lambdactl.spec import EnvVar, parse_duration, parse_env_item, parse_name

_ON_INTERRUPT = ("stop", "detach")


@dataclass(frozen=True)
class TaskOptions:
    """The options of lambdactl_run, checked; they are documented in docs/ansible.md."""

    task_file: str
    overrides: Overrides
    wait: bool
    all_ranks: bool
    show_log: bool
    log_dir: Path | None
    on_interrupt: str
    patience: Patience


def task_options(arguments: Mapping[str, Any], truth: Callable[[Any], bool]) -> TaskOptions:
    """Check the options of a playbook.

    Args:
        truth: Ansible's reading of a boolean, which may be a text.

    Raises:
        SpecError: one sentence that names the variable.
    """
    file = str(arguments.get("task_file") or "")
    if not file:
        raise SpecError("run_task.yml needs the variable task_file, the path of a task file: -e task_file=FILE.")
    on_interrupt = str(arguments.get("on_interrupt") or "stop")
    if on_interrupt not in _ON_INTERRUPT:
        raise SpecError(f"run_on_interrupt {on_interrupt!r} is not one of {', '.join(_ON_INTERRUPT)}.")
    name = arguments.get("run_name")
    log_dir = arguments.get("log_dir")
    return TaskOptions(
        task_file=file,
        overrides=Overrides(
            name=parse_name(str(name), name="run_name") if name else None,
            env=env_items(arguments.get("env")),
            max_duration=_seconds(arguments.get("max_duration"), "run_max_duration"),
            node_timeout=float(_seconds(arguments.get("node_timeout"), "run_node_timeout") or NODE_TIMEOUT),
            container_engine=check_engine(str(arguments.get("engine") or "auto"), name="run_engine"),
            pull_timeout=_seconds(arguments.get("pull_timeout"), "run_pull_timeout"),
            args=_words(arguments.get("args")),
        ),
        wait=truth(arguments.get("wait", True)),
        all_ranks=truth(arguments.get("all_ranks", False)),
        show_log=truth(arguments.get("show_log", True)),
        log_dir=Path(str(log_dir)).expanduser().absolute() if log_dir else None,
        on_interrupt=on_interrupt,
        patience=_patience(arguments, truth),
    )


def _words(value: Any) -> tuple[str, ...]:
    """The variable run_args: a list, or a text that is split as a shell does."""
    if not value:
        return ()
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise SpecError(f"run_args cannot be split into words: {error}.") from None
    if not isinstance(value, list | tuple):
        raise SpecError("run_args must be a list of arguments, or a text.")
    return tuple(str(item) for item in value)


def _patience(arguments: Mapping[str, Any], truth: Callable[[Any], bool]) -> Patience:
    limit = _seconds(arguments.get("max_queue"), "run_max_queue")
    return Patience(waits=truth(arguments.get("queue") or False) or limit is not None, limit=limit)


def env_items(value: Any) -> tuple[EnvVar, ...]:
    """The variable run_env: a mapping, a list of K=V, or a text with one K=V a line; K alone takes the value from the
    environment of ansible-playbook, which is the way for secrets.

    Raises:
        SpecError: it is none of these.
    """
    if not value:
        return ()
    if isinstance(value, Mapping):
        value = [f"{key}={_scalar(str(key), item)}" for key, item in value.items()]
    lines = value.splitlines() if isinstance(value, str) else value
    if not isinstance(lines, list | tuple):
        raise SpecError("run_env must be a mapping, a list of K=V, or a text with one K=V a line.")
    return tuple(parse_env_item(str(line).strip(), name="run_env") for line in lines if str(line).strip())


def _scalar(key: str, value: Any) -> str:
    if isinstance(value, Mapping | list | tuple) or value is None:
        raise SpecError(f"run_env: the value of {key} must be a text or a number.")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(text: Any, name: str) -> int | None:
    return None if text in (None, "") else parse_duration(text, name=name)
