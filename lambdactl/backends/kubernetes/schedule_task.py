"""A schedule's run as files in a Secret: the task as it stands, and all that this machine has decided of it.

The file itself is not rewritten: the pod reads it as `apply` did here, with the same options and profile, and with the
variables, arguments and contents that were found here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdactl import spec
from lambdactl.node.cron import Cron
from lambdactl.run import interpolate
from lambdactl.run.content import RunContent, collect
from lambdactl.run.plan import Overrides
from lambdactl.spec import EnvVar, TaskSpec

from .fleet import KubeFleet
from .schedule_content import taken
from .schedule_objects import CONFIG, CONTENT

if TYPE_CHECKING:
    from .config import Target
    from .plan import KubePlan

_TASK, _FLEET, _PROFILES, _ABOUT = "task.yml", "fleet.yml", "profiles.yml", "about.json"
_SETTINGS = ("rdma_resource", "image", "queue")


def texts(
    task: TaskSpec,
    fleet: KubeFleet,
    plan: KubePlan,
    content: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    overrides: Overrides,
    profiles: Path | None,
) -> dict[str, bytes]:
    """The files of the Secret.

    Args:
        task: as the file, the options and the profile have it.
        plan: the run as it would be started now: its variables and logins have their values.
        content: what is to be known of what the runs take with them (schedule_content.py).
        options: those of `apply` that a run is made by.
        profiles: the file of profiles that was looked into here.
    """
    login = plan.run.task.registry_auth
    about = {
        "name": plan.run.run_name,
        "fleet": fleet.name,
        "cron": list(task.schedule.cron) if task.schedule else [],
        "options": dict(options),
        "arguments": list(overrides.args),
        "max_duration": overrides.max_duration,
        "node_timeout": overrides.node_timeout,
        "env": dict(plan.run.env),
        "login": None if login is None else [login.username, login.password],
        "content": list(content),
    }
    found = {
        _TASK: task.source.text.encode(),
        _FLEET: fleet.spec.source.text.encode(),
        CONFIG: config(plan.target).encode(),
        _ABOUT: json.dumps(about).encode(),
    }
    return found if profiles is None else {**found, _PROFILES: profiles.read_bytes()}


def config(target: Target) -> str:
    """Our own configuration file for the pod, whose login is its service account."""
    values = {name: value for name in _SETTINGS if (value := getattr(target, name)) is not None}
    if (volume := target.files_volume) is not None:
        size = {} if volume.size is None else {"size": f"{volume.size:g}GB"}
        values["files_volume"] = {"claim": volume.claim, "unused": volume.unused, **size}
    return json.dumps({"backends": [{"type": "kubernetes", "namespace": target.namespace, **values}]})


@dataclass(frozen=True, slots=True)
class Fired:
    """What a pod has to start.

    Attributes:
        task: without its schedule; its variables are among `overrides`.
        options: as `texts` was given them.
    """

    name: str
    cron: tuple[Cron, ...]
    task: TaskSpec
    fleet: KubeFleet
    overrides: Overrides
    options: Mapping[str, Any]

    def is_due(self, index: int, moment: float) -> bool:
        """Whether this expression, and none before it in the list, is due in the minute of this moment."""
        return next((number for number, cron in enumerate(self.cron) if cron.matches(moment)), None) == index


def read(folder: Path, scratch: Path, effective: Any) -> Fired:
    """The files of the Secret, where a pod has them.

    Args:
        scratch: a writable folder.
        effective: applies options and profile to a task (cli/run_options.py).

    Raises:
        SpecError: something in them is not valid (here, with this version).
    """
    about = json.loads((folder / _ABOUT).read_text())
    place = scratch / _TASK
    place.write_bytes((folder / _TASK).read_bytes())
    if (folder / _PROFILES).is_file():
        (scratch / ".dstack").mkdir(exist_ok=True)
        (scratch / ".dstack" / _PROFILES).write_bytes((folder / _PROFILES).read_bytes())
    task = effective(spec.load(str(place), kind="task"), about["options"])
    login = about["login"]
    if login is not None and task.registry_auth is not None:
        username, password = map(interpolate.escaped, login)
        task = replace(task, registry_auth=replace(task.registry_auth, username=username, password=password))
    parsed = replace(spec.load(str(folder / _FLEET), kind="fleet"), name=about["fleet"], regions=None)
    overrides = Overrides(
        name=about["name"],
        env=tuple(EnvVar(name, value) for name, value in about["env"].items()),
        max_duration=about["max_duration"],
        node_timeout=float(about["node_timeout"]),
        args=tuple(about["arguments"]),
    )
    return Fired(
        about["name"],
        tuple(map(Cron, about["cron"])),
        replace(task, schedule=None, env=(), fleets=None),
        KubeFleet.from_spec(parsed, path=None),
        overrides,
        about["options"],
    )


def content_of(fired: Fired, folder: Path, scratch: Path) -> RunContent:
    """What the run takes with it: as it was handed over, and a repository of a URL as it is now.

    Raises:
        LambdactlError: Git cannot get the repository, or the files volume has lost something.
    """
    about = json.loads((folder / _ABOUT).read_text())
    found = taken(about["content"], folder / CONTENT, scratch / CONTENT)
    if fired.task.repos and fired.task.repos[0].url:
        fetched = collect(replace(fired.task, files=()))
        found = RunContent(found.files, fetched.repo, {**found.blobs, **fetched.blobs})
    return found
