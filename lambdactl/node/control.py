"""`<run>/control.sock`: how other processes on the node talk to a rank's supervisor.

A request is one JSON line, the answer one JSON line. After {"op": "subscribe"} the supervisor sends single bytes: "."
when the log has grown, "S" when the state has changed; the subscriber then looks at the files. A subscriber that does
not read loses nothing (it has wake-ups waiting) and holds nobody up.
"""

from __future__ import annotations

import os
import struct

from . import light, paths
from .errors import NodeError, as_object
from .sockets import accept, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop

MAX_LINE, MAX_ANSWER = 1 << 16, 1 << 20
MAX_CLIENTS = 512
LOG_GREW, STATE_CHANGED = b".", b"S"


def _address(folder: str) -> tuple[int, str]:
    """A short name for a socket in a folder of any depth (sun_path holds 107 bytes): via a descriptor of the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return descriptor, f"/proc/self/fd/{descriptor}/control.sock"


def listen(run: str) -> socket.socket:
    """Bind a run's control socket; everybody may connect, what one may ask for depends on who one is."""
    folder, address = _address(paths.run_dir(run))
    try:
        if os.path.exists(address):
            os.unlink(address)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        server.bind(address)
        os.chmod(address, 0o666)  # noqa: S103 (who connects is asked of the kernel)
        server.listen(128)
    finally:
        os.close(folder)
    return server


def connect(run: str, timeout: float = 5.0) -> socket.socket | None:
    """A connection to a run's supervisor, or None when there is none."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    client.settimeout(timeout)
    try:
        folder, address = _address(paths.run_dir(run))
        try:
            client.connect(address)
        finally:
            os.close(folder)
    except OSError:
        client.close()
        return None
    return client


def call(run: str, request: dict[str, Any], timeout: float = 5.0) -> dict[str, Any] | None:
    """Ask a run's supervisor one thing; None when it is gone. Raises NodeError when it refuses."""
    client = connect(run, timeout)
    if client is None:
        return None
    answer = b""
    try:
        client.sendall(light.dumps(request).encode() + b"\n")
        while not answer.endswith(b"\n") and len(answer) < MAX_ANSWER:
            data = client.recv(MAX_LINE)
            if not data:
                return None
            answer += data
        reply = light.loads(answer)
    except (OSError, ValueError):
        return None
    finally:
        client.close()
    if isinstance(reply, dict) and not reply.get("ok"):
        raise NodeError("internal", str(reply.get("message")))
    return reply if isinstance(reply, dict) else None


def subscribe(run: str, *, log: bool, agent: bool = False) -> socket.socket | None:
    """A connection that receives wake-up bytes, or None when the supervisor is gone."""
    client = connect(run)
    if client is not None:
        try:
            client.sendall(light.dumps({"op": "subscribe", "log": log, "agent": agent}).encode() + b"\n")
            client.recv(1)  # the supervisor answers with a first wake-up: from here on nothing is missed
        except OSError:
            client.close()
            return None
    return client


class Peer:
    """One connected client and who it is."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid, self.uid, _ = struct.unpack("3i", credentials)
        self.buffer = b""
        self.wants: bytes = b""
        self.is_agent = False


class ControlServer:
    """Serves the control socket inside the supervisor's loop.

    `handle(request, peer)` returns the answer or raises NodeError; `admits(uid)` says who may connect at all;
    `on_agent(present)` is called when the coordinator's agent shows a sign of life (True) or has gone (False).
    """

    def __init__(
        self,
        loop: Loop,
        run: str,
        *,
        admits: Callable[[int], bool],
        handle: Callable[[dict[str, Any], Peer], dict[str, Any]],
        on_agent: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._admits = admits
        self._handle = handle
        self._on_agent = on_agent
        self._peers: dict[int, Peer] = {}
        self._server = listen(run)
        loop.watch(self._server.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection = accept(self._server)
        except OSError:
            return
        connection.setblocking(False)
        peer = Peer(connection)
        if len(self._peers) >= MAX_CLIENTS or not self._admits(peer.uid):
            connection.close()
            return
        descriptor = connection.fileno()
        self._peers[descriptor] = peer
        self._loop.watch(descriptor, lambda: self._read(descriptor))

    def _drop(self, descriptor: int) -> None:
        peer = self._peers.pop(descriptor)
        self._loop.forget(descriptor)
        peer.connection.close()
        if peer.is_agent:
            self._on_agent(False)

    def _read(self, descriptor: int) -> None:
        peer = self._peers[descriptor]
        try:
            data = peer.connection.recv(MAX_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer.buffer += data
        if not data or len(peer.buffer) > MAX_LINE:
            self._drop(descriptor)
            return
        if peer.is_agent:
            self._on_agent(True)
        *lines, peer.buffer = peer.buffer.split(b"\n")
        for line in lines:
            if descriptor in self._peers and line:
                self._send(descriptor, self._answer(line, peer))

    def _answer(self, line: bytes, peer: Peer) -> bytes:
        try:
            request = as_object(light.loads(line))
            if request.get("op") == "subscribe":
                return self._subscribe(request, peer)
            answer = {"ok": True, **self._handle(request, peer)}
        except NodeError as error:
            answer = {"ok": False, "code": error.code, "message": error.message}
        except (ValueError, RecursionError):
            answer = {"ok": False, "code": "bad-request", "message": "the request is not JSON"}
        return light.dumps(answer).encode() + b"\n"

    def _subscribe(self, request: dict[str, Any], peer: Peer) -> bytes:
        self._handle(request, peer)
        peer.wants = STATE_CHANGED + (LOG_GREW if request.get("log") else b"")
        peer.is_agent = bool(request.get("agent"))
        if peer.is_agent:
            self._on_agent(True)
        return STATE_CHANGED

    def _send(self, descriptor: int, data: bytes) -> None:
        try:
            self._peers[descriptor].connection.send(data)
        except BlockingIOError:  # its buffer is full of wake-ups already
            return
        except OSError:
            self._drop(descriptor)

    def wake(self, kind: bytes) -> None:
        """Tell subscribers that the log has grown or the state has changed."""
        for descriptor in [number for number, peer in self._peers.items() if kind in peer.wants]:
            self._send(descriptor, kind)

    def agents(self) -> int:
        """How many agents of the coordinator are connected."""
        return sum(peer.is_agent for peer in self._peers.values())
