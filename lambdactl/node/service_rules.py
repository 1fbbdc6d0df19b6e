"""What the proxy does with the requests of one service, as HAProxy's configuration: pure text, for hosts and clusters.

A fleet's ingress (service_proxy.py) and the proxy of a Kubernetes namespace (lambdactl/backends/kubernetes/proxy_*.py)
differ in where the servers are and who writes the file; paths, tokens, models and rate limits are these. The frontend
that leads here is roles/ingress/templates/haproxy.cfg.j2 for both.
"""

from __future__ import annotations

import hashlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Limit(Protocol):
        """At most `rps` requests a second and `burst` ahead to a path's prefix, for each address or header's value."""

        @property
        def prefix(self) -> str: ...
        @property
        def rps(self) -> float: ...
        @property
        def burst(self) -> int: ...
        @property
        def header(self) -> str | None: ...

    class Model(Protocol):
        """A model's name, and the path under which the replicas speak OpenAI's way (without a slash at its end)."""

        @property
        def name(self) -> str: ...
        @property
        def prefix(self) -> str: ...

    class Front(Protocol):
        """What the proxy has to know of a service; every text has been checked, because it becomes configuration."""

        @property
        def name(self) -> str: ...
        @property
        def auth(self) -> bool: ...
        @property
        def strip_prefix(self) -> bool: ...
        @property
        def model(self) -> Model | None: ...
        @property
        def rate_limits(self) -> Sequence[Limit]: ...


SERVICES_PATH = "/proxy/services/main"
MODELS_PATH = "/proxy/models/main"


def token_hash(token: str) -> str:
    """What the proxy compares the Authorization header's SHA-256 with: the token itself is in no configuration."""
    return hashlib.sha256(f"Bearer {token}".encode()).hexdigest()


def model_line(front: Front) -> str:
    """The service's line in the map of models; empty where it has none."""
    return "" if front.model is None else f"{front.model.name} service-{front.name}\n"


def allowance(limit: Limit) -> tuple[int, int]:
    """(seconds, requests): what a rate limit lets through within a window."""
    period = 10 if limit.rps >= 1 else 60
    return period, max(1, int(limit.rps * period)) + limit.burst


def service_config(front: Front, *, etc: str, bind: str, servers: Sequence[str]) -> str:
    """The service's file: its rate limits' tables, a door of its own (for `attach`), and the backend.

    Args:
        etc: folder of the proxy's configuration.
        bind: where the door of its own is, as HAProxy's `bind` has it.
        servers: the backend's last lines, which say where requests go.
    """
    name = front.name
    limits = sorted(enumerate(front.rate_limits), key=lambda pair: -len(pair[1].prefix))
    lines = ["# Managed by lambdactl: written for this service, removed when it is stopped."]
    for number, limit in limits:
        lines += _limit_table(front, number, limit)
    lines += [f"frontend attach-{name}", f"    bind {bind}", f"    default_backend service-{name}"]
    lines += [f"backend service-{name}"]
    if front.auth:
        lines += [
            "    http-request return status 401 content-type text/plain string unauthorized hdr WWW-Authenticate Bearer"
            f" unless {{ req.hdr(authorization),sha2(256),hex -m str -i -f {etc}/auth/{name} }}",
            "    http-request del-header authorization",
        ]
    lines += _rewriting(front)
    for number, limit in limits:
        lines += _limit_lines(front, number, limit)
    # Only what surely has no effect twice is sent again when a replica closes the connection without an answer.
    lines += ["    http-request disable-l7-retry unless METH_GET or { method HEAD }"]
    return "\n".join([*lines, *(f"    {line}" for line in servers)]) + "\n"


def _limit_lines(front: Front, number: int, limit: Limit) -> list[str]:
    key = f"req.hdr({limit.header})" if limit.header else "src"
    table = f"limit-{front.name}-{number}"
    return [
        f"    http-request track-sc0 {key} table {table} if {{ path_beg {limit.prefix} }}",
        f"    http-request return status 429 content-type text/plain string too-many-requests"
        f" if {{ sc_http_req_rate(0,{table}) gt {allowance(limit)[1]} }}",
    ]


def _limit_table(front: Front, number: int, limit: Limit) -> list[str]:
    kind = "string len 256" if limit.header else "ipv6"
    period, _ = allowance(limit)
    return [
        f"backend limit-{front.name}-{number}",
        f"    stick-table type {kind} size 100k expire {2 * period}s store http_req_rate({period}s)",
    ]


def _rewriting(front: Front) -> list[str]:
    lines = []
    here = f"{SERVICES_PATH}/{front.name}"
    if front.model is not None:
        prefix = front.model.prefix
        lines += [
            f"    http-request set-path {prefix}/%[path,regsub(^{MODELS_PATH}/,,)] if {{ path_beg {MODELS_PATH}/ }}",
        ]
    if front.strip_prefix:
        lines += [
            f"    http-request set-path / if {{ path {here} }}",
            f"    http-request set-path /%[path,regsub(^{here}/,,)] if {{ path_beg {here}/ }}",
        ]
    return lines
