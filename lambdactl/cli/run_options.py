"""What the command line and a profile change in a run's file: resources, policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lambdactl import spec
from lambdactl.cli.apply import Options
from lambdactl.errors import SpecError
from lambdactl.spec import profiles

RunSpec = spec.TaskSpec | spec.DevEnvironmentSpec | spec.ServiceSpec


def effective(run: RunSpec, options: Options) -> Any:
    """The run of a file with its profile and the options `--cpu`, `--gpu`, `--memory`, `--disk` applied.

    Raises:
        SpecError: there is no such profile, or a value is not valid.
    """
    return _with_resources(_with_profile(run, options), options)


def seconds_of(option: str, text: str | None) -> int | None:
    """The seconds of an option that is a length of time; None where it was not given. Raises SpecError."""
    return None if text is None else spec.parse_duration(text, name=option)


def profiles_file(run: RunSpec) -> Path | None:
    """The file of profiles that a run's file is looked up in: here, beside the file, or at home."""
    filename = run.source.filename
    beside = [] if filename.startswith("<") else [Path(filename).resolve().parent]
    return profiles.find([Path.cwd(), *beside, Path.home()])


def _with_profile(run: RunSpec, options: Options) -> Any:
    if options.no_profile:
        return run
    path = profiles_file(run)
    if path is None:
        if options.profile:
            raise SpecError(f"there is no profile {options.profile}: no .dstack/profiles.yml is here or at home.")
        return run
    chosen = profiles.choose(profiles.load(path), options.profile, path)
    return run if chosen is None else profiles.apply(run, chosen, profiles.keys_of(run.source.text))


def _with_resources(run: RunSpec, options: Options) -> Any:
    given: dict[str, Any] = {}
    if options.cpu is not None:
        given["cpu"] = spec.parse_cpu(options.cpu, name="--cpu")
    if options.gpu is not None:
        given["gpu"] = spec.parse_gpu(options.gpu, name="--gpu")
    if options.memory is not None:
        given["memory"] = spec.parse_memory(options.memory, name="--memory")
    if options.disk is not None:
        given["disk"] = spec.parse_memory(options.disk, name="--disk")
    if not given:
        return run
    if getattr(run, "groups", None):
        raise SpecError(
            f"--{next(iter(given))} cannot be used with 'groups': each group has its own 'resources'.",
            filename=run.source.filename,
        )
    explicit = run.resources.explicit | frozenset(given)
    return replace(run, resources=replace(run.resources, **given, explicit=explicit))
