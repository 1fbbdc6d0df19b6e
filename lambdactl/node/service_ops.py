"""Operations of `runner.pyz serve` on services; they only write down what is wanted, the supervisor does the rest.

service-apply   {"service": document} -> {"token": text | null, "summary"}   starts the supervisor, or tells it
service-status  {"service": name | null} -> {"services": [summary], "ingress_port": N | null}
service-token   {"service": name} -> {"token": text | null}
service-stop    {"service": name} -> {"summary"}        drains and stops every replica; returns at once
service-forget  {"service": name} -> {}                 removes a stopped service's files (error `active` otherwise)
"""

from __future__ import annotations

import subprocess

from . import locks, paths, service_ingress, service_store
from .errors import NodeError
from .service_doc import Service
from .service_store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def unit_name(name: str) -> str:
    """The systemd unit of a service's supervisor."""
    return f"lambdactl-service@{name}.service"


def _store(request: dict[str, Any]) -> Store:
    name = request.get("service")
    if not isinstance(name, str):
        raise NodeError("bad-request", "service is a service's name")
    return Store(name)


def _systemctl(*words: str) -> None:
    if not paths.has_systemd():
        return
    result = subprocess.run(["systemctl", *words], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode:
        text = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NodeError("start-failed", f"systemctl {words[0]}: {text[-1] if text else 'no reason given'}")


def apply(request: dict[str, Any]) -> dict[str, Any]:
    """Want this service from now on."""
    service = Service(request.get("service"))
    if not service_ingress.is_installed():
        raise NodeError("not-found", "the ingress is not installed on this node")
    if service.model is not None:
        other = service_ingress.model_owner(service.model.name)
        if other not in (None, service.name):
            raise NodeError("busy", f"the model {service.model.name} is served by the service {other} already")
    store = Store(service.name)
    store.make()
    store.write("desired.json", service.raw)
    store.remove("stop")
    summary = _summary(store)
    if summary and summary["state"] in service_store.FINAL:
        store.remove("state.json")
    _systemctl("enable", "--quiet", unit_name(service.name))
    _systemctl("start", unit_name(service.name))
    return {"token": store.token() if service.auth else None, "summary": _summary(store)}


def _summary(store: Store) -> dict[str, Any] | None:
    """What the supervisor said last, and whether there is one."""
    desired = store.read("desired.json")
    if desired is None:
        return None
    known = (store.read("state.json") or {}).get("summary") or {}
    fallback: dict[str, Any] = {
        "name": store.name,
        "state": "starting",
        "revision": desired.get("revision"),
        "replicas_wanted": desired.get("replicas"),
        "replicas_ready": 0,
        "replicas": [],
        "waiting": [],
        "failures": {},
        "update": {"state": "none", "message": ""},
        "proxy": "",
    }
    passed = {key: desired.get(key) for key in ("port", "auth", "ingress", "ingress_port", "owner", "submitted_at")}
    alive = locks.is_held(store.path("supervisor.lock"))
    return {**fallback, **passed, **known, "supervised": alive, "wanted_revision": desired.get("revision")}


def status(request: dict[str, Any]) -> dict[str, Any]:
    """All services of this ingress, or the one that is asked for."""
    name = request.get("service")
    names = service_store.names() if name is None else [_store(request).name]
    found = [summary for name in names if (summary := _summary(Store(name))) is not None]
    return {"services": found, "ingress_port": service_ingress.port()}


def token(request: dict[str, Any]) -> dict[str, Any]:
    """The token of a service that asks for one."""
    store = _store(request)
    desired = store.read("desired.json")
    if desired is None:
        raise NodeError("not-found", f"there is no service {store.name} on this node")
    return {"token": store.token() if desired.get("auth") is not False else None}


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """End a service in order."""
    store = _store(request)
    summary = _summary(store)
    if summary is None:
        raise NodeError("not-found", f"there is no service {store.name} on this node")
    if summary["state"] not in service_store.FINAL:
        paths.write_atomic(store.path("stop"), b"")
        _systemctl("disable", "--quiet", unit_name(store.name))
        _systemctl("start", unit_name(store.name))  # where it has given up, it has to clear up now
    return {"summary": _summary(store)}


def forget(request: dict[str, Any]) -> dict[str, Any]:
    """Remove what is left of a stopped service."""
    store = _store(request)
    if locks.is_held(store.path("supervisor.lock")):
        raise NodeError("active", f"service {store.name} is active on this node: stop it first")
    store.forget()
    return {}


OPERATIONS = {
    "service-apply": apply,
    "service-status": status,
    "service-token": token,
    "service-stop": stop,
    "service-forget": forget,
}
