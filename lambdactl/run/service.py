"""From a service file and the fleet's facts to the document that its ingress keeps (lambdactl/node/service_doc.py).

Each replica is an ordinary single-node run, so that every host's job comes from the same planner as a task's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lambdactl.errors import CapacityError, SpecError
from lambdactl.fleet import Fleet, FleetHost
from lambdactl.fleet.network import internal_ips
from lambdactl.run.content import RunContent
from lambdactl.run.plan import NodeView, Overrides, RunPlan, job_specs, make_plan, owner
from lambdactl.run.service_file import document_parts, refuse_unsupported
from lambdactl.spec import ServiceSpec, TaskSpec

DEFAULT_INGRESS_PORT = 8780
READY_TIMEOUT = 600.0
NODE_TIMEOUT = 30.0
# What differs from host to host or from day to day, and does not make a replica another one.
_VOLATILE = (
    "run_id", "run_name", "rank", "nodes", "user", "defaults", "owner", "submitted_at", "spec_text", "mpi_network",
    "gpus", "node_timeout",
)  # fmt: skip


@dataclass(frozen=True)
class ServicePlan:
    """A service that can be handed to its ingress host.

    Attributes:
        hosts: those that may take a replica, with their addresses, in the order in which they are filled.
        excluded: for each other host one clause that says why.
        document: see lambdactl/node/service_doc.py; it holds the environment, so it is never shown.
        places: the ingress and the hosts that may take a replica, as run/deliver.py takes them.
        content: what the replicas take with them.
    """

    name: str
    fleet_name: str
    ingress: str
    ingress_address: str
    hosts: tuple[tuple[str, str], ...]
    excluded: Mapping[str, str]
    document: Mapping[str, Any]
    places: tuple[Mapping[str, Any], ...] = ()
    content: RunContent = field(default_factory=RunContent)

    @property
    def replicas(self) -> int:
        """How many replicas are wanted."""
        return int(self.document["replicas"])


@dataclass(frozen=True)
class ServiceOverrides:
    """What the command line adds to a service file. Times in seconds."""

    run: Overrides = field(default_factory=Overrides)
    ready_timeout: float = READY_TIMEOUT
    node_timeout: float = NODE_TIMEOUT


def make_service_plan(
    service: ServiceSpec,
    fleet: Fleet,
    views: Mapping[str, NodeView],
    *,
    ingress: str,
    ingress_port: int = DEFAULT_INGRESS_PORT,
    overrides: ServiceOverrides | None = None,
    content: RunContent | None = None,
) -> ServicePlan:
    """Choose the hosts that may take a replica; those that other runs use now are among them, and waited for.

    Raises:
        SpecError: the file wants what cannot be had here, or a variable has no value.
        CapacityError: fewer hosts fit than replicas are wanted.
    """
    overrides = overrides or ServiceOverrides()
    refuse_unsupported(service)
    name = overrides.run.name or service.name
    if name is None:
        raise SpecError("a service needs a 'name'; set it, or pass -n NAME.", filename=service.source.filename)
    facts = {host.name: facts for host in fleet.hosts if (facts := views[host.name].facts) is not None}
    addresses, unaddressed = internal_ips(fleet, facts)
    if ingress not in addresses:
        raise CapacityError(
            f"the ingress {ingress} {unaddressed.get(ingress) or views[ingress].problem or 'is unknown'}."
        )
    plans, excluded = _plans(replica_task(service), fleet, views, replace(overrides.run, name=name), content)
    for host in [host for host in plans if host not in addresses]:
        excluded[host] = unaddressed.get(host, "has no address that the ingress can reach")
        del plans[host]
    wanted = int(service.replicas.max or 0)
    if len(plans) < max(1, wanted):
        raise CapacityError(_too_few(name, wanted, len(plans), fleet, excluded))
    jobs = {host: job_specs(plan)[host] for host, plan in plans.items()}
    first = next(iter(jobs.values()))
    document = {
        "name": name,
        "revision": _revision(service, first),
        "replicas": wanted,
        "hosts": [_host(host, addresses[host], plans[host], job) for host, job in jobs.items()],
        **document_parts(service),
        "ready_timeout": overrides.ready_timeout,
        "node_timeout": overrides.node_timeout,
        "ingress": ingress,
        "ingress_port": ingress_port,
        "owner": owner(),
        "submitted_at": time.time(),
    }
    used = tuple((host, addresses[host]) for host in jobs)
    names = (ingress, *(host for host in jobs if host != ingress))
    places = tuple(_place(fleet.host(host), addresses[host]) for host in names)
    return ServicePlan(
        name, fleet.name, ingress, addresses[ingress], used, excluded, document, places, content or RunContent()
    )


def _place(host: FleetHost, address: str) -> dict[str, Any]:
    target = host.route.target
    return {"name": host.name, "ip": address, "ssh_user": target.user or "root", "ssh_port": target.port}


def replica_task(service: ServiceSpec) -> TaskSpec:
    """The task that one replica is."""
    names = {part.name for part in fields(ServiceSpec)} & {part.name for part in fields(TaskSpec)} - {"type"}
    return TaskSpec(type="task", **{name: getattr(service, name) for name in names - {"groups", "nodes"}})


def _plans(
    task: TaskSpec, fleet: Fleet, views: Mapping[str, NodeView], overrides: Overrides, content: RunContent | None
) -> tuple[dict[str, RunPlan], dict[str, str]]:
    """A plan for each host alone, or why there is none."""
    plans: dict[str, RunPlan] = {}
    excluded: dict[str, str] = {}
    for host in fleet.hosts:
        if views[host.name].facts is None:
            excluded[host.name] = views[host.name].problem or "is not known"
            continue
        alone = {
            name: replace(view, leases=()) if name == host.name else NodeView(name, problem="")
            for name, view in views.items()
        }
        try:
            plans[host.name] = make_plan(task, fleet, alone, overrides, content)
        except CapacityError as error:
            excluded[host.name] = str(error).partition(f": {host.name} ")[2].rstrip(".") or str(error)
    return plans, excluded


def _host(name: str, address: str, plan: RunPlan, job: Mapping[str, Any]) -> dict[str, Any]:
    node = plan.nodes[0]
    return {
        "name": name,
        "ip": address,
        "ssh_user": node.ssh_user or "root",
        "ssh_port": node.ssh_port,
        "job": dict(job),
    }


def _revision(service: ServiceSpec, job: Mapping[str, Any]) -> str:
    """The same for replicas that do the same."""
    lasting = {key: value for key, value in job.items() if key not in _VOLATILE}
    text = json.dumps([lasting, service.user, service.port], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _too_few(name: str, wanted: int, fitting: int, fleet: Fleet, excluded: Mapping[str, str]) -> str:
    why = "; ".join(f"{host} {reason}" for host, reason in list(excluded.items())[:8])
    return (
        f"{name} asks for {wanted} replica{'s' if wanted != 1 else ''}, each on a host of its own (all listen on one "
        f"port), and {fitting} of the {len(fleet.hosts)} hosts of {fleet.name} can take one"
        + (f": {why}." if why else "; lower 'replicas' or add hosts to the fleet file.")
    )
