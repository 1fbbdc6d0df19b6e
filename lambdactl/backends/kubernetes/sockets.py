"""Port-forward and exec over the API, by websockets.

Source: the protocols ``v4.channel.k8s.io`` and ``v5.channel.k8s.io`` of the kubelet's streaming server: every message
begins with its channel. Port-forward has two channels a port, data and error, whose first message is the port's number.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import APIError, Asked, Unavailable, explain, unreachable
from .resources import PODS

if TYPE_CHECKING:
    import aiohttp

    from .client import Client

STDIN, STDOUT, STDERR, OUTCOME, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
_MESSAGE = 32 * 1024


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command in a container ended."""

    rc: int
    stdout: bytes
    stderr: bytes


class NothingListens(Unavailable):
    """No program has the port open."""


class Stream:
    """One connection to a port of a pod."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, asked: Asked, port: int) -> None:
        self._socket = socket
        self._asked = asked
        self._port = port
        self._heard = [False, False]  # whether each channel has told its port

    async def read(self) -> bytes:
        """What comes next; b"" at the end.

        Raises:
            Unavailable: nothing listens on the port, or the connection was cut.
        """
        import aiohttp

        while True:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                return b""
            channel, data = message.data[0], message.data[1:]
            if channel in (0, 1) and not self._heard[channel]:
                self._heard[channel] = True
                data = data[2:]
            if channel == 1 and data:
                raise self._refused(data.decode("utf-8", "replace"))
            if channel == 0 and data:
                return bytes(data)

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        for start in range(0, len(data), _MESSAGE):
            await self._socket.send_bytes(b"\x00" + data[start : start + _MESSAGE])

    async def close(self) -> None:
        """End the connection."""
        await self._socket.close()

    def _refused(self, said: str) -> APIError:
        # The container runtime's own words name its namespaces and both address families.
        if "connection refused" in said.lower():
            return NothingListens(
                f"nothing listens on port {self._port} in the pod '{self._asked.name}'; "
                "see whether the program that should listen there runs."
            )
        return Unavailable(
            f"the pod '{self._asked.name}' does not take the connection: {' '.join(said.split())}; "
            "see whether the program that should listen there runs."
        )


@asynccontextmanager
async def port_forward(client: Client, pod: str, port: int, *, namespace: str) -> AsyncIterator[Stream]:
    """A connection to a TCP port of a pod.

    Raises:
        APIError: the API refuses it, or cannot be reached.
    """
    asked = client.asked("create", PODS, pod, namespace, subresource="portforward")
    query = [("ports", str(port))]
    path = PODS.path(namespace, pod, "portforward")
    async with _connect(client, path, query, asked, ("v4.channel.k8s.io",)) as socket:
        yield Stream(socket, asked, port)


async def execute(
    client: Client,
    pod: str,
    command: Sequence[str],
    *,
    stdin: bytes,
    container: str | None,
    timeout: float | None,
    namespace: str,
) -> Completed:
    """Run a command in a container and wait for its end.

    Raises:
        APIError: the API refuses it, cannot be reached, or the connection was cut.
        TimeoutError: it took longer than ``timeout`` seconds.
    """
    asked = client.asked("create", PODS, pod, namespace, subresource="exec")
    query = [("command", word) for word in command] + [("stdout", "true"), ("stderr", "true")]
    query += [("stdin", "true")] if stdin else []
    query += [("container", container)] if container else []
    path = PODS.path(namespace, pod, "exec")
    async with asyncio.timeout(timeout):
        async with _connect(client, path, query, asked, ("v5.channel.k8s.io", "v4.channel.k8s.io")) as socket:
            for start in range(0, len(stdin), _MESSAGE):
                await socket.send_bytes(bytes([STDIN]) + stdin[start : start + _MESSAGE])
            if stdin and socket.protocol == "v5.channel.k8s.io":
                await socket.send_bytes(bytes([CLOSE, STDIN]))
            return await _collect(socket, asked)


async def _collect(socket: aiohttp.ClientWebSocketResponse, asked: Asked) -> Completed:
    import aiohttp

    pieces: dict[int, list[bytes]] = {STDOUT: [], STDERR: [], OUTCOME: []}
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY and message.data and message.data[0] in pieces:
            pieces[message.data[0]].append(message.data[1:])
    if not pieces[OUTCOME]:
        raise Unavailable(f"the connection to the pod '{asked.name}' was cut while a command ran there; try again.")
    return Completed(
        _exit_code(json.loads(b"".join(pieces[OUTCOME])), asked), b"".join(pieces[STDOUT]), b"".join(pieces[STDERR])
    )


def _exit_code(status: dict[str, Any], asked: Asked) -> int:
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or []:
        if cause.get("reason") == "ExitCode":
            return int(cause.get("message", 1))
    raise explain(int(status.get("code") or 500), status, asked)


@asynccontextmanager
async def _connect(
    client: Client, path: str, query: list[tuple[str, str]], asked: Asked, protocols: tuple[str, ...]
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    import aiohttp

    for attempt in (1, 2):
        login = client.login.headers()
        try:
            socket = await client.session.ws_connect(
                client.login.server + path,
                params=query,
                protocols=protocols,
                headers=login,
                max_msg_size=0,
                **_options(client),
            )
            break
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 401 and attempt == 1 and await client.login.expired(login):
                continue
            # The websocket client does not keep the answer's body: a plain request gets the reason.
            raise await _refusal(client, path, query, asked, error.status) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(error, asked) from None
    client.answered = True
    try:
        yield socket
    finally:
        await socket.close()


async def _refusal(client: Client, path: str, query: list[tuple[str, str]], asked: Asked, status: int) -> APIError:
    try:
        async with client.request("GET", path, asked, query=dict(query)):
            pass
    except APIError as error:
        if error.status is not None and error.status != 400:
            return error
    return explain(status, {}, asked)


def _options(client: Client) -> dict[str, Any]:
    options = client.connection()
    options.pop("allow_redirects")
    options.pop("server_hostname", None)
    return options
