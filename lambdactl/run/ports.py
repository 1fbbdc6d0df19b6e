"""Ports of a run on the user's machine, for as long as somebody is attached.

A port that the file names alone (`8501`) moves to a free one where it is taken here; one that was chosen (`80:8080`) is
not moved behind the user's back. A forward whose connection was lost is made again, on the same port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from lambdactl.errors import LambdactlError, SpecError
from lambdactl.spec import parse_ports
from lambdactl.transport.api import TransportError

if TYPE_CHECKING:
    from lambdactl.transport.api import Forward

ADDRESS = "127.0.0.1"
_CHECK = 2.0  # seconds between two looks at whether the forwards are alive


class Forwarder(Protocol):
    """What can bring a node's port here: a Transport, or a cluster's API."""

    async def forward(
        self, name: str, remote: int | str, *, local_host: str = "127.0.0.1", local_port: int = 0
    ) -> Forward:
        """As `Transport.forward`."""
        ...


@dataclass(frozen=True)
class Port:
    """A port of a node and where it is to be here; `local` None is any free one."""

    host: str
    remote: int
    local: int | None


def wanted(ranks: Iterable[Mapping[str, Any]], options: Sequence[str] = ()) -> list[Port]:
    """The ports of a run: those in its ranks' states, and `-p [LOCAL:]REMOTE`, which is about rank 0 and goes first.

    Raises:
        SpecError: an option is not of that form.
    """
    found: dict[tuple[str, int], Port] = {}
    for rank in ranks:
        host = str(rank["node"])
        for local, remote in rank.get("ports") or ():
            found[host, int(remote)] = Port(host, int(remote), local)
        if rank.get("rank") == 0:
            for option in options:
                local, remote = parse_ports(option, name="-p")
                found[host, remote] = Port(host, remote, local)
    return list(found.values())


def choose(ports: Sequence[Port]) -> list[Port]:
    """Settle which local ports are used, before a run is started for nothing.

    Raises:
        SpecError: a port that was asked for is taken here, or twice.
    """
    chosen: list[Port] = []
    for port in ports:
        taken = port.local is not None and any(port.local == other.local for other in chosen)
        reason = "is used for another port of this run" if taken else _why_not(port.local)
        if reason is None:
            chosen.append(port)
        elif port.local == port.remote:
            chosen.append(replace(port, local=None))
        else:
            raise SpecError(
                f"port {port.local} of this machine {reason}; choose another one, or any free one by "
                f"-p *:{port.remote}."
            )
    return chosen


def _why_not(port: int | None) -> str | None:
    if port is None:
        return None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "is taken"
            return "may not be used by you" if error.errno == errno.EACCES else f"cannot be used ({error.strerror})"
    return None


@asynccontextmanager
async def forwarded(transport: Forwarder, ports: Sequence[Port], note: Callable[[str], None]) -> AsyncIterator[None]:
    """Forward the ports (of `choose`) inside the context, and say where each one is.

    Raises:
        LambdactlError: a port was taken meanwhile, or its node cannot be reached.
    """
    opened: list[tuple[Port, Forward]] = []
    try:
        for port in ports:
            forward = await _open(transport, port)
            opened.append((replace(port, local=forward.port), forward))
            note(f"http://{ADDRESS}:{forward.port} is port {port.remote} of {port.host}.")
        keeping = asyncio.ensure_future(_keep(transport, opened)) if opened else None
        try:
            yield
        finally:
            if keeping is not None:
                keeping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeping
    finally:
        for _, forward in opened:
            with contextlib.suppress(Exception):
                await forward.close()


async def _open(transport: Forwarder, port: Port) -> Forward:
    try:
        return await transport.forward(port.host, port.remote, local_host=ADDRESS, local_port=port.local or 0)
    except TransportError as error:
        raise LambdactlError(f"port {port.remote} of {port.host} cannot be forwarded: {error.failure}") from None
    except OSError as error:
        raise LambdactlError(
            f"port {port.local} of this machine cannot be used ({error.strerror}); "
            f"attach again with -p *:{port.remote}."
        ) from None


async def _keep(transport: Forwarder, opened: list[tuple[Port, Forward]]) -> None:
    """Make again what a lost connection took away; quietly, because the log's follower tells about the connection."""
    while True:
        await asyncio.sleep(_CHECK)
        for index, (port, forward) in enumerate(opened):
            if not forward.alive:
                with contextlib.suppress(LambdactlError):
                    opened[index] = (port, await _open(transport, port))
