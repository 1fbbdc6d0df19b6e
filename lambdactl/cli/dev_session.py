"""Being at a dev environment: wait until it is up, show the link and the alias, stay connected, see it end."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambdactl.cli import dev_alias
from lambdactl.cli.console import note, printable
from lambdactl.cli.following import follow_to_end, report_end
from lambdactl.cli.pulling import pull_progress
from lambdactl.errors import EXIT_OK, Interrupted, LambdactlError
from lambdactl.run import aliases
from lambdactl.run.control import wait_up
from lambdactl.run.dev import IDES, described
from lambdactl.run.follow import Follower
from lambdactl.run.nodes import runner_command
from lambdactl.run.screen import LogOutput
from lambdactl.run.status import RunStatus, fetch_runs
from lambdactl.transport.api import TransportError

if TYPE_CHECKING:
    from pathlib import Path

    from lambdactl.fleet import Fleet
    from lambdactl.transport.api import Transport

_SIGN = 30.0  # seconds between signs of life; the node gives a session up after 120
_AGAIN = 5.0


@dataclass(frozen=True)
class Place:
    """A dev environment that was submitted: its fleet, an open transport, and its one node."""

    fleet: Fleet
    transport: Transport
    run_id: str
    name: str
    host: str
    included: bool


async def stay(place: Place, *, log_dir: Path | None = None, since: float | None = None, mine: bool = False) -> int:
    """Show the log, tell when it is up, and be connected until it ends or the user detaches; the exit code."""

    async def beside(follower: Follower) -> None:
        await _be_present(place, follower)

    try:
        return await follow_to_end(
            place.transport,
            place.run_id,
            place.name,
            {0: place.host},
            ranks=[0],
            since=since,
            log_dir=log_dir,
            stop_when_interrupted=mine,
            beside=beside,
            images=True,
        )
    finally:
        await forget_if_ended(place)


async def wait_until_up(place: Place, *, log_dir: Path | None = None) -> int:
    """Show the log of `init` until the environment is up; 0 then, else the exit code with which it ended."""
    output = LogOutput([0], directory=log_dir)
    follower = Follower(place.transport, place.run_id, {0: place.host}, output, show=[0], notify=note)
    following = asyncio.ensure_future(follower.run())
    waiting = asyncio.ensure_future(wait_up(place.transport, place.run_id, place.host))
    try:
        async with pull_progress(place.transport, place.run_id, {0: place.host}, on=True):
            status = await waiting
        if status is not None:
            await follower.reach(0, _shown(status))
    except asyncio.CancelledError:
        raise Interrupted(
            f"interrupted; {place.name} goes on. `lambdactl attach {place.name}` comes back to it."
        ) from None
    finally:
        for task in (following, waiting):
            task.cancel()
        await asyncio.gather(following, waiting, return_exceptions=True)
        output.close()
    if status is None or status.final:
        await forget_if_ended(place)
        return report_end(status, place.name)
    announce(place, status)
    note(f"Come back with: lambdactl attach {place.name}; end it with: lambdactl stop {place.name}")
    return EXIT_OK


def announce(place: Place, status: RunStatus) -> None:
    """Make the alias and print how to get in."""
    shown = described(status.dev or {}, status.name)
    dev_alias.make(place.fleet, status)
    note(f"{place.name} is up on {place.host}.")
    command = f"ssh {status.name}" if place.included else f"ssh -F {aliases.config_file()} {status.name}"
    if shown["url"]:
        print(printable(f"{IDES.get(str(shown['ide']), shown['ide'])}: {shown['url']}"), flush=True)
        if not place.included:
            note("The IDE finds it once your ssh_config includes the alias: `lambdactl attach -y` adds the line.")
    print(f"SSH: {command}", flush=True)


async def forget_if_ended(place: Place) -> None:
    """Take the alias away when nothing of the run is left."""
    with contextlib.suppress(LambdactlError):
        runs, _problems = await fetch_runs(place.transport, [place.host], place.run_id)
        if runs and runs[0].final:
            dev_alias.forget([place.run_id])


def _shown(status: RunStatus) -> int:
    return int(status.ranks[0].get("log_size") or 0)


async def _be_present(place: Place, follower: Follower) -> None:
    """What goes on beside the log: the announcement, then a session that shows the node that somebody is here."""
    status = await wait_up(place.transport, place.run_id, place.host)
    if status is None or status.final:
        return
    await follower.reach(0, _shown(status))
    try:
        announce(place, status)
    except LambdactlError as error:
        note(str(error))
    while True:
        with contextlib.suppress(TransportError, LambdactlError, OSError):
            channel = await place.transport.channel(place.host, runner_command(f"session {place.run_id}"))
            try:
                while True:
                    await channel.write(b".")
                    await asyncio.sleep(_SIGN)
            finally:
                await channel.close()
        await asyncio.sleep(_AGAIN)
