"""The port that a replica listens on: whether it is free on this node, and who has it where it is not.

The JobSpec key `service` is `{name, replica, port}`.
"""

from __future__ import annotations

import errno
import os

from . import paths
from .errors import NodeError


def parse(raw: object) -> int | None:
    """The port of a JobSpec's `service`, None without one. Raises NodeError (bad-request)."""
    if raw is None:
        return None
    port = raw.get("port") if isinstance(raw, dict) else None
    if type(port) is not int or not 0 < port < 65536:
        raise NodeError("bad-request", f"job: service.port is {str(port)[:40]!r}, allowed is a port")
    return port


def check(port: int, ip: str) -> None:
    """Refuse a port that something listens on, on any address of the node. Raises NodeError (start-failed)."""
    import socket

    everywhere = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 (nobody is listened to)
    for family, address in ((socket.AF_INET, ip),) if paths.ROOT else everywhere:  # many nodes on one machine
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise NodeError("start-failed", f"port {port} is taken{_by(port)}") from None


def _by(port: int) -> str:
    """Who listens, as " by NAME (process N)"; empty when that cannot be found."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        except OSError:
            continue
        if links & sockets:
            return f" by {paths.read_text(f'/proc/{pid}/comm').strip() or '?'} (process {pid})"
    return ""


def _listening(port: int) -> list[str]:
    """Inodes of the sockets that listen on a port (/proc/net/tcp: local address and state are fields 1 and 3)."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in paths.read_text(table).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(fields[9])
    return found
