"""A dev environment as a run: the task that it is carried out as, what its node is told, and the link for an IDE.

The run's commands are `setup` and `init`, a sign that they have ended, and a wait that never ends. Nothing here talks
to anybody.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from lambdactl.spec import DevEnvironmentSpec, TaskSpec

# The sign is an escape sequence that no terminal shows (lambdactl/node/presence.py takes it out of the log).
UP = r"printf '\033]1337;lambdactl-up\007'"
IDLE = "exec tail -f /dev/null"
IDES = {"vscode": "VS Code", "cursor": "Cursor", "windsurf": "Windsurf", "zed": "Zed"}


def as_task(spec: DevEnvironmentSpec, *, up: str = UP) -> TaskSpec:
    """The task file that does the same: one node, `init`, then nothing until it is stopped.

    Args:
        up: the command that tells that `init` has ended.
    """
    common = {field.name for field in dataclasses.fields(TaskSpec)} & {f.name for f in dataclasses.fields(spec)}
    values = {name: getattr(spec, name) for name in common if name != "type"}
    return TaskSpec(type="task", nodes=1, commands=(*spec.setup, *spec.init, up, IDLE), **values)


def job_key(spec: DevEnvironmentSpec) -> dict[str, Any]:
    """The key `dev` of its JobSpec (lambdactl/node/dev.py)."""
    return {
        "ide": spec.ide,
        "inactivity": spec.inactivity_duration,
        "digest": digest(spec),
    }


def digest(spec: DevEnvironmentSpec) -> str:
    """Tells whether two files differ in what cannot be changed while it runs."""
    text = dataclasses.replace(spec, inactivity_duration=None, source=type(spec.source)("", ""), name=None)
    return hashlib.sha256(repr(text).encode()).hexdigest()[:16]


def link(ide: str | None, run: str, directory: str) -> str | None:
    """What opens the IDE in the run's working directory; None without an IDE.

    Sources: the URL handlers of VS Code's Remote-SSH extension (Cursor and Windsurf have the same) and of Zed.
    """
    if ide is None:
        return None
    path = quote(directory if directory.startswith("/") else f"/{directory}")
    return f"zed://ssh/{run}{path}" if ide == "zed" else f"{ide}://vscode-remote/ssh-remote+{run}{path}"


def described(dev: Mapping[str, Any], run: str) -> dict[str, Any]:
    """What `run get --json` says of a dev environment, from the `dev` part of its RankState."""
    names = ("ide", "user", "directory", "inactivity", "up_at", "sessions", "idle_since")
    directory = dev.get("directory")
    url = link(dev.get("ide"), run, str(directory)) if directory else None
    return {**{name: dev.get(name) for name in names}, "url": url}
