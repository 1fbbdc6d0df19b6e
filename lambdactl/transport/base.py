"""What both backends share: who is connected, the window, the queue for sessions, fan-out and closing."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lambdactl.errors import LambdactlError
from lambdactl.transport import api
from lambdactl.transport.api import Channel, Commands, Failure, Forward, OnConnect, OnResult, Outcome, TransportError
from lambdactl.transport.failures import Cause, Place, failure

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet, FleetHost, Hop

T = TypeVar("T")
MAX_OUTPUT = 256 << 20  # bytes of one command's output that are collected; more belongs into a channel


class BaseTransport(ABC):
    """Keeps one connection a host, opened at most once whoever asks for it."""

    kind: str

    def __init__(self, fleet: Fleet, *, connect_timeout: float = api.CONNECT_TIMEOUT, window: int = api.WINDOW) -> None:
        self.fleet = fleet
        self.connect_timeout = connect_timeout
        self._hosts: dict[str, FleetHost] = {host.name: host for host in fleet.hosts}
        self._window = asyncio.Semaphore(window)
        self._sessions: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(api.SESSIONS))
        self._logins: dict[str, asyncio.Task[Failure | None]] = {}

    # What a backend does.

    @abstractmethod
    def _alive(self, name: str) -> bool:
        """Whether this host's connection is open."""

    @abstractmethod
    async def _open_route(self, host: FleetHost) -> Failure | None:
        """Open the jump connections in front of a host, once for all hosts that share them."""

    @abstractmethod
    async def _login(self, host: FleetHost) -> Failure | None:
        """Connect to the host itself; the route is open."""

    @abstractmethod
    async def _exec(self, name: str, command: str, data: bytes, timeout: float | None) -> Outcome:
        """Run a command on a connected host."""

    @abstractmethod
    async def _open_channel(self, name: str, command: str, release: Callable[[], None]) -> Channel:
        """Start a command; ``release`` is called once when its session is gone. Raises TransportError."""

    @abstractmethod
    async def _open_forward(self, name: str, remote: int | str, local_host: str, local_port: int) -> Forward: ...

    @abstractmethod
    async def _shutdown(self) -> None:
        """Close everything; must not raise."""

    @abstractmethod
    def _forget_failures(self) -> None:
        """A new call tries again what failed before."""

    # What callers use.

    async def connect(
        self, names: Sequence[str] | None = None, on_result: OnConnect | None = None
    ) -> dict[str, Failure | None]:
        self._forget_failures()

        async def one(name: str) -> Failure | None:
            outcome = await self._connected(name)
            if on_result is not None:
                on_result(name, outcome)
            return outcome

        return await gather_all({name: one(name) for name in (self._hosts if names is None else names)})

    async def run(self, name: str, command: str, *, input: bytes = b"", timeout: float | None = None) -> Outcome:
        self._forget_failures()
        return await self._run(name, command, input, timeout)

    async def fan_out(
        self,
        commands: Commands,
        *,
        names: Sequence[str] | None = None,
        input: bytes = b"",
        timeout: float | None = None,
        on_result: OnResult | None = None,
    ) -> dict[str, Outcome]:
        self._forget_failures()

        async def one(name: str, command: str, data: bytes) -> Outcome:
            outcome = await self._run(name, command, data, timeout)
            if on_result is not None:
                on_result(name, outcome)
            return outcome

        chosen = api.plan_commands(commands, names, tuple(self._hosts), input)
        return await gather_all({name: one(name, *item) for name, item in chosen.items()})

    async def channel(self, name: str, command: str) -> Channel:
        self._forget_failures()
        await self._must_connect(name)
        sessions = self._sessions[name]
        await sessions.acquire()
        try:
            return await self._open_channel(name, command, sessions.release)
        except BaseException:
            sessions.release()
            raise

    async def forward(
        self, name: str, remote: int | str, *, local_host: str = "127.0.0.1", local_port: int = 0
    ) -> Forward:
        self._forget_failures()
        await self._must_connect(name)
        return await self._open_forward(name, remote, local_host, local_port)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await shielded(self.close())

    async def close(self) -> None:
        """Close every connection and wait until it is gone. Idempotent."""
        logins = [task for task in self._logins.values() if not task.done()]
        for task in logins:
            task.cancel()
        await asyncio.gather(*logins, return_exceptions=True)
        self._logins.clear()
        await self._shutdown()

    # Shared steps.

    async def _run(self, name: str, command: str, data: bytes, timeout: float | None) -> Outcome:
        refused = await self._connected(name)
        if refused is not None:
            return refused
        async with self._sessions[name]:
            return await self._exec(name, command, data, timeout)

    async def _must_connect(self, name: str) -> None:
        refused = await self._connected(name)
        if refused is not None:
            raise TransportError(refused)

    async def _connected(self, name: str) -> Failure | None:
        """Connect a host, or join the attempt that is under way."""
        task = self._logins.get(name)
        if task is None or (task.done() and not self._alive(name)):
            task = self._logins[name] = asyncio.create_task(self._connect_host(self._host(name)))
        # A caller that gives up must not take the connection away from the others that wait for it.
        return await asyncio.shield(task)

    async def _connect_host(self, host: FleetHost) -> Failure | None:
        refused = await self._open_route(host)
        if refused is not None:
            return refused
        async with self._window:
            return await self._login(host)

    def _host(self, name: str) -> FleetHost:
        try:
            return self._hosts[name]
        except KeyError:
            raise LambdactlError(f"The fleet {self.fleet.name} has no host {name}.") from None

    def _place(self, name: str) -> Place:
        return node_place(self._hosts[name])

    def _fail(self, name: str, cause: Cause, detail: str = "") -> Failure:
        return failure(self._place(name), cause, detail)


def node_place(host: FleetHost) -> Place:
    """A node as messages name it."""
    hops, target = host.route.hops, host.route.target
    via = hops[-1].hostname if hops else None
    return Place("node", host.name, target.hostname, target.port, target.user, target.identity_file, via)


def jump_place(hops: Sequence[Hop]) -> Place:
    """The last jump host of a chain as messages name it; the host is filled in per fleet host."""
    hop, via = hops[-1], hops[-2].hostname if len(hops) > 1 else None
    return Place("jump", "", hop.hostname, hop.port, hop.user, hop.identity_file, via)


async def gather_all(work: Mapping[str, Coroutine[Any, Any, T]]) -> dict[str, T]:
    """Run all; the result keeps the order. An unexpected error, or a cancellation, ends them all."""
    tasks = {name: asyncio.create_task(one) for name, one in work.items()}
    try:
        await asyncio.gather(*tasks.values())
    except BaseException:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        raise
    return {name: task.result() for name, task in tasks.items()}


async def relay(sources: Iterable[T], targets: Sequence[T], pass_on: Callable[[T, T], Awaitable[bool]]) -> list[T]:
    """Whoever has something passes it on to one that has not, each to one at a time, until all have it.

    Args:
        pass_on: from the first to the second; whether the second has it now, and can pass it on as well.

    Returns:
        The targets that were not reached.
    """
    free: asyncio.Queue[T] = asyncio.Queue()
    for source in sources:
        free.put_nowait(source)

    async def one(target: T) -> bool:
        source = await free.get()
        try:
            reached = await pass_on(source, target)
        finally:
            free.put_nowait(source)
        if reached:
            free.put_nowait(target)
        return reached

    done = await gather_all({str(number): one(target) for number, target in enumerate(targets)})
    return [target for target, reached in zip(targets, done.values(), strict=True) if not reached]


async def shielded(work: Awaitable[T]) -> T:
    """Finish this work even when the caller is cancelled meanwhile; the cancellation follows afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await task
        raise
