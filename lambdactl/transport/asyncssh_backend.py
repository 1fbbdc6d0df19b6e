"""The fast backend: every connection in this one process, one connection a jump chain, nodes through it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import asyncssh

from lambdactl.transport import api
from lambdactl.transport.api import Channel, Completed, Failure, Forward, Outcome, TransportError
from lambdactl.transport.asyncssh_login import Client, Logins, Policy
from lambdactl.transport.base import MAX_OUTPUT, BaseTransport, jump_place, node_place
from lambdactl.transport.failures import Cause, Place, failure, host_key_failure
from lambdactl.transport.hostkeys import KnownHosts
from lambdactl.transport.identity import UnusableKey
from lambdactl.transport.session import Collector, LiveSession, SSHChannel, open_session
from lambdactl.transport.window import ATTEMPTS, AuthGate, retry_delay

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet, FleetHost, Hop

Connection = asyncssh.SSHClientConnection
CLOSE_TIMEOUT = 3.0  # seconds for the polite end of all connections


class AsyncsshTransport(BaseTransport):
    """See lambdactl.transport.api.Transport."""

    kind = "asyncssh"

    def __init__(self, fleet: Fleet, *, connect_timeout: float = api.CONNECT_TIMEOUT, window: int = api.WINDOW) -> None:
        super().__init__(fleet, connect_timeout=connect_timeout, window=window)
        policy = Policy(KnownHosts(fleet.known_hosts), fleet.host_key_policy)
        self._logins_by = Logins(policy, connect_timeout)
        self._jumps: dict[tuple[Hop, ...], asyncio.Task[Connection | Failure]] = {}
        self._nodes: dict[str, Connection] = {}
        self._gate = AuthGate()

    def _alive(self, name: str) -> bool:
        connection = self._nodes.get(name)
        return connection is not None and not connection.is_closed()

    def _forget_failures(self) -> None:
        self._gate.reset()
        for hops, task in list(self._jumps.items()):
            if task.done() and _open(task) is None:
                del self._jumps[hops]

    async def _jump(self, hops: tuple[Hop, ...]) -> Connection | Failure | None:
        """The connection to the last of these jump hosts, opened once; None when there are no jump hosts."""
        if not hops:
            return None
        task = self._jumps.get(hops)
        if task is None:
            task = self._jumps[hops] = asyncio.create_task(self._connect_jump(hops))
        return await asyncio.shield(task)

    async def _connect_jump(self, hops: tuple[Hop, ...]) -> Connection | Failure:
        return await self._connect(jump_place(hops), hops[-1], hops[:-1], alias=None, gate=None)

    async def _open_route(self, host: FleetHost) -> Failure | None:
        jump = await self._jump(host.route.hops)
        return replace(jump, host=host.name) if isinstance(jump, Failure) else None

    async def _login(self, host: FleetHost) -> Failure | None:
        route = host.route
        made = await self._connect(
            node_place(host), route.target, route.hops, alias=host.host_key_alias, gate=self._gate
        )
        if isinstance(made, Failure):
            return replace(made, host=host.name)
        self._nodes[host.name] = made
        return None

    async def _connect(
        self, place: Place, hop: Hop, through: tuple[Hop, ...], *, alias: str | None, gate: AuthGate | None
    ) -> Connection | Failure:
        """Log in at a hop through a chain; again, after a while, only when the far side dropped us unheard."""
        for attempt in range(ATTEMPTS):
            tunnel = await self._jump(through)
            if isinstance(tunnel, Failure):
                return tunnel
            client = Client(self._logins_by.policy, alias, gate)
            accepted: bool | None = None
            try:
                async with asyncio.timeout(self.connect_timeout):
                    connection = await self._logins_by.connect(client, hop, tunnel, alias)
                accepted = True
            except (asyncssh.Error, OSError, ValueError, UnusableKey) as error:
                problem = diagnose(error, client)
                accepted = False if problem.cause == "auth" else None
            else:
                return connection
            finally:
                client.finish(accepted=accepted)
            if problem.cause != "dropped":
                break
            await asyncio.sleep(retry_delay(attempt))
            if tunnel is not None and tunnel.is_closed():
                self._forget_failures()
        if client.changed is not None:
            return host_key_failure(place, client.changed)
        if client.unknown_key:
            return failure(place, "unknown-key", self.fleet.known_hosts)
        if client.unfiled:
            return failure(place, "unfiled-key", client.unfiled)
        return failure(place, problem.cause, problem.detail)

    async def _exec(self, name: str, command: str, data: bytes, timeout: float | None) -> Outcome:
        connection = self._nodes[name]
        session: Collector | None = None
        try:
            async with asyncio.timeout(timeout):
                session = await open_session(connection, Collector, command)
                if data:
                    await session.send(data)
                session.send_eof()
                status = await asyncio.shield(session.ended)
        except TimeoutError:
            return self._fail(name, "too-long", f"{timeout:g}")
        except asyncssh.ChannelOpenError as error:
            return self._fail(name, "lost" if connection.is_closed() else "not-started", _reason(error))
        except (asyncssh.Error, OSError):
            return self._fail(name, "lost", " while a command was starting")
        finally:
            if session is not None and not session.ended.done():
                session.chan.abort()
        if session.size > MAX_OUTPUT:
            return self._fail(name, "too-big", str(MAX_OUTPUT >> 20))
        if status is None:
            return self._fail(name, "lost", " while a command ran")
        return Completed(name, status, b"".join(session.out), b"".join(session.err))

    async def _open_channel(self, name: str, command: str, release: Callable[[], None]) -> Channel:
        connection = self._nodes[name]
        try:
            session: LiveSession = await open_session(connection, LiveSession, command)
        except asyncssh.ChannelOpenError as error:
            cause: Cause = "lost" if connection.is_closed() else "not-started"
            raise TransportError(self._fail(name, cause, _reason(error))) from None
        except (asyncssh.Error, OSError):
            raise TransportError(self._fail(name, "lost", " while a command was starting")) from None
        session.ended.add_done_callback(lambda _: release())
        return SSHChannel(session, lambda: self._fail(name, "lost", " while a command ran"))

    async def _open_forward(self, name: str, remote: int | str, local_host: str, local_port: int) -> Forward:
        connection = self._nodes[name]
        if isinstance(remote, int):
            listener = await connection.forward_local_port(local_host, local_port, "localhost", remote)
        else:
            listener = await connection.forward_local_port_to_path(local_host, local_port, remote)
        return _Listener(listener, connection)

    async def _shutdown(self) -> None:
        for task in self._jumps.values():
            task.cancel()
        nodes = [connection for connection in self._nodes.values() if not connection.is_closed()]
        jumps = [found for task in self._jumps.values() if (found := _open(task)) is not None]
        self._nodes.clear()
        self._jumps.clear()
        await _end(nodes)
        for jump in reversed(jumps):  # a chain's inner connections before the outer ones that carry them
            await _end([jump])
        await self._logins_by.identities.close()


class _Listener:
    def __init__(self, listener: asyncssh.SSHListener, connection: Connection) -> None:
        self._listener = listener
        self._connection = connection

    @property
    def alive(self) -> bool:
        return not self._connection.is_closed()

    @property
    def port(self) -> int:
        return int(self._listener.get_port())

    async def close(self) -> None:
        self._listener.close()
        await self._listener.wait_closed()


async def _end(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await asyncio.gather(*(connection.wait_closed() for connection in connections), return_exceptions=True)
    for connection in connections:
        if not connection.is_closed():
            connection.abort()


def _open(task: asyncio.Task[Connection | Failure]) -> Connection | None:
    if not task.done() or task.cancelled() or task.exception() is not None:
        return None
    made = task.result()
    return None if isinstance(made, Failure) or made.is_closed() else made


def _reason(error: asyncssh.ChannelOpenError) -> str:
    return f": {error.reason}" if error.reason else ""


@dataclass(frozen=True, slots=True)
class Problem:
    """What an exception means; ``dropped`` is the one cause that is worth a retry."""

    cause: Cause
    detail: str = ""


# How the server of a tunnel words a connect failure (strerror and gai_strerror), and the local resolver too.
WORDS: tuple[tuple[str, Cause], ...] = (
    (r"refused", "refused"),
    (r"timed out", "timeout"),
    (r"not known|name resolution|No address associated|nodename nor servname", "name"),
    (r"No route|unreachable|Host is down", "route"),
)
ERRNO: dict[int, Cause] = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "route",
    errno.ENETUNREACH: "route",
}


def diagnose(error: Exception, client: Client) -> Problem:
    """The cause behind what asyncssh, or the socket below it, raised during a login."""
    text = str(error)
    if isinstance(error, UnusableKey):
        return Problem("no-key", text)
    if isinstance(error, asyncssh.PermissionDenied):
        return Problem("auth-stopped" if client.spared else "auth")
    if isinstance(error, TimeoutError):
        return Problem("timeout")
    if isinstance(error, asyncssh.ChannelOpenError):
        return _tunnel_problem(error)
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return Problem("other", text)
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return Problem("algorithms", text)
    if "Too many authentication failures" in text:
        return Problem("auth")
    if isinstance(error, asyncssh.ConnectionLost | ConnectionResetError | BrokenPipeError):
        return Problem("lost", " during the login") if client.secured else Problem("dropped")
    if isinstance(error, OSError) and error.errno in ERRNO:
        return Problem(ERRNO[error.errno])
    return _worded(text)


def _worded(text: str) -> Problem:
    cause = next((cause for pattern, cause in WORDS if re.search(pattern, text, re.IGNORECASE)), None)
    return Problem(cause) if cause is not None else Problem("other", text)


def _tunnel_problem(error: asyncssh.ChannelOpenError) -> Problem:
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return Problem("forwarding")
    if error.code == asyncssh.OPEN_RESOURCE_SHORTAGE or "closed" in error.reason:
        return Problem("dropped")
    return _worded(error.reason)
