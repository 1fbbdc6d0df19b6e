"""`lambdactl logs RUN`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from lambdactl import spec
from lambdactl.cli import kube_runs, kube_services, services
from lambdactl.cli.console import note
from lambdactl.cli.finding import Found, found_run
from lambdactl.errors import EXIT_OK, EXIT_UNREACHABLE, CapacityError, SpecError
from lambdactl.run.follow import Follower
from lambdactl.run.screen import LogOutput
from lambdactl.run.status import RunStatus


def run(
    key: str,
    fleet: str | None,
    *,
    rank: int | None,
    all_ranks: bool,
    since: str | None,
    follow: bool,
    log_dir: Path | None,
    replica: int | None = None,
) -> int:
    """Print what is kept of the log; with `follow`, go on until the run ends. Not 0 only when a log cannot be read."""
    moment = parse_since(since)
    check_choice(rank, all_ranks=all_ranks)
    try:
        code = kube_services.print_log(key, fleet, replica, since=moment, follow=follow, log_dir=log_dir)
    except KeyboardInterrupt:
        return EXIT_OK
    if code is not None:
        return code
    of_service = services.replica_of(key, fleet, replica)
    if of_service is None and replica is not None:
        raise SpecError(f"no service named {key} is known; --replica is for services, --rank for runs.")
    key = of_service or key

    async def body() -> int:
        async with kube_runs.found_run(key, fleet) as kubernetes:
            if kubernetes is not None:
                backend, ref = kubernetes
                ranks = kube_runs.ranks_wanted(ref, rank, all_ranks=all_ranks)
                return await kube_runs.print_log(backend, ref, ranks, since=moment, follow=follow, log_dir=log_dir)
        async with found_run(key, fleet) as found:
            return await _print(
                found, ranks_wanted(found.status, found.hosts, rank, all_ranks=all_ranks), moment, follow, log_dir
            )

    try:
        return asyncio.run(body())
    except KeyboardInterrupt:
        return EXIT_OK


def parse_since(text: str | None) -> float | None:
    """A moment, in seconds since the epoch, from a length of time ("10m") or an ISO 8601 date (local time by default).

    Raises:
        SpecError: it is neither.
    """
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        seconds = spec.parse_duration(text)
    except SpecError:
        seconds = None
    if seconds is None:
        raise SpecError(f"--since {text!r} is neither a length of time (30s, 10m, 2h) nor a date (2026-11-23T08:00).")
    return time.time() - seconds


def check_choice(rank: int | None, *, all_ranks: bool) -> None:
    """Raises SpecError where one rank and all of them are asked for."""
    if all_ranks and rank is not None:
        raise SpecError("--all shows every rank and --rank one of them; give one of the two options.")


def ranks_wanted(status: RunStatus, hosts: Mapping[int, str], rank: int | None, *, all_ranks: bool) -> list[int]:
    """The ranks to show: all, the one asked for, or rank 0.

    Raises:
        SpecError: the run has no such rank, or its node is not known here.
        CapacityError: it waits for its nodes, or for its time.
    """
    if status.waits:
        raise CapacityError(f"{status.name} has no nodes and no log yet: {status.message}.")
    if status.state == "scheduled":
        raise CapacityError(f"{status.name} has no log yet: it is started at its times, {status.message}.")
    if all_ranks:
        return sorted(hosts)
    wanted = 0 if rank is None else rank
    if wanted >= status.nodes_num or wanted < 0:
        raise SpecError(f"{status.name} has ranks 0 to {status.nodes_num - 1}, not {wanted}.")
    if wanted not in hosts:
        raise SpecError(
            f"the node of rank {wanted} does not answer ({'; '.join(status.unseen) or 'not in the fleet'})."
        )
    return [wanted]


async def _print(found: Found, ranks: list[int], since: float | None, follow: bool, log_dir: Path | None) -> int:
    output = LogOutput(ranks, directory=log_dir)
    follower = Follower(
        found.transport, found.status.run_id, found.hosts, output, show=ranks, since=since, follow=follow, notify=note
    )
    try:
        await follower.run()
    finally:
        output.close()
    failed = [cursor for cursor in follower.cursors.values() if cursor.last_problem and cursor.offset == 0]
    for cursor in failed:
        note(f"rank {cursor.rank} on {cursor.host}: {cursor.last_problem}")
    return EXIT_UNREACHABLE if failed else EXIT_OK
