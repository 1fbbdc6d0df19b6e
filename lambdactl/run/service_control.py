"""Services on their ingress hosts: apply, look, wait, stop; over the same serve protocol as runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lambdactl.errors import LambdactlError
from lambdactl.run.nodes import Answers, Problem, call_all, same
from lambdactl.run.service import ServicePlan
from lambdactl.transport.api import Runner

SERVICES_PATH, MODELS_PATH = "/proxy/services/main", "/proxy/models/main"
# Beyond the time that requests under way get, and the grace time of the replicas.
STOP_PATIENCE = 150.0
_POLL = 0.7
_GIVE_UP = 3  # failures of a replica after which nobody waits for it any more


@dataclass(frozen=True)
class ServiceStatus:
    """One service as its ingress host tells it; `data` is the summary of lambdactl/node/service_replica.py."""

    ingress: str
    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The service's name."""
        return str(self.data["name"])

    @property
    def state(self) -> str:
        """starting, running, degraded, updating, stopping, stopped; `unsupervised` while no supervisor runs."""
        state = str(self.data["state"])
        return state if self.data.get("supervised") or state == "stopped" else "unsupervised"

    @property
    def final(self) -> bool:
        """Nothing of it runs any more."""
        return bool(self.data["state"] == "stopped")

    @property
    def wanted(self) -> int:
        """How many replicas are wanted."""
        return int(self.data["replicas_wanted"])

    @property
    def ready(self) -> int:
        """How many get requests."""
        return int(self.data["replicas_ready"])

    @property
    def port(self) -> int:
        """The ingress' port."""
        return int(self.data.get("ingress_port") or 0)

    def url(self, host: str) -> str:
        """Where it is reached at this host name or address."""
        return f"http://{host}:{self.port}{SERVICES_PATH}/{self.name}/"

    @property
    def path(self) -> str:
        """The path of its address: behind a fleet's ingress one of its own, in a cluster of its own Service none."""
        return str(self.data.get("path") or f"{SERVICES_PATH}/{self.name}/")

    def trouble(self) -> str:
        """What keeps it from being whole, in one line; empty when nothing does."""
        clauses = [
            f"replica {r['replica']} on {r['host']}: {r['message']}" for r in self.data["replicas"] if r["message"]
        ]
        clauses += [f"replica {w['replica']}: {w['message']}" for w in self.data["waiting"]]
        if self.data["update"]["state"] == "failed":
            clauses.insert(0, f"the update was taken back: {self.data['update']['message']}")
        if self.data.get("proxy"):
            clauses.append(str(self.data["proxy"]))
        return "; ".join(clauses)

    def as_json(self) -> dict[str, Any]:
        """The schema of `run get --json` and `ps --json` for a service (docs/services.md)."""
        keys = ("name", "revision", "replicas_wanted", "replicas_ready", "replicas", "waiting", "failures", "update")
        more = ("proxy", "port", "auth", "model", "ingress_port", "owner", "submitted_at", "supervised")
        known = {key: self.data.get(key) for key in (*keys, *more)}
        return {"type": "service", "state": self.state, "ingress": self.ingress, "path": self.path, **known}


async def fetch_ingresses(transport: Runner, hosts: Iterable[str]) -> dict[str, int]:
    """The hosts that have an ingress, each with its port."""
    answers = await call_all(transport, same(hosts, op="service-status", service=None))
    return {
        host: int(answer["ingress_port"])
        for host, answer in answers.items()
        if not isinstance(answer, Problem) and answer.get("ingress_port")
    }


async def fetch_services(
    transport: Runner, hosts: Iterable[str], name: str | None = None
) -> tuple[list[ServiceStatus], dict[str, Problem]]:
    """Ask the hosts for their services (or for one); a host is an ingress when it has any.

    One that was asked for and goes on is only where it was found: then a host that is silent is waited for no longer.
    """
    request = same(hosts, op="service-status", service=name)
    answers = await call_all(transport, request, settled=_goes_on if name is not None else None)
    problems = {host: answer for host, answer in answers.items() if isinstance(answer, Problem)}
    # An older runner does not know services: that is no service, and no problem.
    return _services(answers), {host: problem for host, problem in problems.items() if problem.code != "bad-request"}


def _services(answers: Answers) -> list[ServiceStatus]:
    return [
        ServiceStatus(host, data)
        for host, answer in answers.items()
        if not isinstance(answer, Problem)
        for data in answer.get("services", ())
    ]


def _goes_on(answers: Answers) -> bool:
    """Whether a service is there that has not ended; what is left of an ended one may be older than one elsewhere."""
    return any(not status.final for status in _services(answers))


async def apply_service(transport: Runner, plan: ServicePlan) -> tuple[str | None, ServiceStatus]:
    """Hand the service to its ingress host.

    Returns:
        The bearer token, None where the service asks for none, and the service as it was at that moment.

    Raises:
        LambdactlError: the host refused it or does not answer.
    """
    request = {"op": "service-apply", "service": plan.document}
    answer = (await call_all(transport, {plan.ingress: request}))[plan.ingress]
    if isinstance(answer, Problem):
        raise answer.error()
    return answer.get("token"), ServiceStatus(plan.ingress, answer["summary"])


async def fetch_token(transport: Runner, ingress: str, name: str) -> str | None:
    """The bearer token of a service, None where it asks for none."""
    answer = (await call_all(transport, {ingress: {"op": "service-token", "service": name}}))[ingress]
    if isinstance(answer, Problem):
        raise answer.error()
    token = answer.get("token")
    return None if token is None else str(token)


async def look(transport: Runner, ingress: str, name: str) -> ServiceStatus | None:
    """The service now; None when its host knows nothing of it. Raises LambdactlError when the host does not answer."""
    found, problems = await fetch_services(transport, [ingress], name)
    if ingress in problems:
        raise problems[ingress].error()
    return found[0] if found else None


async def wait_ready(
    transport: Runner, plan: ServicePlan, on_change: Callable[[ServiceStatus], None], *, patience: float | None = None
) -> ServiceStatus:
    """Wait until the service is as the plan wants it.

    Returns:
        Its last status: all replicas ready, or the update taken back.

    Raises:
        LambdactlError: a replica fails again and again, or the wait is over; the service goes on trying.
    """
    deadline = None if patience is None else time.monotonic() + patience
    shown: Any = ("unsupervised",)  # for a moment nobody is there yet
    while True:
        status = await look(transport, plan.ingress, plan.name)
        if status is None:
            raise LambdactlError(f"{plan.ingress} knows nothing of the service {plan.name} any more.")
        mark = _mark(status)
        if mark != shown:
            shown = mark
            on_change(status)
        if status.data["wanted_revision"] != plan.document["revision"]:  # taken back, or somebody else's by now
            return status
        if _as_wanted(status, plan):
            return status
        if failing := _failing(status, plan):
            raise LambdactlError(
                f"a replica of {plan.name} has failed {failing['count']} times ({failing['reason']}); it is tried "
                f"again after pauses. Look with `lambdactl logs {plan.name}`; end it with `lambdactl stop {plan.name}`."
            )
        if deadline is not None and time.monotonic() > deadline:
            raise LambdactlError(
                f"{plan.name} is not ready yet ({status.trouble() or 'no reason known'}); it goes on trying."
            )
        await asyncio.sleep(_POLL)


def _mark(status: ServiceStatus) -> tuple[Any, ...]:
    """What is worth a line when it changes."""
    if status.state == "unsupervised":
        return ("unsupervised",)
    return (status.state, status.ready, status.trouble(), [replica["state"] for replica in status.data["replicas"]])


def _failing(status: ServiceStatus, plan: ServicePlan) -> Mapping[str, Any] | None:
    """The replica that fails again and again, while nothing is taken back for it."""
    if status.data["update"]["state"] == "running" or status.data["revision"] != plan.document["revision"]:
        return None
    return next((f for f in status.data["failures"].values() if int(f["count"]) >= _GIVE_UP), None)


def _as_wanted(status: ServiceStatus, plan: ServicePlan) -> bool:
    data = status.data
    current = data["revision"] == plan.document["revision"] and data["replicas_wanted"] == plan.replicas
    here = all(r["revision"] == plan.document["revision"] and r["state"] == "ready" for r in data["replicas"])
    return bool(current and here and data["update"]["state"] != "running" and status.ready >= plan.replicas)


async def stop_service(transport: Runner, ingress: str, name: str, *, patience: float) -> ServiceStatus | None:
    """Drain and stop a service; its status when it has ended or the patience is over.

    Raises:
        LambdactlError: the ingress host does not answer or refuses.
    """
    answer = (await call_all(transport, {ingress: {"op": "service-stop", "service": name}}))[ingress]
    if isinstance(answer, Problem):
        raise answer.error()
    deadline = time.monotonic() + patience
    while True:
        status = await look(transport, ingress, name)
        if status is None or status.final or time.monotonic() > deadline:
            return status
        await asyncio.sleep(_POLL)


async def forget_service(transport: Runner, ingress: str, name: str) -> None:
    """Remove what a stopped service left on its ingress host, the token included. Raises LambdactlError."""
    answer = (await call_all(transport, {ingress: {"op": "service-forget", "service": name}}))[ingress]
    if isinstance(answer, Problem):
        raise answer.error()
