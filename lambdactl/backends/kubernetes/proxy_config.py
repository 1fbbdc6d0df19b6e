"""What the proxy of a namespace reads: one Secret, in which each service has entries of its own. Pure.

Keys: `haproxy.cfg` (what all services share), `service.NAME` (its rules and where it is), `auth.NAME` (the token's
hash), `model.NAME` (its line in the map of models) and `version`, the sum of the rest, which the running proxy tells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lambdactl.content import path
from lambdactl.node.service_rules import MODELS_PATH, SERVICES_PATH, model_line, service_config, token_hash
from lambdactl.run.service import DEFAULT_INGRESS_PORT
from lambdactl.run.service_file import document_parts
from lambdactl.spec import ServiceSpec

__all__ = ["MODELS_PATH", "SERVICES_PATH", "Front", "Limit", "Model", "token_hash"]

PORT = DEFAULT_INGRESS_PORT
STATUS_PORT = 8781
"""Where the proxy tells which version it works with; it is in no Service."""
ETC = "/lambdactl/proxy/run/etc"
RUN = "/lambdactl/proxy/run"
DOORS = range(20000, 30000)
"""Ports of the pod's localhost: a door of each service's own, to which `attach` forwards."""
TIMEOUT = 3600
MOST_CONNECTIONS = 8000
Data = dict[str, str]


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate limit; see `spec.RateLimit`."""

    prefix: str
    rps: float
    burst: int
    header: str | None


@dataclass(frozen=True, slots=True)
class Model:
    """A model's name, and where the replicas serve it."""

    name: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Front:
    """What the proxy has to know of a service; from a checked file, or from the facts of its Deployment."""

    name: str
    port: int
    auth: bool
    strip_prefix: bool
    model: Model | None
    rate_limits: tuple[Limit, ...]

    @classmethod
    def of(cls, name: str, spec: ServiceSpec) -> Front:
        """From a service file."""
        return cls.from_facts(name, facts(spec))

    @classmethod
    def from_facts(cls, name: str, raw: Mapping[str, Any]) -> Front:
        """From what `facts` has written."""
        model = raw.get("model")
        return cls(
            name=name,
            port=int(raw["port"]),
            auth=bool(raw["auth"]),
            strip_prefix=bool(raw["strip_prefix"]),
            model=None if model is None else Model(str(model["name"]), str(model["prefix"]).rstrip("/")),
            rate_limits=tuple(Limit(**limit) for limit in raw["rate_limits"]),
        )


def facts(spec: ServiceSpec) -> dict[str, Any]:
    """What of a service file the proxy has to know, as JSON."""
    parts = document_parts(spec)
    return {key: parts[key] for key in ("port", "auth", "strip_prefix", "model", "rate_limits")}


def wanted(spec: ServiceSpec) -> bool:
    """Whether a service needs the proxy; without it, requests go to the service's own address."""
    return bool(spec.auth or spec.model is not None or spec.rate_limits)


def service_path(name: str) -> str:
    """The path of a service at the proxy."""
    return f"{SERVICES_PATH}/{name}/"


def names(data: Mapping[str, str]) -> set[str]:
    """The services that have entries."""
    return {key.removeprefix("service.") for key in data if key.startswith("service.")}


def model_owner(data: Mapping[str, str], model: str) -> str | None:
    """The service that serves a model."""
    lines = {key.removeprefix("model."): line for key, line in data.items() if key.startswith("model.")}
    return next((name for name, line in lines.items() if line.split()[:1] == [model]), None)


def door(data: Mapping[str, str], name: str) -> int | None:
    """The port of a service's own door; None where it has no entry."""
    found = re.search(r"^    bind 127\.0\.0\.1:(\d+)$", data.get(f"service.{name}", ""), re.MULTILINE)
    return int(found[1]) if found else None


def with_service(data: Mapping[str, str], front: Front, address: str, token: str | None) -> Data:
    """The same with this service's entries as they are now.

    Args:
        address: the ClusterIP of its Service.
        token: its token; None where it asks for none.
    """
    taken = {door(data, name) for name in names(data) - {front.name}}
    port = door(data, front.name)
    if port is None or port in taken:
        port = next(number for number in DOORS if number not in taken)
    host = f"[{address}]" if ":" in address else address
    # One server for all replicas: Kubernetes knows which are ready. Each request has a connection of its own, so that
    # none is sent to a replica that has left the rotation meanwhile.
    servers = ["option http-server-close", f"server replicas {host}:{front.port}"]
    kept = without_service(data, front.name)
    kept[f"service.{front.name}"] = service_config(front, etc=ETC, bind=f"127.0.0.1:{port}", servers=servers)
    if token is not None:
        kept[f"auth.{front.name}"] = token_hash(token) + "\n"
    if line := model_line(front):
        kept[f"model.{front.name}"] = line
    return kept


def without_service(data: Mapping[str, str], name: str) -> Data:
    """The same without this service's entries."""
    return {key: text for key, text in data.items() if key.partition(".")[2] != name or key == "haproxy.cfg"}


def finished(data: Mapping[str, str], alive: Iterable[str]) -> Data:
    """What is written: only services that exist, the part that all share, and the version.

    Args:
        alive: the names of all services of the namespace.
    """
    kept = dict(data)
    for name in names(data) - set(alive):
        kept = without_service(kept, name)
    kept = {key: kept[key] for key in sorted(kept) if key not in ("haproxy.cfg", "version")}
    shared = common("@version@")
    parts = [shared, *(f"{key}\0{text}" for key, text in kept.items())]
    version = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return {"haproxy.cfg": common(version), **kept, "version": version}


def common(version: str) -> str:
    """The part that all services share: that of a fleet's ingress, and where the proxy tells its version."""
    template = path("roles", "ingress", "templates", "haproxy.cfg.j2").read_text(encoding="utf-8")
    values = {
        "__ingress_etc": ETC,
        "__ingress_run": RUN,
        "ingress_bind": "*",
        "ingress_port": str(PORT),
        "ingress_timeout": str(TIMEOUT),
        "ingress_drain_timeout": str(TIMEOUT),
        "ingress_body_bytes": str(1 << 16),
    }
    text = re.sub(r"\{\{ (\w+) \}\}", lambda found: values[found[1]], template)
    # The container runs as a user without rights, who cannot become another one.
    text = re.sub(r"^    (user|group) haproxy\n", "", text, flags=re.MULTILINE)
    return text + (
        f"\nfrontend status\n    bind *:{STATUS_PORT}\n"
        f"    http-request return status 200 content-type text/plain string {version}\n"
        # With fewer where the node lets a process have fewer files open, instead of not at all.
        f"\nglobal\n    maxconn {MOST_CONNECTIONS}\n    no strict-limits\n"
    )
