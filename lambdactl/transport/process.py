"""Child processes of the OpenSSH backend: started apart from the terminal, collected with bounds, always reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine, Sequence
from typing import Any

from lambdactl.transport.api import STDERR_KEPT
from lambdactl.transport.base import MAX_OUTPUT

READ_SIZE = 1 << 20
BUFFER = 2 << 20  # bytes read ahead of a channel's reader; then the pipe, and behind it SSH, fill up and wait
GRACE = 2.0  # seconds between SIGTERM and SIGKILL


class OutputTooBig(Exception):
    """A command wrote more than MAX_OUTPUT bytes."""


async def start(argv: Sequence[str]) -> Process:
    """Start an ssh process that never touches the terminal, nor hears its Ctrl-C; a cancellation leaves none."""
    return await started(
        asyncio.create_subprocess_exec(
            *argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True, limit=BUFFER
        )
    )


async def started(starting: Coroutine[Any, Any, Process]) -> Process:
    """The process, once it runs; one that starts while this is cancelled is ended with all that it started.

    asyncio itself then kills the process alone: what an ssh has started by then, its ProxyCommand, would live on.
    """
    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await reap(task.result())
        raise


async def output_of(argv: Sequence[str]) -> tuple[int, bytes, bytes]:
    """Run a short command to its end: (exit status, stdout, stderr)."""
    process = await start(argv)
    try:
        return await collect(process)
    finally:
        await reap(process)


async def collect(process: Process, data: bytes = b"") -> tuple[int, bytes, bytes]:
    """Feed a process, and return (exit status, stdout, stderr). Raises OutputTooBig."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 (pipes)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(feed(process.stdin, data))
            out = group.create_task(_read_all(process.stdout))
            err = group.create_task(_read_all(process.stderr))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return await process.wait(), out.result(), err.result()


async def feed(stdin: asyncio.StreamWriter, data: bytes) -> None:
    """Write all, then end the input; a process that has gone away reads nothing more."""
    with contextlib.suppress(OSError):
        if data:
            stdin.write(data)
            await stdin.drain()
        stdin.close()


async def _read_all(stream: asyncio.StreamReader) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await stream.read(READ_SIZE):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_OUTPUT:
            raise OutputTooBig
    return b"".join(chunks)


class Tail:
    """Reads a stream to its end in the background and keeps the last 64 KB."""

    def __init__(self, stream: asyncio.StreamReader | None) -> None:
        self._kept = bytearray()
        self._task = asyncio.create_task(self._read(stream)) if stream is not None else None

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(STDERR_KEPT):
            self._kept += chunk
            del self._kept[:-STDERR_KEPT]

    @property
    def kept(self) -> bytes:
        """What has been kept so far."""
        return bytes(self._kept)

    async def ended(self) -> str:
        """Wait for the end of the stream; the text of what was kept."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=GRACE)
            self._task.cancel()
        return self.kept.decode(errors="replace")


def send_signal(process: Process, number: int) -> None:
    """Signal a process and what it started: an ssh that is killed leaves its ProxyCommand behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def kill(process: Process) -> None:
    """End a process now, with all that it started, and close our ends of its pipes.

    The master of a connection holds the other ends for as long as the remote command runs, and asyncio's wait() returns
    only when the pipes are closed too. asyncio has no public way to close them. Closing its whole transport would also
    look whether the process has ended, and thereby reap it under asyncio's own watcher, which says so on the terminal.
    """
    send_signal(process, signal.SIGKILL)
    transport = process._transport  # type: ignore[attr-defined]  # asyncio has no other way
    for descriptor in range(3):
        if (pipe := transport.get_pipe_transport(descriptor)) is not None:
            pipe.close()


async def reap(process: Process) -> None:
    """End a process now and wait until it is gone."""
    kill(process)
    await process.wait()


async def finish(processes: Sequence[Process]) -> None:
    """End these processes, politely first, and reap them."""
    waits = [asyncio.ensure_future(process.wait()) for process in processes]
    if not waits:
        return
    for process in processes:
        send_signal(process, signal.SIGTERM)
    await asyncio.wait(waits, timeout=GRACE)
    for process in processes:
        kill(process)
    await asyncio.wait(waits)
