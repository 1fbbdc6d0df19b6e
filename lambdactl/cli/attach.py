"""`lambdactl attach RUN`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from lambdactl.cli.finding import found_run
from lambdactl.cli.following import follow_to_end
from lambdactl.cli.logs import parse_since, ranks_wanted


def run(
    key: str, fleet: str | None, *, rank: int | None, all_ranks: bool, since: str | None, log_dir: Path | None
) -> int:
    """Follow a run until its end; the exit code is the run's."""

    async def body() -> int:
        async with found_run(key, fleet) as found:
            return await follow_to_end(
                found.transport,
                found.status.run_id,
                found.status.name,
                found.hosts,
                ranks=ranks_wanted(found.status, found.hosts, rank, all_ranks=all_ranks),
                since=parse_since(since),
                log_dir=log_dir,
            )

    return asyncio.run(body())
