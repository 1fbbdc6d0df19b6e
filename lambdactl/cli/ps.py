"""`lambdactl ps`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from lambdactl.cli import dev_alias, kube_runs, kube_services
from lambdactl.cli.console import ago, duration, note, print_json, state_text, table
from lambdactl.cli.select import known_fleets
from lambdactl.cli.services import print_services
from lambdactl.errors import EXIT_OK, EXIT_UNREACHABLE
from lambdactl.fleet import Fleet
from lambdactl.run.service_control import ServiceStatus, fetch_services
from lambdactl.run.status import RunStatus, fetch_runs, pull_text
from lambdactl.state import State

_INTERVAL = 2.0
_COLUMNS = ("NAME", "FLEET", "NODES", "STATE", "EXIT", "SUBMITTED", "DURATION", "REASON")


def run(fleet_option: str | None, *, all_runs: bool, watch: bool, as_json: bool) -> int:
    """Print the runs of the fleets; exit code 4 when no host of any fleet could be asked."""
    with State() as state:
        fleets = [] if kube_runs.only_kubernetes(fleet_option, state) else known_fleets(fleet_option, state)
    try:
        return asyncio.run(_run(fleets, fleet_option, all_runs=all_runs, watch=watch, as_json=as_json))
    except KeyboardInterrupt:
        return EXIT_OK


async def _run(fleets: Sequence[Fleet], option: str | None, *, all_runs: bool, watch: bool, as_json: bool) -> int:
    from contextlib import AsyncExitStack

    from lambdactl.transport import open_transport

    async with AsyncExitStack() as stack:
        transports = [(fleet, await stack.enter_async_context(open_transport(fleet))) for fleet in fleets]

        async def services() -> list[tuple[str, ServiceStatus]]:
            found = await asyncio.gather(*(fetch_services(t, [h.name for h in f.hosts]) for f, t in transports))
            on_hosts = [(f.name, s) for (f, _), (every, _p) in zip(transports, found, strict=True) for s in every]
            in_clusters, _silent = await kube_services.all_services(option)  # who is silent, the runs' answer says
            return on_hosts + in_clusters

        async def once() -> tuple[list[tuple[str, RunStatus]], dict[str, str], bool]:
            found = await asyncio.gather(*(fetch_runs(t, [h.name for h in f.hosts]) for f, t in transports))
            runs = [
                (f.name, status)
                for (f, _), (statuses, _p) in zip(transports, found, strict=True)
                for status in statuses
            ]
            problems = {
                f"{f.name}/{host}": p.sentence
                for (f, _), (_s, ps) in zip(transports, found, strict=True)
                for host, p in ps.items()
            }
            for (fleet, _), (statuses, unanswered) in zip(transports, found, strict=True):
                dev_alias.sweep(fleet, statuses, unanswered)
            answered = any(len(ps) < len(f.hosts) for (f, _), (_s, ps) in zip(transports, found, strict=True))
            in_clusters, silent, reached = await kube_runs.all_runs(option)
            runs, problems, answered = runs + in_clusters, problems | silent, answered or reached
            runs.sort(key=lambda item: item[1].submitted_at, reverse=True)
            return (runs if all_runs else _current(runs)), problems, answered

        runs, problems, answered = await once()
        if as_json and not watch:
            print_json(_document(runs, problems, await services()))
        elif as_json:
            while True:
                print(json.dumps(_document(runs, problems, await services())), flush=True)
                await asyncio.sleep(_INTERVAL)
                runs, problems, answered = await once()
        elif watch:
            await _watch(runs, problems, once)
        else:
            print_services(await services(), all_services=all_runs)
            _print(runs)
            for problem in problems.values():
                note(problem)
        return EXIT_OK if answered else EXIT_UNREACHABLE


def _document(
    runs: list[tuple[str, RunStatus]], problems: dict[str, str], services: list[tuple[str, ServiceStatus]]
) -> dict[str, Any]:
    """What --json prints; docs/commands.md describes it."""
    return {
        "runs": [{"fleet": fleet, **status.as_json()} for fleet, status in runs],
        "services": [{"fleet": fleet, **status.as_json()} for fleet, status in services],
        "unanswered": problems,
    }


async def _watch(runs: list[tuple[str, RunStatus]], problems: dict[str, str], once: Any) -> None:
    """Show the table again and again; hosts that do not answer are named when that changes."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from lambdactl.cli.console import out

    if not sys.stdout.isatty():
        told: dict[str, str] = {}
        while True:
            _print(runs)
            for problem in (text for host, text in problems.items() if told.get(host) != text):
                note(problem)
            told = problems
            await asyncio.sleep(_INTERVAL)
            runs, problems, _answered = await once()

    def shown() -> Group:
        return Group(_table(runs), *(Text(problem) for problem in problems.values()))

    with Live(shown(), console=out(), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(_INTERVAL)
            runs, problems, _answered = await once()
            live.update(shown(), refresh=True)


def _current(runs: list[tuple[str, RunStatus]]) -> list[tuple[str, RunStatus]]:
    """Those that have not ended; when there is none, the last one."""
    return [item for item in runs if not item[1].final] or runs[:1]


def _print(runs: list[tuple[str, RunStatus]]) -> None:
    from lambdactl.cli.console import out

    console = out()
    if not console.is_terminal:
        console.width = 10_000
    console.print(_table(runs))


def _table(runs: list[tuple[str, RunStatus]]) -> Any:
    return table(_COLUMNS, (_row(fleet, status) for fleet, status in runs))


def _row(fleet: str, status: RunStatus) -> tuple[object, ...]:
    started = min((rank.get("started_at") or 0 for rank in status.ranks if rank.get("started_at")), default=None)
    end = status.finished_at or time.time()
    return (
        status.name,
        fleet,
        status.nodes_num,
        state_text(status.state),
        "-" if status.exit_code is None else status.exit_code,
        ago(status.submitted_at),
        duration(end - started) if started else "-",
        (f"attempt {status.attempt}; " if status.attempt > 1 and not status.waits else "")
        + (status.message or status.reason or pull_text(status)),
    )
