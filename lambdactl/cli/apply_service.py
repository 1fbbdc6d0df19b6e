"""`lambdactl apply -f SERVICE`: plan, confirm, install the ingress where it is missing, hand over, wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lambdactl import spec
from lambdactl.cli import delivery, kube_runs, service_record
from lambdactl.cli.apply import Options
from lambdactl.cli.console import confirm, err, note, print_table
from lambdactl.cli.run_options import seconds_of
from lambdactl.cli.select import choose_fleet
from lambdactl.errors import EXIT_FAILED, EXIT_OK, LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.play import play
from lambdactl.provision.services import Place, line, prepare
from lambdactl.run.container import check_engine
from lambdactl.run.plan import Overrides
from lambdactl.run.service import ServiceOverrides, ServicePlan, replica_task
from lambdactl.run.service_control import MODELS_PATH, ServiceStatus, apply_service, wait_ready
from lambdactl.run.service_file import notices
from lambdactl.run.sessions import ServeSessions
from lambdactl.state import State

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport


def run(service: spec.ServiceSpec, options: Options) -> int:
    """Run a service on a fleet, or change one that runs."""
    overrides = _overrides(options)
    with State() as state:
        if cluster := kube_runs.chosen_fleet(options.fleet, state, wanted=service.fleets or ()):
            from lambdactl.cli import kube_service

            return kube_service.run(service, cluster, overrides, options)
        fleet = choose_fleet(options.fleet, state, wanted=service.fleets or ())
    return asyncio.run(_apply(service, fleet, overrides, options))


def _overrides(options: Options) -> ServiceOverrides:
    if options.name is not None:
        spec.parse_name(options.name, name="--name")
    if options.max_duration is not None:
        raise SpecError("--max-duration ends a run, and a service runs until it is stopped; leave it out.")
    timeouts = []
    for name, text in (("--ready-timeout", options.ready_timeout), ("--node-timeout", options.node_timeout)):
        seconds = spec.parse_duration(text, name=name)
        if not seconds:
            raise SpecError(f"{name} must be a length of time such as 30s or 10m.")
        timeouts.append(float(seconds))
    env = tuple(spec.parse_env_item(item) for item in options.env)
    run = Overrides(
        name=options.name,
        env=env,
        container_engine=check_engine(options.engine, name="--engine"),
        pull_timeout=seconds_of("--pull-timeout", options.pull_timeout),
    )
    return ServiceOverrides(run, ready_timeout=timeouts[0], node_timeout=timeouts[1])


async def _apply(service: spec.ServiceSpec, fleet: Fleet, overrides: ServiceOverrides, options: Options) -> int:
    from lambdactl.transport import open_transport

    content = await delivery.collect_content(replica_task(service))
    async with open_transport(fleet) as connections:
        transport = ServeSessions(connections)
        prepared = await prepare(service, fleet, transport, overrides, ingress=options.ingress, content=content)
        plan, place, old = prepared.plan, prepared.place, prepared.old
        _show(plan, place, old)
        for text in notices(service):
            note(text)
        verb = "Update" if old else "Run"
        if not confirm(f"{verb} the service {plan.name} on {fleet.name}?", yes=options.yes):
            return EXIT_OK
        if place.install:
            await _install(place.host, fleet, transport)
        await delivery.deliver_content(transport, plan.places, plan.content)
        token, _ = await apply_service(transport, plan)
        path = service_record.keep(fleet.id, plan.name, plan.ingress, token)
        if options.detach:
            note(f"{plan.name} is handed to {plan.ingress}. Look with: lambdactl run get {plan.name}")
            return EXIT_OK
        return await _wait(plan, transport, path)


async def _install(host: str, fleet: Fleet, transport: Transport) -> None:
    with State() as state:
        record = state.fleet(fleet.id)
    note(f"{host}: installing the ingress ...")
    result = await play(
        "ingress", fleet, record.text if record else "", transport, names=[host], variables={"ingress_host": host}
    )
    if result.failures:
        raise LambdactlError(f"the ingress was not installed: {result.failures[0].sentence}")
    if result.rc:
        raise LambdactlError(f"the ingress was not installed: ansible-playbook ended with exit code {result.rc}.")


def _show(plan: ServicePlan, place: Place, old: ServiceStatus | None) -> None:
    document = plan.document
    update = "none"
    if old is not None:
        same = old.data["revision"] == document["revision"]
        update = "in place" if same else "replaces one replica after the other"
        if not same and plan.replicas == 1 and len(plan.hosts) == 1:
            update += "; with one replica and no other host there is a gap"
    rows: list[tuple[str, Any]] = [
        ("Service", plan.name),
        ("Fleet", plan.fleet_name),
        ("Replicas", f"{plan.replicas}, each on one of {', '.join(name for name, _ in plan.hosts)}"),
        ("Port", document["port"]),
        ("Probes", ", ".join(f"{p['method']} {p['url']}" for p in document["probes"]) or "a connection to the port"),
        ("Auth", "bearer token" if document["auth"] else "none: whoever reaches the ingress may use it"),
        ("Ingress", f"{place.host}, port {place.port}" + (" (will be installed)" if place.install else "")),
        ("Update", update),
        *delivery.rows(plan.content),
    ]
    print_table(("FIELD", "VALUE"), rows, to=err())
    for host, why in plan.excluded.items():
        if why:
            note(f"left out: {host} {why}")


async def _wait(plan: ServicePlan, transport: Transport, token_file: Any) -> int:
    try:
        status = await wait_ready(transport, plan, lambda now: note(f"{plan.name}: {line(now)}"))
    except asyncio.CancelledError:
        note(f"{plan.name} goes on without this command. Look with: lambdactl run get {plan.name}")
        return EXIT_OK
    if status.data["revision"] != plan.document["revision"]:
        note(f"The update of {plan.name} was taken back: {status.data['update']['message']}")
        return EXIT_FAILED
    url = status.url(plan.ingress_address)
    print(url, flush=True)
    note(f"{plan.name} is ready at {url} from the fleet's network, and here with: lambdactl attach {plan.name}")
    if token_file is not None:
        note(f'Its token is in {token_file}: curl -H "Authorization: Bearer $(cat {token_file})" {url}')
    if plan.document["model"]:
        root = f"http://{plan.ingress_address}:{status.port}{MODELS_PATH}"
        note(f"OpenAI-compatible: {root} as base URL, model {plan.document['model']['name']}.")
    return EXIT_OK
