"""Exec sessions on an asyncssh connection: one that collects, and one that streams with backpressure."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import asyncssh

from lambdactl.transport.api import STDERR_KEPT, Failure, TransportError
from lambdactl.transport.base import MAX_OUTPUT
from lambdactl.transport.window import ATTEMPTS, retry_delay

WRITE_PIECE = 256 << 10  # bytes handed to asyncssh at a time; it copies what the far side has no window for
PAUSE_AT = 4 << 20  # unread bytes at which the far side is told to wait
RESUME_AT = 1 << 20


class Session(asyncssh.SSHClientSession[bytes]):
    """A command's end state, and a writer that waits for the far side."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int | None] = loop.create_future()  # exit status, None when there was none
        self._status: int | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.chan: asyncssh.SSHClientChannel[bytes]

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.chan = chan

    def exit_status_received(self, status: int) -> None:
        self._status = status

    def exit_signal_received(self, signal_name: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._status = 128 + getattr(signal, f"SIG{signal_name}", 0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if not self.ended.done():
            self.ended.set_result(self._status)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def send(self, data: bytes) -> None:
        """Write all of it, as fast as the far side reads; what comes after its end is dropped."""
        view = memoryview(data)
        for start in range(0, len(view), WRITE_PIECE):
            await self._writable.wait()
            if self.ended.done() or self.chan.is_closing():
                return
            self.chan.write(bytes(view[start : start + WRITE_PIECE]))
        await self._writable.wait()

    def send_eof(self) -> None:
        if not self.chan.is_closing():
            self.chan.write_eof()


class Collector(Session):
    """Collects a command's output."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[bytes] = []
        self.err: list[bytes] = []
        self.size = 0

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self.size += len(data)
        if self.size > MAX_OUTPUT:
            self.chan.abort()
        else:
            (self.err if datatype else self.out).append(data)


class LiveSession(Session):
    """Keeps what has arrived until it is read, and stops the far side while too much is unread."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._eof = False
        self._paused = False
        self._arrived = asyncio.Event()
        self._err: deque[bytes] = deque()
        self._err_size = 0

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype:
            self._err.append(data)
            self._err_size += len(data)
            while self._err_size - len(self._err[0]) > STDERR_KEPT:
                self._err_size -= len(self._err.popleft())
            return
        self._chunks.append(data)
        self._unread += len(data)
        self._arrived.set()
        if self._unread > PAUSE_AT and not self._paused:
            self._paused = True
            self.chan.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        self._arrived.set()
        return True  # keep our side open: the exit status is still to come

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._eof = True
        self._arrived.set()

    @property
    def stderr(self) -> bytes:
        return b"".join(self._err)[-STDERR_KEPT:]

    async def read(self, n: int) -> bytes:
        while not self._chunks:
            if self._eof:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        taken: list[bytes] = []
        size = 0
        while self._chunks and size < n:
            chunk = self._chunks.popleft()
            if size + len(chunk) > n:
                keep = n - size
                self._chunks.appendleft(chunk[keep:])
                chunk = chunk[:keep]
            taken.append(chunk)
            size += len(chunk)
        self._unread -= size
        if self._paused and self._unread < RESUME_AT:
            self._paused = False
            self.chan.resume_reading()
        return taken[0] if len(taken) == 1 else b"".join(taken)


class SSHChannel:
    """The live channel of a LiveSession; see lambdactl.transport.api.Channel."""

    def __init__(self, session: LiveSession, lost: Callable[[], Failure]) -> None:
        self._session = session
        self._lost = lost
        self._closed = False

    @property
    def stderr(self) -> bytes:
        return self._session.stderr

    @property
    def failure(self) -> Failure | None:
        ended = self._session.ended
        return self._lost() if ended.done() and ended.result() is None and not self._closed else None

    async def write(self, data: bytes) -> None:
        await self._session.send(data)

    async def write_eof(self) -> None:
        self._session.send_eof()

    async def read(self, n: int = 1 << 20) -> bytes:
        return await self._session.read(n)

    async def wait(self) -> int:
        status = await asyncio.shield(self._session.ended)
        if status is None:
            raise TransportError(self._lost())
        return status

    async def close(self) -> None:
        self._closed = True
        self._session.chan.close()
        await self._session.chan.wait_closed()


async def open_session(connection: asyncssh.SSHClientConnection, factory: Callable[[], Any], command: str) -> Any:
    """Start a command with raw bytes and no terminal.

    sshd counts a session until it has reaped it, a moment after it told us of its end; so a refusal is tried again.
    """
    for attempt in range(ATTEMPTS):
        try:
            _, session = await connection.create_session(
                factory, command, encoding=None, request_pty=False, x11_forwarding=False
            )
        except asyncssh.ChannelOpenError:
            if attempt == ATTEMPTS - 1 or connection.is_closed():
                raise
            await asyncio.sleep(retry_delay(attempt))
        else:
            return session
    raise AssertionError  # the last attempt returned or raised
