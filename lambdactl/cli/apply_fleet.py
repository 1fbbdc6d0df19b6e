"""`lambdactl apply -f FLEET`: look at all hosts, show what will change, ask, provision, show the result."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lambdactl import spec
from lambdactl.cli.apply import Options
from lambdactl.cli.console import confirm, counted, err, note, out, print_table
from lambdactl.cli.fleet_view import COLUMNS, PLAN_COLUMNS, host_rows, plan_rows, undivided
from lambdactl.cli.progress import HostProgress
from lambdactl.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, CapacityError
from lambdactl.fleet import Fleet
from lambdactl.play import play
from lambdactl.provision import Survey, survey
from lambdactl.state import FleetRecord, State

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport


def run(parsed: spec.FleetSpec, path: str, options: Options) -> int:
    """Make a fleet ready."""
    if parsed.ssh_config is None:
        from lambdactl.cli import kube_fleet

        return kube_fleet.apply(parsed, path, options)
    fleet = Fleet.from_spec(parsed, path=None if path == "-" else path)
    with State() as state:
        before = state.fleet(fleet.id)
    return asyncio.run(_apply(fleet, parsed.source.text, before, options))


async def _apply(fleet: Fleet, text: str, before: FleetRecord | None, options: Options) -> int:
    from lambdactl.transport import open_transport

    removed = _removed(fleet, before)
    failures: dict[str, str] = {}
    async with open_transport(fleet) as transport:
        seen = await _look(fleet, transport, force=options.force)
        if options.check:
            return await _check(fleet, text, transport)
        if seen.changed or removed:
            print_table(PLAN_COLUMNS, plan_rows(fleet, seen), to=err())
            for name in removed:
                note(f"{name} is not in the file any more and will be torn down")
            number = counted(len(seen.changed) + len(removed), "host")
            if not confirm(f"Change {number} of {fleet.name}?", yes=options.yes):
                return EXIT_OK
        if removed and before is not None:
            failures |= await _tear_down_removed(before, removed)
        if seen.changed:
            failures |= await _provision(fleet, text, transport, seen, force=options.force)
            seen = await _look(fleet, transport)
        elif not seen.problems:
            note(f"{fleet.name}: nothing to change.")
    if seen.facts or before is not None:  # a new file by which no host was reached is no fleet that others could mean
        _remember(fleet, text, seen, [name for name in removed if name in failures])
    failures = undivided(fleet, seen) | failures
    print_table(COLUMNS, host_rows(fleet, seen, failures))
    return _exit_code(fleet, seen, failures)


async def _look(fleet: Fleet, transport: Transport, *, force: bool = False) -> Survey:
    """Look at all hosts, with progress on a terminal."""
    with HostProgress([host.name for host in fleet.hosts], "looking") as progress:
        return await survey(
            fleet,
            transport,
            force=force,
            on_result=lambda name, problem: progress.done(name, problem.sentence if problem else None),
        )


async def _check(fleet: Fleet, text: str, transport: Transport) -> int:
    """Ansible's own check mode, with its own output; that is of a terminal, whose line ends are none in a file."""
    ends = "\r" if sys.stdout.isatty() else ""

    def show(piece: str) -> None:
        print(piece.replace("\r", ends), end="")

    result = await play("provision", fleet, text, transport, check=True, on_output=show)
    return EXIT_OK if not result.failures else EXIT_FAILED


async def _provision(fleet: Fleet, text: str, transport: Transport, seen: Survey, *, force: bool) -> dict[str, str]:
    with HostProgress(seen.changed, "waiting") as progress:
        variables = {"lambdactl_force": True} if force else {}
        result = await play("provision", fleet, text, transport, variables=variables, on_step=progress.step)
        failures = {failure.host: failure.sentence for failure in result.failures}
        for name in seen.changed:
            progress.done(name, failures.get(name))
    for sentence in failures.values():
        note(sentence)
    note(f"The same by hand: {result.command}")
    return failures


async def _tear_down_removed(before: FleetRecord, removed: Sequence[str]) -> dict[str, str]:
    """Hosts that were taken out of the file are freed of what provisioning added, by the routes of the old file."""
    from lambdactl.transport import open_transport

    # Without a path: the file itself has the removed hosts no more, so its remembered text has to be the inventory.
    parsed = spec.loads(before.text, filename=before.path or before.name, kind="fleet")
    old = replace(Fleet.from_spec(parsed, path=before.path), path=None)
    async with open_transport(old) as transport:
        seen = await survey(old, transport, names=removed)
        busy = [name for name in removed if seen.facts.get(name, {}).get("leases")]
        if busy:
            raise CapacityError(f"{', '.join(busy)} cannot be removed while a run uses it; stop the run first.")
        present = [name for name in removed if name in seen.facts]
        failures = {name: seen.problems[name].sentence for name in removed if name not in present}
        for name, sentence in failures.items():
            note(f"{name} could not be torn down: {sentence}")
        if present:
            result = await play("teardown", old, before.text, transport, names=present)
            failures |= {failure.host: failure.sentence for failure in result.failures}
            failures |= {name: "the teardown did not reach it." for name in present if name not in result.hosts}
    return failures


def _removed(fleet: Fleet, before: FleetRecord | None) -> list[str]:
    present = {host.name for host in fleet.hosts}
    return [name for name in (before.hosts if before else ()) if name not in present]


def _remember(fleet: Fleet, text: str, seen: Survey, still_there: Sequence[str]) -> None:
    provisioned = [name for name, facts in seen.facts.items() if facts.get("runner")]
    with State() as state:
        facts = {name: dict(values) for name, values in seen.facts.items()}
        state.remember_fleet(fleet, text, facts=facts, hosts=[*provisioned, *still_there])


def _exit_code(fleet: Fleet, seen: Survey, failures: Mapping[str, str]) -> int:
    if not failures and not seen.problems:
        return EXIT_OK
    failed = len(set(failures) | set(seen.problems))
    out().file.flush()
    note(f"{failed} of {len(fleet.hosts)} hosts of {fleet.name} are not ready.")
    unreachable = all(name not in seen.facts for name in seen.problems) and not failures
    return EXIT_UNREACHABLE if unreachable else EXIT_FAILED
