"""The runner's `serve` started once a node and kept: all requests of one command in one session a node.

A request on an open session costs one round trip; a new one costs a session of sshd and a start of Python on the node.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lambdactl.run.nodes import runner_command
from lambdactl.transport.api import Completed, Failure, TransportError, plan_commands
from lambdactl.transport.base import gather_all, node_place
from lambdactl.transport.failures import failure

if TYPE_CHECKING:
    from lambdactl.fleet import FleetHost
    from lambdactl.transport.api import Channel, Commands, OnResult, Outcome, Transport

_SERVE = runner_command("serve")
_CHUNK = 1 << 20


class ServeSessions:
    """A transport over another one; what is not a request to `serve` goes through as it is.

    The sessions end with the transport's connections.
    """

    def __init__(self, transport: Transport) -> None:
        self.fleet = transport.fleet
        self.kind = transport.kind
        self._transport = transport
        self._channels: dict[str, Channel] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # The transport's methods that are handed on unchanged.
        self.connect = transport.connect
        self.channel = transport.channel
        self.forward = transport.forward

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._channels.clear()

    async def run(self, name: str, command: str, *, input: bytes = b"", timeout: float | None = None) -> Outcome:
        """See lambdactl.transport.api.Runner."""
        return (await self.fan_out({name: (command, input)}, timeout=timeout))[name]

    async def fan_out(
        self,
        commands: Commands,
        *,
        names: Sequence[str] | None = None,
        input: bytes = b"",
        timeout: float | None = None,
        on_result: OnResult | None = None,
    ) -> dict[str, Outcome]:
        """See lambdactl.transport.api.Runner."""
        chosen = plan_commands(commands, names, [host.name for host in self.fleet.hosts], input)
        if any(command != _SERVE for command, _ in chosen.values()):
            return await self._transport.fan_out(
                commands, names=names, input=input, timeout=timeout, on_result=on_result
            )
        refused = await self._transport.connect(list(chosen))

        async def one(name: str, data: bytes) -> Outcome:
            outcome = refused[name] or await self._ask(name, data, timeout)
            if on_result is not None:
                on_result(name, outcome)
            return outcome

        return await gather_all({name: one(name, data) for name, (_, data) in chosen.items()})

    async def _ask(self, name: str, data: bytes, timeout: float | None) -> Outcome:
        async with self._turns[name]:
            kept = self._channels.get(name)
            outcome = await self._exchange(name, data, timeout)
            # A session that ended while nobody used it: once more on a new one (every operation may be asked twice).
            if kept is not None and (isinstance(outcome, Failure) or not outcome.stdout):
                outcome = await self._exchange(name, data, timeout)
            return outcome

    async def _exchange(self, name: str, data: bytes, timeout: float | None) -> Outcome:
        """Send the request lines and collect as many answers; the session is kept only when all of them came."""
        channel = self._channels.pop(name, None)
        try:
            async with asyncio.timeout(timeout):
                channel = channel or await self._transport.channel(name, _SERVE)
                await channel.write(data)
                answers, complete = await _answers(channel, data.count(b"\n"))
                if complete:
                    self._channels[name] = channel
                    return Completed(name, 0, answers, b"")
                return Completed(name, await channel.wait(), answers, channel.stderr)
        except TimeoutError:
            return failure(node_place(self._host(name)), "too-long", f"{timeout:g}")
        except TransportError as error:
            return error.failure
        finally:
            if channel is not None and self._channels.get(name) is not channel:
                closing = asyncio.ensure_future(channel.close())  # a node that is gone would keep us waiting
                closing.add_done_callback(_forget)

    def _host(self, name: str) -> FleetHost:
        return next(host for host in self.fleet.hosts if host.name == name)


async def _answers(channel: Channel, wanted: int) -> tuple[bytes, bool]:
    """What came until `wanted` answers were complete, or the session ended; an answer is a line of JSON."""
    received = b""
    while sum(line.startswith(b"{") and line.endswith(b"\n") for line in received.splitlines(keepends=True)) < wanted:
        chunk = await channel.read(_CHUNK)
        if not chunk:
            return received, False
        received += chunk
    return received, True


def _forget(task: asyncio.Future[None]) -> None:
    with contextlib.suppress(Exception, asyncio.CancelledError):
        task.result()
