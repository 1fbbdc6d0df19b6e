"""`lambdactl gc`: remove what runs have left and nobody needs: in clusters, on SSH hosts, and here."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from lambdactl.cli.options import FleetOption, YesOption

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.fleet import KubeFleet
    from lambdactl.fleet import Fleet

IN_CLUSTERS, ON_HOSTS = 3600.0, 14 * 86400.0
"""Seconds for which something has to be left: on SSH hosts the records of ended runs are their logs, to be read."""


@dataclass(frozen=True)
class _Find:
    """Something to remove."""

    fleet: str
    what: str
    why: str
    remove: Callable[[], Awaitable[None]]
    key: str = ""


def gc(
    fleet: FleetOption = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="TIME", help="Left for so long (default: 1h in clusters, 14d on SSH hosts)."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: YesOption = False,
) -> None:
    """Remove what ended runs and dead controllers have left; never anything of an active run."""
    sys.exit(asyncio.run(_gc(fleet, older_than, dry_run=dry_run, yes=yes)))


async def _gc(option: str | None, older_than: str | None, *, dry_run: bool, yes: bool) -> int:
    from lambdactl import spec
    from lambdactl.cli import kube_runs
    from lambdactl.cli.console import confirm, note, print_table
    from lambdactl.cli.select import known_fleets
    from lambdactl.errors import EXIT_OK, EXIT_UNREACHABLE, LambdactlError
    from lambdactl.state import State

    seconds = None if older_than is None else spec.parse_duration(older_than, name="--older-than") or 0
    with State() as state:
        clusters = kube_runs.fleets(option, state)
        only = bool(clusters) and kube_runs.only_kubernetes(option, state)
        hosts = [] if only else known_fleets(option, state)
    found: list[_Find] = []
    silent: list[str] = []
    for cluster in clusters:
        try:
            new = await _of_cluster(cluster, IN_CLUSTERS if seconds is None else seconds)
            # Several fleets may be of one namespace.
            found += [item for item in new if item.key not in {other.key for other in found}]
        except LambdactlError as error:
            silent.append(f"{cluster.name}: {error}")
    for one in hosts:
        new, problems = await _of_hosts(one, ON_HOSTS if seconds is None else seconds)
        found, silent = found + new, silent + problems
    if found:
        print_table(("FLEET", "WHAT", "WHY"), [(item.fleet, item.what, item.why) for item in found])
    for problem in silent:
        note(f"not looked at: {problem}")
    if not found:
        note("nothing is left over." if not silent else "nothing is left over elsewhere.")
    elif not dry_run and confirm(f"Remove {len(found)} of them?" if len(found) > 1 else "Remove it?", yes=yes):
        for item in found:
            await item.remove()
        note(f"{len(found)} removed.")
    return EXIT_UNREACHABLE if silent else EXIT_OK


async def _of_cluster(fleet: KubeFleet, older_than: float) -> list[_Find]:
    """Objects in the cluster, and the keys here of runs that are gone from it."""
    from functools import partial

    from lambdactl.backends.kubernetes.strays import Strays, remove, strays
    from lambdactl.state import State, state_dir

    seen = await strays(fleet, older_than=older_than)
    found = [
        _Find(fleet.name, stray.title, stray.why, partial(remove, fleet, Strays([stray])), stray.uid)
        for stray in seen.objects
    ]
    with State() as state:
        here = {run.run_id for run in state.runs() if run.fleet_id == fleet.id}
    for run in sorted(here - seen.runs):
        folder = state_dir() / "kubernetes" / run
        if folder.is_dir() and time.time() - folder.stat().st_mtime >= older_than:

            async def forget(path: str = str(folder)) -> None:
                shutil.rmtree(path, ignore_errors=True)

            found.append(_Find(fleet.name, f"the SSH key of run {run}, here", "its run is gone", forget, run))
    return found


async def _of_hosts(fleet: Fleet, older_than: float) -> tuple[list[_Find], list[str]]:
    """Records (with their logs) of runs that have ended, on each host; and why hosts gave no answer."""
    from lambdactl.cli.console import ago
    from lambdactl.run.nodes import call_all, same
    from lambdactl.run.status import fetch_runs
    from lambdactl.transport import open_transport

    names = [host.name for host in fleet.hosts]
    async with open_transport(fleet) as transport:
        runs, problems = await fetch_runs(transport, names)
    found = []
    for status in runs:
        ended = status.finished_at or status.submitted_at
        if not status.final or time.time() - ended < older_than:
            continue

        async def forget(run: str = status.run_id) -> None:
            async with open_transport(fleet) as transport:
                await call_all(transport, same(names, op="forget", run=run))
                await call_all(transport, same(names, op="gc"))  # what only this run needed of the uploads

        what = f"the record and logs of {status.name} on {' '.join(status.hosts.values()) or 'all hosts'}"
        found.append(_Find(fleet.name, what, f"it has ended ({status.state}, {ago(ended)})", forget))
    return found, [f"{fleet.name}/{name}: {problem.sentence}" for name, problem in problems.items()]
