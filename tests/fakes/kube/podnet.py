"""Addresses for the process mode: a bridge for the cluster, a network namespace and a veth pair for each pod."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path


class NetworkTrouble(RuntimeError):
    """This machine does not let the fake make network namespaces."""


async def run(*argv: str, check: bool = True) -> bytes:
    """A program's output."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    if check and process.returncode:
        raise NetworkTrouble(f"{' '.join(argv)}: {out.decode(errors='replace').strip()}")
    return out


class PodNetwork:
    """One cluster's bridge and its pods' namespaces; addresses are 10.<a>.<b>.2 to .254."""

    def __init__(self) -> None:
        self.bridge = f"kf{uuid.uuid4().hex[:8]}"
        self.subnet = f"10.{random.randint(200, 249)}.{random.randint(0, 255)}"
        first, second = self.subnet.split(".")[1:]
        self.services = f"10.{int(first) - 50}.{second}"  # addresses of Services
        self._next = 1
        self._spaces: dict[str, str] = {}  # pod uid to namespace
        self._up: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether the bridge is there."""
        return self._up is not None and self._up.done() and self._up.exception() is None

    async def _prepare(self) -> None:
        await run("ip", "link", "add", self.bridge, "type", "bridge")
        await run("ip", "addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
        await run("ip", "link", "set", self.bridge, "up")
        # Docker lets no bridge but its own forward.
        await run("iptables", *self._rule("-I"), check=False)

    @property
    def gateway(self) -> str:
        """This machine's address in the pods' network."""
        return f"{self.subnet}.1"

    def _rule(self, action: str) -> list[str]:
        return [action, "FORWARD", "-i", self.bridge, "-o", self.bridge, "-j", "ACCEPT"]

    async def add(self, uid: str) -> tuple[str, str]:
        """A pod's network namespace and address."""
        if self._up is None:
            self._up = asyncio.ensure_future(self._prepare())
        await self._up
        self._next = self._next % 253 + 1
        address = f"{self.subnet}.{self._next + 1}"
        space = f"kf-{uid[:13]}"
        self._spaces[uid] = space
        host, peer = f"v{uid[:8]}h", f"v{uid[:8]}p"
        await run("ip", "netns", "add", space)
        await run("ip", "link", "add", host, "master", self.bridge, "type", "veth", "peer", "name", peer)
        await run("ip", "link", "set", host, "up")
        await run("ip", "link", "set", peer, "netns", space, "name", "eth0")
        script = f"ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up"
        script += f" && ip route add default via {self.subnet}.1"
        await run("ip", "netns", "exec", space, "sh", "-c", script)
        return space, address

    async def remove(self, uid: str) -> None:
        space = self._spaces.pop(uid, None)
        if space is not None:
            await run("ip", "netns", "del", space, check=False)

    async def close(self) -> None:
        for uid in list(self._spaces):
            await self.remove(uid)
        if self._up is not None:
            await run("iptables", *self._rule("-D"), check=False)
            await run("ip", "link", "del", self.bridge, check=False)


async def localhost(process: int, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a port of the localhost that a process sees. Raises OSError."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[socket.socket] = loop.create_future()

    def connect() -> None:
        # In a thread of its own, which ends in the other network namespace; a socket stays where it was made.
        try:
            with Path(f"/proc/{process}/ns/net").open() as space:
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        except OSError as error:
            loop.call_soon_threadsafe(made.set_exception, error)
        else:
            loop.call_soon_threadsafe(made.set_result, connection)

    threading.Thread(target=connect).start()
    return await asyncio.open_connection(sock=await made)


async def open_door(address: str, port: Callable[[], int]) -> asyncio.Server:
    """Listen on an address of this machine, and pass on to a port of its localhost."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port())
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))

    return await asyncio.start_server(serve, address, 0)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All bytes, until the end of either side."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
