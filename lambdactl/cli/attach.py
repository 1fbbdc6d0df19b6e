"""`lambdactl attach RUN`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from lambdactl.cli import dev_alias, dev_session, kube_runs, services
from lambdactl.cli.console import note
from lambdactl.cli.finding import Found, found_run
from lambdactl.cli.following import follow_to_end
from lambdactl.cli.logs import check_choice, parse_since, ranks_wanted
from lambdactl.run.ports import choose, forwarded, wanted


def run(
    key: str,
    fleet: str | None,
    *,
    rank: int | None,
    all_ranks: bool,
    since: str | None,
    log_dir: Path | None,
    yes: bool = False,
    ports: Sequence[str] = (),
) -> int:
    """Follow a run until its end, with its ports forwarded meanwhile; the exit code is the run's.

    A service is reached on a local port until Ctrl-C.
    """
    check_choice(rank, all_ranks=all_ranks)
    code = services.attach(key, fleet)
    if code is not None:
        return code

    async def body() -> int:
        async with kube_runs.found_run(key, fleet) as kubernetes:
            if kubernetes is not None:
                backend, ref = kubernetes
                ranks = kube_runs.ranks_wanted(ref, rank, all_ranks=all_ranks)
                moment, status = parse_since(since), ref.status
                local = [] if status.final else kube_runs.local_ports(status.name, status.ranks, ports)
                if status.dev is not None and not status.final:
                    from lambdactl.cli import kube_dev

                    return await kube_dev.attach(backend, ref, since=moment, log_dir=log_dir, yes=yes, ports=local)
                return await kube_runs.follow_to_end(
                    backend, ref, ranks=ranks, since=moment, log_dir=log_dir, ports=local
                )
        async with found_run(key, fleet) as found:
            local = [] if found.status.final else choose(wanted(found.status.ranks, ports))
            async with forwarded(found.transport, local, note):
                if found.status.dev is not None and not found.status.final:
                    return await _to_dev_environment(found, parse_since(since), log_dir, yes=yes)
                return await follow_to_end(
                    found.transport,
                    found.status.run_id,
                    found.status.name,
                    found.hosts,
                    ranks=ranks_wanted(found.status, found.hosts, rank, all_ranks=all_ranks),
                    since=parse_since(since),
                    log_dir=log_dir,
                    images=found.status.state == "pulling",
                )

    return asyncio.run(body())


async def _to_dev_environment(found: Found, since: float | None, log_dir: Path | None, *, yes: bool) -> int:
    """Its link, its alias and its session again, on this machine."""
    status = found.status
    included = dev_alias.include(yes=yes)
    place = dev_session.Place(found.fleet, found.transport, status.run_id, status.name, status.hosts[0], included)
    return await dev_session.stay(place, since=since, log_dir=log_dir)
