"""A container's terminal (`tty: true`): output on a pseudo terminal, as a container runtime gives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import termios

Stream = asyncio.StreamReader


async def open_terminal() -> tuple[Stream, int, asyncio.ReadTransport]:
    """What the container writes, the container's end (to be closed once it has it), and the reader's transport.

    Line ends stay as they are: runc switches ONLCR off, too.
    """
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.ONLCR
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
    )
    return reader, theirs, transport


async def read(stream: Stream) -> bytes:
    """The next piece; empty at the end, which a terminal tells by an error."""
    with contextlib.suppress(OSError):
        return await stream.read(65536)
    return b""
