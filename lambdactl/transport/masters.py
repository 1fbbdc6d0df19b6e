"""Shared OpenSSH connections to jump hosts (ControlMaster), opened before any fan-out and closed by who opened them."""

# ruff: noqa: ASYNC240 - a stat of a local file blocks for less than a trip to a thread would take

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl.errors import LambdactlError
from lambdactl.fleet import ssh
from lambdactl.transport import window
from lambdactl.transport.api import Failure
from lambdactl.transport.base import jump_place
from lambdactl.transport.failures import failure, stderr_cause, stderr_failure
from lambdactl.transport.hostkeys import host_name
from lambdactl.transport.process import collect, output_of, reap, start, started

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet, Hop

_PID = re.compile(r"\(pid=(\d+)\)")
REFUSED_BY_MASTER = "Session open refused by peer"  # mux.c; the reason itself stays with the master


def can_ask() -> bool:
    """Whether a person at a terminal can answer ssh's question for a passphrase."""
    # ansible-core's worker processes have closed these, and then even isatty() raises.
    return all(stream is not None and not stream.closed and stream.isatty() for stream in (sys.stdin, sys.stderr))


class JumpMasters:
    """The jump connections of one fleet. Those that others opened are used and left open."""

    def __init__(self, fleet: Fleet, folder: Path, connect_timeout: float) -> None:
        self._fleet = fleet
        self._folder = folder  # private to this transport: logs
        self._timeout = connect_timeout
        self._reasons = asyncio.Lock()  # one at a time: a master's log does not say which request a line is about
        self._opened: dict[tuple[Hop, ...], int | None] = {}  # chain -> process id of the master, once it is known

    def log(self, hops: Sequence[Hop]) -> Path:
        """Where the master that this process opened for a chain writes why it refused something."""
        return self._folder / Path(ssh.jump_socket(self._fleet, hops)).name

    def socket(self, hops: Sequence[Hop]) -> Path:
        """The socket of a chain's connection; there while a master serves it."""
        return Path(ssh.jump_socket(self._fleet, hops)).expanduser()

    async def open(self, hops: tuple[Hop, ...]) -> Failure | None:
        """Make sure that the connection is open; the chain in front of it is."""
        async with self._alone(hops):
            if await self._pid(hops) is not None:
                return None
            for attempt in range(window.ATTEMPTS):
                problem = await self._try(hops)
                if problem is not None and len(hops) > 1 and REFUSED_BY_MASTER in problem:
                    problem = await self.reason(hops[:-1], hops[-1].hostname, hops[-1].port) or problem
                if problem is None or stderr_cause(problem) != "dropped":
                    break
                await asyncio.sleep(window.retry_delay(attempt))
            if problem is None:
                return None
            place = jump_place(hops)
            if stderr_cause(problem) == "auth" and (reason := await unusable_key(hops[-1])) is not None:
                return failure(place, "no-key", reason)
            name = host_name(hops[-1].hostname, hops[-1].port)
            return stderr_failure(place, problem, name=name, known_hosts=self._fleet.known_hosts)

    async def _try(self, hops: tuple[Hop, ...]) -> str | None:
        """One attempt to open a master: None, or what ssh said."""
        ask = can_ask()
        try:
            argv = ssh.jump_master_argv(self._fleet, hops, batch=not ask)
        except LambdactlError as error:
            return error.message
        # The socket of a master that was killed would keep the new one from listening.
        self.socket(hops).unlink(missing_ok=True)
        log = self.log(hops)
        argv[1:1] = ["-E", str(log), "-o", f"ConnectTimeout={max(1, round(self._timeout))}"]
        with log.open("ab") as errors:
            start_of_log = errors.tell()
            # The master keeps its standard error open for as long as it lives, so it gets a file and not a pipe.
            process = await started(
                asyncio.create_subprocess_exec(
                    *argv, stdin=None if ask else asyncio.subprocess.DEVNULL, stdout=errors, stderr=errors,
                    start_new_session=not ask,
                )
            )  # fmt: skip
        try:
            async with asyncio.timeout(None if ask else self._timeout + 5):
                status = await process.wait()
        except TimeoutError:
            return "Connection timed out"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            if process.returncode == 0:  # it serves in the background now, also when this was cancelled meanwhile
                self._opened[hops] = None
        if status == 0 and (pid := await self._pid(hops)) is not None:
            self._opened[hops] = pid
            return None
        self._opened.pop(hops, None)
        return log.read_bytes()[start_of_log:].decode(errors="replace")

    async def _pid(self, hops: Sequence[Hop]) -> int | None:
        """Process id of the master that serves this chain's socket."""
        if not self.socket(hops).exists():
            return None
        status, out, err = await output_of(ssh.check_argv(self._fleet, hops))
        found = _PID.search((out + err).decode(errors="replace"))
        return int(found[1]) if status == 0 and found else None

    async def reason(self, hops: Sequence[Hop], address: str, port: int) -> str:
        """Why a jump host does not connect to this address: the client of a master is only told that it does not.

        Asks the master once more, and reads what it wrote to its log meanwhile; "" when another process opened it.
        """
        log = self.log(hops)
        if not log.exists():
            return ""
        async with self._reasons:
            before = log.stat().st_size
            socket = str(self.socket(hops))
            argv = ["ssh", "-F", "none", "-S", socket, "-o", "ProxyCommand=false", "-W", f"[{address}]:{port}"]
            process = await start([*argv, "--", hops[-1].hostname])
            try:
                async with asyncio.timeout(self._timeout):
                    await collect(process)
            except TimeoutError:
                return "Connection timed out"
            finally:
                await reap(process)
            return log.read_bytes()[before:].decode(errors="replace")

    async def close(self) -> None:
        """End the connections that this process opened, innermost first."""
        for hops, pid in sorted(self._opened.items(), key=lambda item: -len(item[0])):
            await output_of(ssh.close_argv(self._fleet, hops))
            socket = self.socket(hops)
            for _ in range(100):  # the last thing that a master does is to remove its socket
                if not socket.exists():
                    break
                await asyncio.sleep(0.01)
            else:
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                socket.unlink(missing_ok=True)
        self._opened.clear()

    @contextlib.asynccontextmanager
    async def _alone(self, hops: Sequence[Hop]) -> AsyncIterator[None]:
        """Keep other processes from opening the same connection at the same time."""
        path = self.socket(hops).with_suffix(".lock")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


async def unusable_key(hop: Hop) -> str | None:
    """Why the hop's identity file cannot have been offered; None when it can be read without a passphrase."""
    try:
        path = hop.key_path()
    except LambdactlError as error:
        return error.message
    if path is None:
        return None
    if not Path(path).exists():
        return "the file does not exist"
    status, _, _ = await output_of(["ssh-keygen", "-y", "-P", "", "-f", path])
    return None if status == 0 else "it is protected by a passphrase, and the agent does not hold it"
