"""`lambdactl apply -f FILE`: a fleet file makes a fleet ready, a task file runs a task, a dev
environment is brought up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lambdactl import spec
from lambdactl.errors import SpecError

_DEFAULT_FILES = (".dstack.yml", ".dstack.yaml")


@dataclass(frozen=True)
class Options:
    """The options of `apply`, as they were given."""

    yes: bool = False
    detach: bool = False
    name: str | None = None
    env: tuple[str, ...] = ()
    fleet: str | None = None
    all_ranks: bool = False
    max_duration: str | None = None
    node_timeout: str = "2m"
    log_dir: Path | None = None
    ingress: str | None = None
    ready_timeout: str = "10m"
    ports: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    cpu: str | None = None
    gpu: str | None = None
    memory: str | None = None
    disk: str | None = None
    profile: str | None = None
    no_profile: bool = False
    check: bool = False
    force: bool = False
    engine: str = "auto"
    pull_timeout: str | None = None
    wait: bool | None = None
    max_wait: str | None = None
    keep: bool = False
    fired: bool = False
    """Not an option: the command is the pod that starts a scheduled run (cli/kube_fire.py)."""


def run(file: str | None, options: Options) -> int:
    """Read the file and hand it to the command of its kind."""
    path = find_file(file)
    if path == "-" and not options.yes:
        raise SpecError("a file from standard input leaves nobody to answer questions; pass -y as well.")
    parsed = spec.load(path)
    if isinstance(parsed, spec.FleetSpec):
        from lambdactl.cli import apply_fleet

        return apply_fleet.run(parsed, path, options)
    _refuse_misplaced(path, options)
    from lambdactl.cli.run_options import effective

    parsed = effective(parsed, options)
    if isinstance(parsed, spec.TaskSpec):
        from lambdactl.cli import apply_task

        return apply_task.run(parsed, options)
    if isinstance(parsed, spec.DevEnvironmentSpec):
        from lambdactl.cli import apply_dev

        return apply_dev.run(parsed, options)
    from lambdactl.cli import apply_service

    return apply_service.run(parsed, options)


def _refuse_misplaced(path: str, options: Options) -> None:
    """A file of a run with a fleet's options: who asks for a dry run must not get a run."""
    for name in ("check", "force"):
        if getattr(options, name):
            raise SpecError(
                f"--{name} is for fleet files; without it and without -y, what a run will do is shown and asked first.",
                filename=path,
            )
    if options.log_dir is not None and not options.detach:
        from lambdactl.run.screen import log_folder

        log_folder(options.log_dir)  # before there is a run, whose log could then not be written


def find_file(file: str | None) -> str:
    """The file to apply.

    Raises:
        SpecError: none was named and there is no default one here.
    """
    if file is not None:
        return file
    for name in _DEFAULT_FILES:
        if Path(name).is_file():
            return name
    raise SpecError("no file was named and there is no .dstack.yml here; pass -f FILE.")
