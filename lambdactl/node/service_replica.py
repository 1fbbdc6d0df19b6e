"""A replica as a run: what its host is asked, and how a service is described to whoever looks."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .service_doc import Host, Service
    from .service_health import Health
    from .service_plan import Plan
    from .service_state import Instance

TTL = 60.0


def run_name(service: str, number: int) -> str:
    """The name of a replica's run."""
    return f"{service}-{number}"


def requests_to_start(service: Service, host: Host, item: Instance) -> list[dict[str, Any]]:
    """Reserve the host and start the replica there; what the runner refuses is told by its answer's error."""
    name = run_name(service.name, item.number)
    node = {"name": host.name, "ip": host.ip, "gpus": host.job.get("node_gpus", 0)}
    job = {
        **host.job,
        "run_id": item.run,
        "run_name": name,
        "rank": 0,
        "nodes": [{**node, "ssh_user": host.ssh_user, "ssh_port": host.ssh_port}],
        "service": {"name": service.name, "replica": item.number, "port": service.port},
    }
    reserve = {"op": "reserve", "run_id": item.run, "run_name": name, "owner": str(job.get("owner") or ""), "ttl": TTL}
    wanted = host.job.get("share") or {"gpus": "all"}  # the node puts what its lease has given in the place of `share`
    return [{**reserve, **wanted}, {"op": "start", "job": job}]


def requests_to_stop(item: Instance) -> list[dict[str, Any]]:
    """Stop a replica's run as a user would, and give a reservation back that was not started."""
    reason = {"reason": "stopped-by-user", "message": item.message or "stopped by its service"}
    return [
        {"op": "release", "run_id": item.run},
        {"op": "stop", "run": item.run, "abort": False, "grace": None, **reason},
    ]


def _state(plan: Plan, *, final: bool) -> str:
    if plan.stopping:
        return "stopped" if final else "stopping"
    if plan.update.state == "running":
        return "updating"
    if plan.ready >= plan.service.replicas:
        return "running"
    return "degraded" if plan.ready else "starting"


def describe(plan: Plan, health: dict[str, Health], proxy: str, now: float, *, final: bool) -> dict[str, Any]:
    """The service in plain data, for `lambdactl ps` and `run get --json`; no secrets are in it."""
    service = plan.service
    replicas = []
    for item in sorted(plan.instances, key=lambda item: (item.number, item.since)):
        probes = health.get(item.run)
        word = "lost" if item.lost else "ready" if item.serving else item.phase
        replicas.append(
            {
                "replica": item.number,
                "run_id": item.run,
                "run_name": run_name(service.name, item.number),
                "host": item.host,
                "state": "unready" if word == "running" else word,
                "revision": item.revision,
                "probes": probes.summary() if probes else f"0/{len(service.probes)}",
                "message": item.message or (probes.message if probes else ""),
                "since": item.since,
            }
        )
    waiting = [{"replica": number, "message": why} for number, why in sorted(plan.waiting.items())]
    return {
        "name": service.name,
        "state": _state(plan, final=final),
        "revision": service.revision,
        "replicas_wanted": service.replicas,
        "replicas_ready": plan.ready,
        "replicas": replicas,
        "waiting": [entry for entry in waiting if not any(r["replica"] == entry["replica"] for r in replicas)],
        "failures": {
            str(number): {"count": f.count, "reason": f.reason} for number, f in plan.failures.items() if f.count
        },
        "update": {"state": plan.update.state, "message": plan.update.message},
        "proxy": proxy,
        "port": service.port,
        "auth": service.auth,
        "model": service.model.name if service.model else None,
        "ingress": service.raw.get("ingress"),
        "ingress_port": service.raw.get("ingress_port"),
        "owner": service.raw.get("owner"),
        "submitted_at": service.raw.get("submitted_at"),
    }
