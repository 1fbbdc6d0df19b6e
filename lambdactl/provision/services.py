"""Where a service's ingress is, and what the action lambdactl_service does: a service's life from Ansible."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from lambdactl.errors import CapacityError, LambdactlError, SpecError
from lambdactl.provision.actions import TaskVars, play_fleet
from lambdactl.provision.probe import reach
from lambdactl.provision.roles import role_digest
from lambdactl.provision.task_options import env_items
from lambdactl.run.content import RunContent, collect
from lambdactl.run.deliver import deliver
from lambdactl.run.plan import NodeView, Overrides
from lambdactl.run.service import (
    DEFAULT_INGRESS_PORT,
    READY_TIMEOUT,
    ServiceOverrides,
    ServicePlan,
    make_service_plan,
    replica_task,
)
from lambdactl.run.service_control import (
    STOP_PATIENCE,
    ServiceStatus,
    apply_service,
    fetch_ingresses,
    fetch_services,
    stop_service,
    wait_ready,
)
from lambdactl.run.survey import Survey, survey
from lambdactl.spec import ServiceSpec, load, parse_duration, parse_name

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet
    from lambdactl.transport.api import Runner, Transport


@dataclass(frozen=True)
class Place:
    """Where the ingress is, and whether it must be installed (or brought up to date) first."""

    host: str
    port: int
    install: bool


@dataclass(frozen=True)
class Prepared:
    """A service that can be handed over: `old` is the one of that name that runs now."""

    plan: ServicePlan
    place: Place
    old: ServiceStatus | None


async def prepare(
    service: ServiceSpec, fleet: Fleet, transport: Runner, overrides: ServiceOverrides, *,
    ingress: str | None, chosen: list[str] | None = None, content: RunContent | None = None,
) -> Prepared:  # fmt: skip
    """Look at the fleet and plan a service on it.

    Args:
        ingress: the host of the proxy; None takes one that is an ingress already, else the first.
        chosen: the hosts that may take replicas; None for all.
        content: the service's files and repository.

    Raises:
        LambdactlError: the service cannot be run there; one sentence.
    """
    seen = await survey(transport, fleet)
    if len(seen.problems) == len(fleet.hosts):
        raise next(iter(seen.problems.values())).error()
    names = [host.name for host in fleet.hosts if host.name not in seen.problems]
    services, _ = await fetch_services(transport, names)
    name = overrides.run.name or service.name
    old = next((status for status in services if status.name == name and not status.final), None)
    for status in seen.runs:
        if status.name == name:
            raise CapacityError(f"a run named {name} is {status.state}; stop it, or choose another name.")
    place = choose_place(ingress, fleet, seen, await fetch_ingresses(transport, names), old)
    views = {
        host: view if chosen is None or host in chosen else replace(NodeView(host), problem="is not among these hosts")
        for host, view in seen.views.items()
    }
    if place.host not in (chosen or names):
        raise SpecError(f"the ingress {place.host} is not among the hosts of this play.")
    plan = make_service_plan(
        service, fleet, views, ingress=place.host, ingress_port=place.port, overrides=overrides, content=content
    )
    return Prepared(plan, place, old)


def choose_place(
    wanted: str | None, fleet: Fleet, seen: Survey, ingresses: Mapping[str, int], old: ServiceStatus | None
) -> Place:
    """The ingress: where the service is already, the host that was asked for, one that is an ingress, or the first.

    Raises:
        LambdactlError: the host is not of the fleet, does not answer, or is not where the service is.
    """
    names = [host.name for host in fleet.hosts]
    if wanted is not None and wanted not in names:
        raise SpecError(f"the ingress {wanted} is not a host of {fleet.name}; it has {', '.join(names[:8])}.")
    if old is not None and wanted not in (None, old.ingress):
        raise SpecError(
            f"{old.name} has its ingress on {old.ingress}; stop it first to move it, or do not name an ingress."
        )
    host = wanted or (old.ingress if old else next(iter(ingresses), names[0]))
    if host in seen.problems:
        raise seen.problems[host].error()
    entry = (seen.raw[host].get("provisioned") or {}).get("ingress") or {}
    port = ingresses.get(host, DEFAULT_INGRESS_PORT)
    # An ingress with another port was set up by hand, with variables that are not known here: it is left as it is.
    outdated = port == DEFAULT_INGRESS_PORT and entry.get("digest") != role_digest("ingress", {})
    return Place(host, port, install=not entry or bool(entry.get("drift")) or outdated)


async def service_play(
    task_vars: TaskVars,
    arguments: Mapping[str, Any],
    truth: Callable[[Any], bool],
    *,
    apply: bool,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Plan a service on the hosts of a play, or hand it over and wait until it is ready.

    Args:
        arguments: service_file, run_name, env, ingress, ready_timeout, wait; docs/ansible.md says what they mean.
        truth: Ansible's reading of a boolean.
        apply: False only plans.

    Returns:
        `name, ingress, install` (the role ingress is needed first), `hosts, state, ready, wanted, url, message`. Never
        the token or the environment: Ansible stores results.

    Raises:
        LambdactlError: the service cannot be run, a replica fails again and again, or its update was taken back.
    """
    service = service_of(arguments)
    fleet, chosen = play_fleet(task_vars)
    content = await asyncio.to_thread(collect, replica_task(service))
    async with _transport(fleet, content) as transport:
        prepared = await prepare(
            service, fleet, transport, play_overrides(arguments),
            ingress=str(arguments.get("ingress") or "") or None, chosen=chosen, content=content,
        )  # fmt: skip
        plan, place = prepared.plan, prepared.place
        result = {
            "name": plan.name,
            "ingress": place.host,
            "install": place.install,
            "hosts": [name for name, _ in plan.hosts],
            "state": prepared.old.state if prepared.old else "planned",
            "ready": prepared.old.ready if prepared.old else 0,
            "wanted": plan.replicas,
            "url": f"http://{plan.ingress_address}:{place.port}/proxy/services/main/{plan.name}/",
            "message": "",
        }
        if not apply:
            return result
        if content.blobs:
            await deliver(cast("Transport", transport), plan.places, content.blobs)
        _, status = await apply_service(transport, plan)
        if truth(arguments.get("wait", True)):
            status = await wait_ready(transport, plan, lambda now: note(f"{plan.name}: {line(now)}"))
            if status.data["revision"] != plan.document["revision"]:
                raise LambdactlError(f"the update of {plan.name} was taken back: {status.data['update']['message']}")
        return {**result, "state": status.state, "ready": status.ready, "message": status.trouble()}


def _transport(fleet: Fleet, content: RunContent) -> AbstractAsyncContextManager[Runner]:
    """Blobs need streams, which the parent process's broker does not lend."""
    from lambdactl.transport import open_transport

    return open_transport(fleet) if content.blobs else reach(fleet)


async def stop_service_play(transport: Runner, hosts: list[str], name: str, *, check: bool) -> dict[str, Any] | None:
    """Drain and stop the service of that name; None where no host knows one. See `runs.stop_play` for the result.

    Raises:
        LambdactlError: it does not end.
    """
    services, _ = await fetch_services(transport, hosts, name)
    if not services:
        return None
    status = services[0]
    result = {"run_id": None, "run_name": name, "state": status.state, "stopped": not status.final}
    if status.final or check:
        return {**result, "message": f"{name} has ended before." if status.final else "would be stopped."}
    ended = await stop_service(transport, status.ingress, name, patience=STOP_PATIENCE)
    if ended is not None and not ended.final:
        raise LambdactlError(f"{name} has not ended yet ({ended.trouble() or ended.state}); it goes on stopping.")
    return {**result, "state": "stopped", "message": f"{name} is stopped."}


def line(status: ServiceStatus) -> str:
    """How a service is, in one line."""
    trouble = status.trouble()
    return f"{status.state}, {status.ready}/{status.wanted} ready" + (f" ({trouble})" if trouble else "")


def service_of(arguments: Mapping[str, Any]) -> ServiceSpec:
    """The service that the variables of run_service.yml name.

    Raises:
        SpecError: none, or something else.
    """
    file = str(arguments.get("service_file") or "")
    if not file:
        raise SpecError("run_service.yml needs the variable service_file, the path of a service file.")
    service = load(file, kind="service")
    if not isinstance(service, ServiceSpec):
        raise SpecError("This is not a service.", filename=file)
    return service


def play_overrides(arguments: Mapping[str, Any]) -> ServiceOverrides:
    """What the variables of run_service.yml change."""
    name = arguments.get("run_name")
    timeout = arguments.get("ready_timeout")
    seconds = parse_duration(str(timeout), name="service_ready_timeout") if timeout else READY_TIMEOUT
    return ServiceOverrides(
        Overrides(name=parse_name(str(name), name="run_name") if name else None, env=env_items(arguments.get("env"))),
        ready_timeout=float(seconds or READY_TIMEOUT),
    )
