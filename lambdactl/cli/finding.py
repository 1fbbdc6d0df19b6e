"""From a run's name to its nodes: opens the transports of the fleets that may hold it and asks them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from lambdactl.cli.select import locate_run, not_found
from lambdactl.errors import ConnectionFailed
from lambdactl.fleet import Fleet
from lambdactl.run.nodes import Problem
from lambdactl.run.status import RunStatus, fetch_runs
from lambdactl.state import State
from lambdactl.transport.api import FailureKind

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport


@dataclass(frozen=True)
class Found:
    """A run with an open transport to its fleet; `hosts` are inventory names by rank, as far as they answered."""

    fleet: Fleet
    transport: Transport
    status: RunStatus
    hosts: dict[int, str]


@asynccontextmanager
async def found_run(key: str, fleet_option: str | None) -> AsyncIterator[Found]:
    """Find a run by name (the newest) or id.

    Raises:
        SpecError: no node knows it.
        ConnectionFailed: no node could be asked, or none that answers knows it.
    """
    from lambdactl.transport import open_transport

    with State() as state:
        ref = locate_run(key, fleet_option, state)
        missing = not_found(key, state)
    problems: dict[str, Problem] = {}
    asked = 0
    for fleet in ref.fleets:
        names = list(ref.hosts or [host.name for host in fleet.hosts])
        async with open_transport(fleet) as transport:
            runs, unanswered = await fetch_runs(transport, names, ref.key)
            asked += len(names)
            problems |= unanswered
            if runs:
                status = runs[0]
                yield Found(fleet, transport, status, _hosts(status, names))
                return
    if problems and len(problems) == asked:
        first = next(iter(problems.values()))
        raise ConnectionFailed(first.sentence)
    silent = [problem for problem in problems.values() if problem.code in get_args(FailureKind)]
    if silent:  # it may be there
        names_of = ", ".join(problem.host for problem in silent)
        raise ConnectionFailed(
            f"no run named {key} is known on the nodes that answer. {names_of} did not: {silent[0].sentence}"
        )
    raise missing


def _hosts(status: RunStatus, names: list[str]) -> dict[int, str]:
    """Rank to host; where the hosts were remembered in rank order, also those that did not answer."""
    hosts = status.hosts
    if len(names) == status.nodes_num:
        hosts = {**dict(enumerate(names)), **hosts}
    return dict(sorted(hosts.items()))
