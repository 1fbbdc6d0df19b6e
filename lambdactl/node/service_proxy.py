"""A service's servers in the ingress' HAProxy: in its file, and as its runtime API has them. Pure: texts only.

What happens to requests before they go to a server is in service_rules.py. The role `ingress` owns the rest
(roles/ingress/templates/haproxy.cfg.j2): it sends /proxy/services/main/<service>/ to the backend `service-<service>`,
and /proxy/models/main/ to the service of the model that the request's body names.
"""

from __future__ import annotations

from .service_rules import service_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .service_doc import Service

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


def config(service: Service, places: Mapping[int, Place], *, slots: int, etc: str, run: str) -> str:
    """The service's file.

    Args:
        places: by slot; a slot that is not in it takes no requests.
        etc: folder of the ingress' configuration.
        run: folder of its sockets.
    """
    # A plain connection, closed in order: applications write no error for it, as they do when it is reset.
    servers = ["balance leastconn", "option tcp-check", "tcp-check connect linger"]
    for slot in range(slots):
        place = places.get(slot, Place(*NOWHERE, "maint"))
        ip = f"[{place.ip}]" if ":" in place.ip else place.ip
        off = "" if place.state == "ready" else " disabled"
        servers.append(f"server r{slot} {ip}:{place.port} check{off}")
    return service_config(service, etc=etc, bind=f"unix@{run}/{service.name}.sock mode 666", servers=servers)


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
                # It closes what is under way there by itself, unless its own check had found the server down before.
                commands += [f"set server {server} state maint", f"shutdown sessions server {server}"]
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
