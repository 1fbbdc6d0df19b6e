"""Addresses and InfiniBand ports of this node, read from the kernel (netlink, sysfs) without starting programs."""

from __future__ import annotations

import os
import struct

from . import light, paths
from .gpus import sysfs
from .paths import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RTM_GETADDR, NLM_F_REQUEST_DUMP, NLMSG_DONE, NLMSG_ERROR = 22, 0x301, 3, 2
IFA_ADDRESS, IFA_LOCAL = 1, 2
RT_SCOPE_LINK = 253


def _messages() -> Iterator[tuple[int, bytes]]:
    from .sockets import socket

    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    try:
        netlink.settimeout(2.0)
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII8s", 24, RTM_GETADDR, NLM_F_REQUEST_DUMP, 1, 0, b"\0" * 8))
        while True:
            data = netlink.recv(1 << 16)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind in (NLMSG_DONE, NLMSG_ERROR) or length < 16:
                    return
                yield kind, data[16:length]
                data = data[(length + 3) & ~3 :]
    finally:
        netlink.close()


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :]


def addresses() -> list[dict[str, Any]]:
    """All addresses that other hosts may use: IPv4 and global IPv6, no loopback, no link-local.

    Under LAMBDACTL_ROOT a "node" is a folder of this machine; its address is the one at which SSH reached it.
    """
    reached = os.environ.get("SSH_CONNECTION", "").split()
    if paths.ROOT and len(reached) == 4:
        return [{"interface": "ssh", "address": reached[2], "prefix": 8}]
    from .sockets import socket

    names = dict(socket.if_nameindex())
    found = []
    try:
        for _, body in _messages():
            family, prefix, _, scope, interface = struct.unpack_from("=BBBBI", body)
            if scope >= RT_SCOPE_LINK or family not in (socket.AF_INET, socket.AF_INET6):
                continue
            values = dict(_attributes(body[8:]))
            raw = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
            if raw:
                address = socket.inet_ntop(family, raw)
                found.append({"interface": names.get(interface, "?"), "address": address, "prefix": prefix})
    except OSError:
        return found
    return found


def infiniband() -> list[dict[str, Any]]:
    """Every port of every InfiniBand (or RoCE) device; rate in Gbit/s."""
    ports = []
    root = sysfs() + "/class/infiniband"
    for device in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        folder = f"{root}/{device}/ports"
        for port in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            rate, unit, _ = read_text(f"{folder}/{port}/rate").partition(" Gb/sec")
            ports.append(
                {
                    "device": device,
                    "port": int(port),
                    "state": read_text(f"{folder}/{port}/state").partition(":")[2].strip(),
                    "link_layer": read_text(f"{folder}/{port}/link_layer").strip(),
                    "rate_gbps": float(rate) if unit and light.made_of(rate, "0123456789.") else None,
                }
            )
    return ports
