"""The part of HAProxy's configuration that is one service's, as text: pure, so that it can be read and tested.

The role `ingress` owns the rest (roles/ingress/templates/haproxy.cfg.j2): it sends /proxy/services/main/<service>/ to
the backend `service-<service>`, and /proxy/models/main/ to the service of the model that the request's body names.
"""

from __future__ import annotations

import hashlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .service_doc import RateLimit, Service

SERVICES_PATH = "/proxy/services/main"
MODELS_PATH = "/proxy/models/main"
SPARE_SLOTS = 4
NOWHERE = ("192.0.2.1", 9)  # RFC 5737: an address of nobody, for a server that stands for no replica now


class Place:
    """Where a slot's requests go, and whether: state is ready, drain or maint, as HAProxy calls them."""

    def __init__(self, ip: str, port: int, state: str) -> None:
        self.ip = ip
        self.port = port
        self.state = state


def slots_for(service: Service, highest: int = 0) -> int:
    """How many servers the backend has; more than replicas, so that updates and growth need no reload."""
    return max(service.replicas + SPARE_SLOTS, highest + 1)


def token_hash(token: str) -> str:
    """What the proxy compares the Authorization header's SHA-256 with: the token itself is in no configuration."""
    return hashlib.sha256(f"Bearer {token}".encode()).hexdigest()


def _limit_lines(service: Service, number: int, limit: RateLimit) -> list[str]:
    key = f"req.hdr({limit.header})" if limit.header else "src"
    table = f"limit-{service.name}-{number}"
    return [
        f"    http-request track-sc0 {key} table {table} if {{ path_beg {limit.prefix} }}",
        f"    http-request return status 429 content-type text/plain string too-many-requests"
        f" if {{ sc_http_req_rate(0,{table}) gt {allowance(limit)[1]} }}",
    ]


def allowance(limit: RateLimit) -> tuple[int, int]:
    """(seconds, requests): what a rate limit lets through within a window."""
    period = 10 if limit.rps >= 1 else 60
    return period, max(1, int(limit.rps * period)) + limit.burst


def _limit_table(service: Service, number: int, limit: RateLimit) -> list[str]:
    kind = "string len 256" if limit.header else "ipv6"
    period, _ = allowance(limit)
    return [
        f"backend limit-{service.name}-{number}",
        f"    stick-table type {kind} size 100k expire {2 * period}s store http_req_rate({period}s)",
    ]


def _rewriting(service: Service) -> list[str]:
    lines = []
    here = f"{SERVICES_PATH}/{service.name}"
    if service.model is not None:
        prefix = service.model.prefix
        lines += [
            f"    http-request set-path {prefix}/%[path,regsub(^{MODELS_PATH}/,,)] if {{ path_beg {MODELS_PATH}/ }}",
        ]
    if service.strip_prefix:
        lines += [
            f"    http-request set-path / if {{ path {here} }}",
            f"    http-request set-path /%[path,regsub(^{here}/,,)] if {{ path_beg {here}/ }}",
        ]
    return lines


def config(service: Service, places: Mapping[int, Place], *, slots: int, etc: str, run: str) -> str:
    """The service's file.

    Args:
        places: by slot; a slot that is not in it takes no requests.
        etc: folder of the ingress' configuration.
        run: folder of its sockets.
    """
    name = service.name
    limits = sorted(enumerate(service.rate_limits), key=lambda pair: -len(pair[1].prefix))
    lines = ["# Managed by lambdactl: written by the service's supervisor, removed when the service is stopped."]
    for number, limit in limits:
        lines += _limit_table(service, number, limit)
    lines += [
        f"frontend attach-{name}",
        f"    bind unix@{run}/{name}.sock mode 666",
        f"    default_backend service-{name}",
    ]
    lines += [f"backend service-{name}"]
    if service.auth:
        lines += [
            "    http-request return status 401 content-type text/plain string unauthorized hdr WWW-Authenticate Bearer"
            f" unless {{ req.hdr(authorization),sha2(256),hex -m str -i -f {etc}/auth/{name} }}",
            "    http-request del-header authorization",
        ]
    lines += _rewriting(service)
    for number, limit in limits:
        lines += _limit_lines(service, number, limit)
    # Only what surely has no effect twice is sent again when a replica closes the connection without an answer.
    lines += ["    http-request disable-l7-retry unless METH_GET or { method HEAD }", "    balance leastconn"]
    # A plain connection, closed in order: applications write no error for it, as they do when it is reset.
    lines += ["    option tcp-check", "    tcp-check connect linger"]
    for slot in range(slots):
        place = places.get(slot, Place(*NOWHERE, "maint"))
        ip = f"[{place.ip}]" if ":" in place.ip else place.ip
        off = "" if place.state == "ready" else " disabled"
        lines.append(f"    server r{slot} {ip}:{place.port} check{off}")
    return "\n".join(lines) + "\n"


def structure(text: str) -> str:
    """What of a file needs a reload when it changes: all but where the servers are and how they stand."""
    return "\n".join(
        " ".join(line.split()[:2]) if line.startswith("    server ") else line for line in text.splitlines()
    )


def differences(name: str, places: Mapping[int, Place], shown: Mapping[int, Place]) -> list[str]:
    """Commands for HAProxy's runtime API that make its servers as they should be.

    Args:
        shown: the servers as HAProxy has them now, by slot.
    """
    commands = []
    for slot, now in sorted(shown.items()):
        want = places.get(slot)
        server = f"service-{name}/r{slot}"
        if want is None:
            if now.state != "maint":
                commands.append(f"set server {server} state maint")
            continue
        if (want.ip, want.port) != (now.ip, now.port):
            if now.state != "maint":
                commands.append(f"set server {server} state maint")
                now = Place(now.ip, now.port, "maint")
            commands.append(f"set server {server} addr {want.ip} port {want.port}")
        if want.state != now.state:
            commands.append(f"set server {server} state {want.state}")
    return commands


# Bits of srv_admin_state; 0x04 only says that the server was off when the configuration was read.
ADMIN_MAINT, ADMIN_DRAIN = 0x01 | 0x02 | 0x20, 0x08 | 0x10


def servers_state(text: str) -> dict[int, Place]:
    """Slots as `show servers state <backend>` tells them (its format 1; HAProxy's management guide, 9.3)."""
    found = {}
    lines = text.splitlines()
    header = next((line for line in lines if line.startswith("# be_id")), "")
    names = header.lstrip("# ").split()
    for line in lines:
        values = line.split()
        if line.startswith("#") or len(values) < len(names) or len(values) < 10:
            continue
        row = dict(zip(names, values))
        slot = row.get("srv_name", "")
        if not slot.startswith("r") or not slot[1:].isdigit():
            continue
        admin = int(row["srv_admin_state"])
        state = "maint" if admin & ADMIN_MAINT else "drain" if admin & ADMIN_DRAIN else "ready"
        found[int(slot[1:])] = Place(row["srv_addr"], int(row["srv_port"]), state)
    return found


def connections(text: str, name: str) -> dict[int, int]:
    """Requests under way by slot, from `show stat` (CSV)."""
    lines = text.splitlines()
    names = lines[0].lstrip("# ").split(",") if lines else []
    found = {}
    for line in lines[1:]:
        row = dict(zip(names, line.split(",")))
        server = row.get("svname", "")
        if row.get("pxname") == f"service-{name}" and server.startswith("r") and server[1:].isdigit():
            found[int(server[1:])] = int(row.get("scur") or 0)
    return found
