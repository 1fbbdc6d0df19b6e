"""`lambdactl stop RUN`."""

from __future__ import annotations

import asyncio

from lambdactl.cli import dev_alias, kube_runs, kube_schedule, services
from lambdactl.cli.console import confirm, counted, note
from lambdactl.cli.finding import Found, found_run
from lambdactl.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE
from lambdactl.run import schedule
from lambdactl.run.control import stop_run, wait_ended
from lambdactl.run.status import fetch_runs

# Beyond the grace time that the nodes give the processes themselves.
_PATIENCE = 60.0


async def _unschedule(found: Found, hosts: list[str], *, yes: bool) -> bool:
    """Remove the schedule that a run comes from, when there is one."""
    runs, _ = await fetch_runs(found.transport, hosts)
    if not any(status.state == "scheduled" and status.name == found.status.name for status in runs):
        return False
    if not confirm(f"Start {found.status.name} no more at its times?", yes=yes):
        return False
    return await schedule.remove(found.transport, hosts, found.status.name)


def run(key: str, fleet: str | None, *, abort: bool, yes: bool) -> int:
    """Stop a run or a service; 0 when nothing of it is left on any node that answers and all of them answered."""
    code = services.stop(key, fleet, yes=yes)
    if code is None:
        code = kube_schedule.stop(key, fleet, yes=yes)
    if code is not None:
        return code

    async def body() -> int:
        async with kube_runs.found_run(key, fleet) as kubernetes:
            if kubernetes is not None:
                return await kube_runs.stop(*kubernetes, abort=abort, yes=yes)
        async with found_run(key, fleet) as found:
            status = found.status
            names = [host.name for host in found.fleet.hosts]
            if status.state == "scheduled":
                if not confirm(f"Start {status.name} no more at its times?", yes=yes):
                    return EXIT_FAILED
                await schedule.remove(found.transport, names, status.name)
                note(f"the schedule of {status.name} is removed.")
                return EXIT_OK
            if key == status.name and await _unschedule(found, names, yes=yes):
                note(f"the schedule of {status.name} is removed.")
            if status.final:
                dev_alias.forget([status.run_id])
                note(f"{status.name} has already ended ({status.state}).")
                return EXIT_OK
            if status.waits:
                return await _leave_queue(found, yes=yes)
            if not confirm(f"Stop the run {status.name} on {counted(status.nodes_num, 'node')}?", yes=yes):
                return EXIT_FAILED
            untold = await stop_run(found.transport, status.run_id, found.hosts.values(), abort=abort)
            ended = await wait_ended(found.transport, status.run_id, found.hosts.values(), patience=_PATIENCE)
            for problem in untold.values():
                note(f"{problem.sentence} Its rank stops by itself when it misses the others.")
            if ended is not None and not all(rank["state"] in ("done", "failed", "stopped") for rank in ended.ranks):
                note(f"{status.name} has not ended yet; `lambdactl stop -x {status.name}` kills it.")
                return EXIT_FAILED
            dev_alias.forget([status.run_id])
            note(f"{status.name} is stopped.")
            return EXIT_UNREACHABLE if untold else EXIT_OK

    return asyncio.run(body())


async def _leave_queue(found: Found, *, yes: bool) -> int:
    """A run that waits has no nodes: every host of the fleet is told, and so is the controller that waits, by them."""
    name = found.status.name
    if not confirm(f"Take {name}, which waits, out of the queue?", yes=yes):
        return EXIT_FAILED
    hosts = [host.name for host in found.fleet.hosts]
    untold = await stop_run(found.transport, found.status.run_id, hosts)
    note(f"{name} is taken out of the queue.")
    return EXIT_UNREACHABLE if len(untold) == len(hosts) else EXIT_OK
