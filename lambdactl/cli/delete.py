"""`lambdactl delete -f FLEET`."""

from __future__ import annotations

import asyncio

from lambdactl import spec
from lambdactl.cli import dev_alias, services
from lambdactl.cli.apply import find_file
from lambdactl.cli.console import confirm, counted, note
from lambdactl.cli.progress import HostProgress
from lambdactl.cli.select import choose_fleet, kubernetes_fleet
from lambdactl.cli.ssh import forget_connections
from lambdactl.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, CapacityError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.play import play
from lambdactl.provision import survey
from lambdactl.state import State


def run(file: str | None, fleet_option: str | None, *, yes: bool, forget: bool = False) -> int:
    """Tear a fleet down; 0 when nothing of it is left on any host, or with `forget` on any that answers."""
    if file is None and fleet_option is not None:
        with State() as state:
            if kubernetes := kubernetes_fleet(fleet_option, state):
                from lambdactl.cli import kube_fleet

                return kube_fleet.delete(kubernetes, yes=yes)
            fleet = choose_fleet(fleet_option, state)
            record = state.fleet(fleet.id)
        return asyncio.run(_delete(fleet, record.text if record else "", yes=yes, forget=forget))
    path = find_file(file)
    parsed = spec.load(path)
    if isinstance(parsed, spec.ServiceSpec):
        return _delete_service(parsed, fleet_option, yes=yes)
    if not isinstance(parsed, spec.FleetSpec):
        parsed = spec.loads(parsed.source.text, filename=path, kind="fleet")  # says what is wrong with that
    if parsed.ssh_config is None:
        from lambdactl.backends.kubernetes.fleet import KubeFleet
        from lambdactl.cli import kube_fleet

        return kube_fleet.delete(KubeFleet.from_spec(parsed, path=None if path == "-" else path), yes=yes)
    fleet = Fleet.from_spec(parsed, path=None if path == "-" else path)
    return asyncio.run(_delete(fleet, parsed.source.text, yes=yes, forget=forget))


def _delete_service(service: spec.ServiceSpec, fleet_option: str | None, *, yes: bool) -> int:
    if service.name is None:
        raise SpecError("the file has no 'name', so it does not say which service.", filename=service.source.filename)
    code = services.delete(service.name, fleet_option, yes=yes)
    if code is None:
        note(f"There is no service {service.name}.")
    return code or EXIT_OK


async def _delete(fleet: Fleet, text: str, *, yes: bool, forget: bool) -> int:
    from lambdactl.transport import open_transport

    async with open_transport(fleet) as transport:
        seen = await survey(fleet, transport)
        busy = [name for name, facts in seen.facts.items() if facts.get("leases")]
        if busy:
            raise CapacityError(f"runs are using {', '.join(busy)}; stop them first (`lambdactl ps`).")
        for name, problem in seen.problems.items():
            if name not in seen.facts:
                note(f"{name} keeps what it has: {problem.sentence}")
        if not confirm(f"Tear down {fleet.name} on {counted(len(seen.facts), 'host')}?", yes=yes):
            return EXIT_OK
        failures = {}
        if seen.facts:
            with HostProgress(list(seen.facts), "waiting") as progress:
                result = await play("teardown", fleet, text, transport, names=list(seen.facts), on_step=progress.step)
                failures = {failure.host: failure.sentence for failure in result.failures}
    for sentence in failures.values():
        note(sentence)
    unreached = [name for name in seen.problems if name not in seen.facts]
    forget_connections(fleet)
    if unreached and not forget:
        note(f"{fleet.name} stays known here; when these hosts are gone for good, pass --forget.")
    if failures or (unreached and not forget):
        return EXIT_FAILED if failures else EXIT_UNREACHABLE
    dev_alias.forget_fleet(fleet.id)
    with State() as state:
        state.forget_fleet(fleet.id)
    note(f"{fleet.name} is {'forgotten' if unreached else 'torn down'}.")
    return EXIT_OK
