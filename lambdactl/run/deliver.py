"""Bringing blobs to all nodes of a run: once from here to one node, from there to the others over their own network.

Every node is asked once what it has. What is missing on all of them goes to one node through the jump host; every node
that is complete sends to one that is not, so that many nodes take as many rounds as their number has binary digits.
Where nodes cannot reach each other, the controller sends itself. A cut transfer goes on where it was: whole blobs stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError, LambdactlError
from lambdactl.run.nodes import Problem, call_all, error_of, runner_command
from lambdactl.transport.api import TransportError
from lambdactl.transport.base import relay

if TYPE_CHECKING:
    from lambdactl.run.tree import Blob
    from lambdactl.transport.api import Channel, Transport

_ATTEMPTS = 3
_LINE = 1 << 20
HAVE_TIMEOUT = 300.0  # seconds: a full disk makes the node remove unused blobs before it answers


@dataclass
class Progress:
    """What has happened so far; bytes."""

    total: int
    sent: int = 0
    passed_on: int = 0
    missing: dict[str, int] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


class _Refused(Exception):
    """A node said why it does not store a blob."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


async def deliver(
    transport: Transport,
    nodes: Sequence[Mapping[str, Any]],
    blobs: Mapping[str, Blob],
    *,
    on_progress: OnProgress | None = None,
) -> Progress:
    """See the module.

    Args:
        nodes: `{"name", "ip", "ssh_user", "ssh_port"}` of each, as in a JobSpec.

    Raises:
        CapacityError: a node's disk has no room.
        LambdactlError: something else keeps a node from storing; ConnectionFailed: it cannot be reached.
    """
    delivery = _Delivery(transport, nodes, blobs, on_progress or (lambda _: None))
    if blobs:
        await delivery.run()
    return delivery.progress


class _Delivery:
    def __init__(
        self, transport: Transport, nodes: Sequence[Mapping[str, Any]], blobs: Mapping[str, Blob], tell: OnProgress
    ) -> None:
        self._transport = transport
        self._nodes = {str(node["name"]): node for node in nodes}
        self._blobs = blobs
        self._tell = tell
        self._missing: dict[str, list[str]] = {}
        self.progress = Progress(0)

    async def run(self) -> None:
        self._missing = await self._ask(self._nodes)
        lacking = {name: missing for name, missing in self._missing.items() if missing}
        self.progress.missing = {name: self._size(missing) for name, missing in lacking.items()}
        if not lacking:
            return
        complete = [name for name in self._nodes if name not in lacking]
        first = min(lacking, key=lambda name: self._size(lacking[name]))
        self.progress.total = (0 if complete else self._size(lacking[first])) + sum(
            self._size(missing) for name, missing in lacking.items() if complete or name != first
        )
        if not complete:
            await self._upload(first)
            complete.append(first)
        await self._spread(complete, [name for name in lacking if name not in complete])

    def _size(self, names: Iterable[str]) -> int:
        return sum(self._blobs[name].size for name in names)

    async def _ask(self, names: Iterable[str]) -> dict[str, list[str]]:
        """What each node lacks, in the order of the blobs."""
        wanted = [[blob.sha256, blob.size] for blob in self._blobs.values()]
        request = {"op": "have", "blobs": wanted}
        answers = await call_all(self._transport, dict.fromkeys(names, request), timeout=HAVE_TIMEOUT)
        found: dict[str, list[str]] = {}
        for name, answer in answers.items():
            if isinstance(answer, Problem):
                raise answer.error()
            missing = set(answer.get("missing") or ())
            found[name] = [sha256 for sha256 in self._blobs if sha256 in missing]
            size, free = self._size(found[name]), int(answer.get("free") or 0)
            if size > free:
                raise CapacityError(
                    f"{name}: {_bytes(size)} are to be stored in /var/lib/lambdactl/blobs, and {_bytes(free)} are "
                    "free; make room there, or upload less."
                )
        return found

    async def _upload(self, name: str) -> None:
        """From here to one node; a lost connection is made again."""
        done = self.progress.sent + self._size(self._missing[name])
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._send(name, self._missing[name])
            except TransportError as error:
                if attempt == _ATTEMPTS:
                    raise error_of(error.failure.kind, str(error.failure)) from None
            except _Refused as refusal:
                raise _error(name, refusal) from None
            else:
                return
            await asyncio.sleep(0.5 * attempt)
            self._missing.update(await self._ask([name]))
            self.progress.sent = done - self._size(self._missing[name])

    async def _send(self, name: str, wanted: Sequence[str]) -> None:
        channel = await self._transport.channel(name, runner_command("receive"))
        answers = asyncio.ensure_future(self._answers(channel))
        try:
            for sha256 in wanted:
                blob = self._blobs[sha256]
                await channel.write(f"B {sha256} {blob.size}\n".encode())
                for data in blob.read():
                    if answers.done():
                        break
                    await channel.write(data)
                    self.progress.sent += len(data)
                    self._tell(self.progress)
                if answers.done():
                    break
            else:
                await channel.write_eof()
            stored = await answers
            if stored < len(wanted):
                await channel.wait()
                words = channel.stderr.decode("utf-8", "replace").split()
                raise _Refused("failed", " ".join(words)[-300:] or "the transfer ended too early")
        finally:
            answers.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await answers
            await channel.close()

    async def _answers(self, channel: Channel, on_stored: Callable[[str], None] | None = None) -> int:
        """How many blobs the far side says are stored. Raises _Refused with its reason."""
        stored, buffer = 0, b""
        while data := await channel.read(_LINE):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                answer = _parse(line)
                if isinstance(answer.get("error"), dict):
                    raise _Refused(str(answer["error"].get("code")), str(answer["error"].get("message")))
                if "stored" in answer:
                    stored += 1
                    if on_stored is not None:
                        on_stored(str(answer["stored"]))
        return stored

    async def _spread(self, sources: list[str], targets: list[str]) -> None:
        """Every complete node sends to one that is not, until all are."""
        await relay(sources, targets, self._pass_on)

    async def _pass_on(self, source: str, target: str) -> bool:
        try:
            await self._push(source, target)
        except (TransportError, _Refused) as error:
            if isinstance(error, _Refused) and error.code == "no-space":
                raise _error(target, error) from None
            self._missing.update(await self._ask([target]))
            await self._upload(target)  # the nodes do not reach each other: from here, then
        return True

    async def _push(self, source: str, target: str) -> None:
        node = {key: self._nodes[target].get(key) for key in ("name", "ip", "ssh_user", "ssh_port")}
        wanted = self._missing[target]
        channel = await self._transport.channel(source, runner_command("push"))

        def stored(sha256: str) -> None:
            if sha256 in self._blobs:
                self.progress.passed_on += self._blobs[sha256].size
                self._tell(self.progress)

        try:
            await channel.write(json.dumps({"to": node, "blobs": wanted}).encode() + b"\n")
            await channel.write_eof()
            if await self._answers(channel, stored) < len(wanted):
                raise _Refused("failed", "the transfer ended too early")
        finally:
            await channel.close()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:  # a login message
        return {}
    return value if isinstance(value, dict) else {}


def _error(name: str, refusal: _Refused) -> LambdactlError:
    text = f"{name}: {refusal.message.rstrip('.')}."
    return CapacityError(text) if refusal.code == "no-space" else LambdactlError(text)


def _bytes(amount: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"
