"""The service that a controller hands to the ingress host: parsed once, strictly; its supervisor relies on it.

A service document: `name, revision (which replicas are alike), replicas, port, hosts:[{name, ip, ssh_user, ssh_port,
job: JobSpec}] (in the order in which they are filled), probes:[{url, method, headers: {k: v}, body, timeout, interval,
ready_after, until_ready}], auth (bool), strip_prefix (bool), model: {name, prefix}|null, rate_limits:[{prefix, rps,
burst, header|null}], node_timeout, drain_timeout, ready_timeout (s), ingress (a host's name), ingress_port, owner,
submitted_at`.
"""

from __future__ import annotations

import re

from . import paths
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = re.compile(r"[a-z][a-z0-9-]{0,60}")
REVISION = re.compile(r"[0-9a-f]{6,64}")
ADDRESS = re.compile(r"[0-9A-Za-z][0-9A-Za-z.:%-]{0,253}")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
# What becomes a part of the proxy's configuration; no quotes, no spaces, nothing that its grammar knows.
URL_PATH = re.compile(r"/[A-Za-z0-9/._~!*'(),;:@&=+$-]{0,200}")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9/._:@+-]{0,200}")
HEADER = re.compile(r"[A-Za-z0-9_-]{1,256}")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD")
MOST_REPLICAS = 200
DEFAULT_NODE_TIMEOUT, DEFAULT_DRAIN, DEFAULT_READY = 30.0, 60.0, 600.0


def _bad(field: str, value: object, allowed: str) -> NodeError:
    return NodeError("bad-request", f"service: {field} is {str(value)[:80]!r}, allowed is {allowed}")


def _match(raw: dict[str, Any], field: str, pattern: re.Pattern[str], allowed: str) -> str:
    value = raw.get(field)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _bad(field, value, allowed)
    return value


def _number(raw: dict[str, Any], field: str, default: float, least: float, most: float = 1e9) -> float:
    value = raw.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _bad(field, value, f"a number from {least:g} to {most:g}")
    return float(value)


def _list(raw: dict[str, Any], field: str) -> list[dict[str, Any]]:
    value = raw.get(field) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _bad(field, value, "a list of objects")
    return value


class Host:
    """A host that may take a replica, and the job that it would execute (without the run's identity)."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.name = str(raw.get("name") or "")
        self.ip = _match(raw, "ip", ADDRESS, "an address")
        self.ssh_user = _match({"ssh_user": "root", **raw}, "ssh_user", USER, "a user's name")
        self.ssh_port = int(_number(raw, "ssh_port", 22, 1, 65535))
        job = raw.get("job")
        if not self.name or not isinstance(job, dict):
            raise _bad("hosts", self.name, "hosts with a name and a job")
        self.job: dict[str, Any] = job


class Probe:
    """One HTTP request that says whether a replica is healthy; without a URL a mere connection to the port. Seconds."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.url = None if raw.get("url") is None else str(raw["url"])
        if self.url is not None and (not self.url.startswith("/") or not self.url.isprintable() or " " in self.url):
            raise _bad("probes.url", self.url, "a path that starts with '/'")
        self.method = str(raw.get("method") or "GET").upper()
        if self.method not in METHODS:
            raise _bad("probes.method", self.method, ", ".join(METHODS))
        headers = raw.get("headers") or {}
        if not isinstance(headers, dict) or not all(isinstance(text, str) for pair in headers.items() for text in pair):
            raise _bad("probes.headers", type(headers).__name__, "an object of texts")
        self.headers: dict[str, str] = headers
        self.body = None if raw.get("body") is None else str(raw["body"])
        self.timeout = _number(raw, "timeout", 10, 0.05, 3600)
        self.interval = _number(raw, "interval", 15, 0.05, 86400)
        self.ready_after = int(_number(raw, "ready_after", 1, 1))
        self.until_ready = raw.get("until_ready") is True


CONNECTION = Probe({"timeout": 5, "interval": 2})  # for a service that names no probes


class RateLimit:
    """At most `rps` requests a second (and `burst` ahead of it) to paths that begin with `prefix`, for each caller."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.prefix = _match(raw, "prefix", URL_PATH, "a path of letters, digits and /._~!*'(),;:@&=+$-")
        self.rps = _number(raw, "rps", 0, 1 / 60)
        self.burst = int(_number(raw, "burst", 0, 0))
        self.header = None if raw.get("header") is None else _match(raw, "header", HEADER, "a header's name")


class Model:
    """A model by its name, and where the replicas serve it in OpenAI's manner."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.name = _match(raw, "name", MODEL_NAME, "a model's name of letters, digits and /._:@+-")
        self.prefix = _match(raw, "prefix", URL_PATH, "a path").rstrip("/")


class Service:
    """What is wanted. ``raw`` is the document as it came."""

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, dict):
            raise _bad("service", raw, "an object")
        self.raw = raw
        self.name = _match(raw, "name", NAME, "lower-case letters, digits and dashes")
        self.revision = _match(raw, "revision", REVISION, "hexadecimal digits")
        self.replicas = int(_number(raw, "replicas", 1, 0, MOST_REPLICAS))
        self.port = int(_number(raw, "port", 0, 1, 65535))
        self.hosts = [Host(item) for item in _list(raw, "hosts")]
        names = [host.name for host in self.hosts]
        if not names or len(set(names)) != len(names):
            raise _bad("hosts", names, "a list of different hosts")
        self.probes = [Probe(item) for item in _list(raw, "probes")] or [CONNECTION]
        self.named_probes = len(_list(raw, "probes"))
        self.auth = raw.get("auth") is not False
        self.strip_prefix = raw.get("strip_prefix") is not False
        model = raw.get("model")
        self.model = Model(model) if isinstance(model, dict) else None
        self.rate_limits = [RateLimit(item) for item in _list(raw, "rate_limits")]
        self.node_timeout = _number(raw, "node_timeout", DEFAULT_NODE_TIMEOUT, 1)
        self.drain_timeout = _number(raw, "drain_timeout", DEFAULT_DRAIN, 0)
        self.ready_timeout = _number(raw, "ready_timeout", DEFAULT_READY, 1)

    def host(self, name: str) -> Host | None:
        """The host of that name, or None."""
        return next((host for host in self.hosts if host.name == name), None)


def folder(name: str) -> str:
    """Where a service's files are on its ingress host; its validated name is the last part."""
    if not NAME.fullmatch(name):
        raise NodeError("bad-request", f"service {name[:60]!r} is not a service's name ([a-z0-9-])")
    return f"{paths.STATE}/services/{name}"
