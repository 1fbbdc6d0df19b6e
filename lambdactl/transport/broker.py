"""Lends a transport's open connections to child processes over a private unix socket.

An Ansible action plugin runs in a forked worker; with LAMBDACTL_BROKER set it uses the connections of the process that
started ansible-runner and logs in nowhere itself.

Protocol: frames, each a 4-byte big-endian length, a JSON header of that length, and then ``header["size"]`` raw bytes.
A connection carries one request and its answers: requests run side by side, a client that goes away cancels its own.
"""

# ruff: noqa: ASYNC240 - a stat of a local file blocks for less than a trip to a thread would take

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

from lambdactl.errors import ConnectionFailed, LambdactlError
from lambdactl.transport.api import Commands, Completed, Failure, OnConnect, OnResult, Outcome, Runner
from lambdactl.transport.base import MAX_OUTPUT, shielded

VARIABLE = "LAMBDACTL_BROKER"
MAX_HEADER = 64 << 20
_OnAny: TypeAlias = Callable[[str, Outcome | None], None] | None
_LENGTH = struct.Struct("!I")


async def _write(writer: asyncio.StreamWriter, header: Mapping[str, Any], payload: Sequence[bytes] = ()) -> None:
    text = json.dumps({**header, "size": sum(map(len, payload))}).encode()
    writer.write(_LENGTH.pack(len(text)) + text)
    for part in payload:
        writer.write(part)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_HEADER:
        raise ValueError("the header is too long")
    header = json.loads(await reader.readexactly(length))
    size = header["size"]
    if not isinstance(size, int) or not 0 <= size <= 2 * MAX_OUTPUT:
        raise ValueError(f"a payload of {size} bytes is more than the {2 * MAX_OUTPUT} that are allowed")
    return header, await reader.readexactly(size)


async def answers(socket_path: str | Path) -> bool:
    """Whether the process that lends its connections there still does."""
    try:
        _, writer = await asyncio.open_unix_connection(str(socket_path))
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def serve_broker(transport: Runner, socket_path: str | Path) -> AsyncIterator[str]:
    """Serve a transport at this path, which belongs into a folder of mode 0700, until the context is left."""
    path = Path(socket_path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    active: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (inside of a coroutine)
        active.add(task)
        try:
            await _serve_one(transport, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the broker is closing; neither is anybody's to report
        finally:
            active.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(handle, str(path), limit=1 << 20)
    path.chmod(0o600)
    try:
        yield str(path)
    finally:
        server.close()
        for task in active:
            task.cancel()
        await shielded(_settle(active))
        path.unlink(missing_ok=True)


async def _settle(tasks: set[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)


async def _serve_one(transport: Runner, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        request, payload = await _read(reader)
        work = asyncio.create_task(_answer(transport, request, payload, writer))
    except (ValueError, KeyError, TypeError) as error:
        await _write(writer, {"type": "error", "message": f"The request is not valid: {error}."})
        return
    gone = asyncio.create_task(reader.read(1))  # a client says nothing more; its end means that nobody waits
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


async def _answer(transport: Runner, request: dict[str, Any], payload: bytes, writer: asyncio.StreamWriter) -> None:
    queue: asyncio.Queue[tuple[str, Outcome | None] | None] = asyncio.Queue()
    try:
        work = asyncio.create_task(_perform(transport, request, payload, queue))
        work.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (item := await queue.get()) is not None:
                await _write(writer, *_pack(*item))
        finally:
            work.cancel()
        await _write(writer, {"type": "end", "order": await work})
    except (OSError, asyncio.CancelledError):
        raise
    except Exception as error:
        await _write(writer, {"type": "error", "message": str(error) or type(error).__name__})


async def _perform(
    transport: Runner, request: dict[str, Any], payload: bytes, queue: asyncio.Queue[tuple[str, Outcome | None] | None]
) -> list[str]:
    names = request.get("names")
    if request["op"] == "connect":
        return list(await transport.connect(names, on_result=lambda name, result: queue.put_nowait((name, result))))
    wire = request["commands"]
    commands: Commands = wire if isinstance(wire, str) else _unpack_commands(wire, payload)
    results = await transport.fan_out(
        commands,
        names=names,
        input=payload if isinstance(commands, str) else b"",
        timeout=request["timeout"],
        on_result=lambda name, result: queue.put_nowait((name, result)),
    )
    return list(results)


def _pack(name: str, outcome: Outcome | None) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    if isinstance(outcome, Completed):
        header = {"type": "completed", "host": name, "rc": outcome.rc, "out": len(outcome.stdout)}
        return header, (outcome.stdout, outcome.stderr)
    if outcome is None:
        return {"type": "connected", "host": name}, ()
    fields = {"kind": outcome.kind, "message": outcome.message, "remedy": outcome.remedy}
    return {"type": "failure", "host": name, **fields}, ()


def _unpack(header: dict[str, Any], payload: bytes) -> Outcome | None:
    if header["type"] == "completed":
        return Completed(header["host"], header["rc"], payload[: header["out"]], payload[header["out"] :])
    if header["type"] == "failure":
        return Failure(header["host"], header["kind"], header["message"], header["remedy"])
    return None


class BrokerTransport:
    """connect, run and fan_out through another process's connections; see lambdactl.transport.api.Runner."""

    kind = "broker"

    def __init__(self, socket_path: str | Path) -> None:
        self._path = str(socket_path)

    async def connect(
        self, names: Sequence[str] | None = None, on_result: OnConnect | None = None
    ) -> dict[str, Failure | None]:
        request = {"op": "connect", "names": _listed(names)}
        return cast(dict[str, Failure | None], await self._request(request, b"", cast(_OnAny, on_result)))

    async def run(self, name: str, command: str, *, input: bytes = b"", timeout: float | None = None) -> Outcome:
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
        wire, payload = _pack_commands(commands, input)
        request = {"op": "fan_out", "commands": wire, "names": _listed(names), "timeout": timeout}
        return cast(dict[str, Outcome], await self._request(request, payload, cast(_OnAny, on_result)))

    async def _request(self, request: dict[str, Any], payload: bytes, on_result: _OnAny) -> dict[str, Outcome | None]:
        """Send a request and gather its answers, in the order of the transport that gave them."""
        if len(payload) > 2 * MAX_OUTPUT:
            raise LambdactlError(f"Input of more than {2 * MAX_OUTPUT >> 20} MB does not fit through the broker.")
        try:
            reader, writer = await asyncio.open_unix_connection(self._path, limit=1 << 20)
        except OSError as error:
            raise ConnectionFailed(f"The broker at {self._path} cannot be reached: {error.strerror}.") from None
        try:
            await _write(writer, request, (payload,))
            found: dict[str, Outcome | None] = {}
            while True:
                header, data = await _read(reader)
                if header["type"] == "end":
                    return {name: found[name] for name in header["order"]}
                if header["type"] == "error":
                    raise ConnectionFailed(header["message"])
                found[header["host"]] = _unpack(header, data)
                if on_result is not None:
                    on_result(header["host"], found[header["host"]])
        except (OSError, asyncio.IncompleteReadError):
            raise ConnectionFailed(f"The broker at {self._path} went away before it had answered.") from None
        finally:
            writer.close()


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _pack_commands(commands: Commands, default: bytes) -> tuple[str | dict[str, Any], bytes]:
    """Commands for the header and all inputs as one payload; equal inputs travel once."""
    if isinstance(commands, str):
        return commands, default
    wire: dict[str, Any] = {}
    places: dict[bytes, tuple[int, int]] = {}
    payload = bytearray()
    for name, item in commands.items():
        text, data = (item, default) if isinstance(item, str) else item
        if data not in places:
            places[data] = (len(payload), len(payload) + len(data))
            payload += data
        wire[name] = (text, *places[data])
    return wire, bytes(payload)


def _unpack_commands(wire: dict[str, Any], payload: bytes) -> dict[str, tuple[str, bytes]]:
    return {name: (text, payload[start:end]) for name, (text, start, end) in wire.items()}
