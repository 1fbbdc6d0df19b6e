"""The full fallback: the same work with the ssh command, over one ControlMaster a jump chain and one a node.

A node's master runs ``cat`` there on a pipe from this process: when this process ends, however it ends, the pipe closes
and the master with it.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl.errors import LambdactlError
from lambdactl.fleet import ssh
from lambdactl.transport import api
from lambdactl.transport.api import Channel, Completed, Failure, Forward, Outcome, TransportError
from lambdactl.transport.base import MAX_OUTPUT, BaseTransport, node_place
from lambdactl.transport.failures import Cause, failure, stderr_cause, stderr_failure
from lambdactl.transport.hostkeys import host_name
from lambdactl.transport.masters import REFUSED_BY_MASTER, JumpMasters, unusable_key
from lambdactl.transport.openssh_channel import ProcessChannel
from lambdactl.transport.process import OutputTooBig, Tail, collect, finish, reap, start
from lambdactl.transport.window import ATTEMPTS, AuthGate, retry_delay

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet, FleetHost, Hop

WINDOW = 32  # at most: each login is two processes here, and the jump master serves them one by one
READY = b"lambdactl-ready"
HOLD = f"echo {READY.decode()}; exec cat"
SSH_FAILED = 255


@dataclass
class _Master:
    process: Process
    socket: Path
    stderr: Tail


class OpensshTransport(BaseTransport):
    """See lambdactl.transport.api.Transport."""

    kind = "openssh"

    def __init__(self, fleet: Fleet, *, connect_timeout: float = api.CONNECT_TIMEOUT, window: int = api.WINDOW) -> None:
        super().__init__(fleet, connect_timeout=connect_timeout, window=min(window, WINDOW))
        try:
            ssh.prepare(fleet)
            self._folder = Path(tempfile.mkdtemp(prefix="t", dir=Path(fleet.control_dir).expanduser()))
        except OSError as error:
            raise LambdactlError(f"The folder {fleet.control_dir} for sockets cannot be made: {error}.") from None
        self._jump_masters = JumpMasters(fleet, self._folder, connect_timeout)
        self._routes: dict[tuple[Hop, ...], asyncio.Task[Failure | None]] = {}
        self._masters: dict[str, _Master] = {}
        self._running: set[Process] = set()
        self._gate = AuthGate()

    def _alive(self, name: str) -> bool:
        master = self._masters.get(name)
        return master is not None and master.process.returncode is None

    def _forget_failures(self) -> None:
        self._gate.reset()
        for hops, task in list(self._routes.items()):
            if not task.done():
                continue
            # A master that ended, also by a lost connection, has removed its socket.
            if task.cancelled() or task.exception() or task.result() or not self._jump_masters.socket(hops).exists():
                del self._routes[hops]

    async def _open_route(self, host: FleetHost) -> Failure | None:
        hops = host.route.hops
        for length in range(1, len(hops) + 1):
            prefix = hops[:length]
            task = self._routes.get(prefix)
            if task is None:
                task = self._routes[prefix] = asyncio.create_task(self._jump_masters.open(prefix))
            refused = await asyncio.shield(task)
            if refused is not None:
                return replace(refused, host=host.name)
        return None

    async def _login(self, host: FleetHost) -> Failure | None:
        target = host.route.target
        credential = (target.user, target.identity_file)
        if not await self._gate.enter(credential):
            return failure(node_place(host), "auth-stopped")
        accepted: bool | None = None
        try:
            problem = await self._try_login(host)
            accepted = True if problem is None else False if problem.kind == "auth" else None
        finally:
            self._gate.leave(credential, accepted=accepted)
        return problem

    async def _try_login(self, host: FleetHost) -> Failure | None:
        place = node_place(host)
        text: str | None = None
        for attempt in range(ATTEMPTS):
            try:
                text = await self._start_master(host)
            except LambdactlError as error:
                return failure(place, "no-key", error.message)
            if text is None:
                return None
            if stderr_cause(text) != "dropped":
                break
            if host.route.hops and REFUSED_BY_MASTER in text:
                target = host.route.target
                text = await self._jump_masters.reason(host.route.hops, target.hostname, target.port) or text
                if stderr_cause(text) != "dropped":
                    break
            await asyncio.sleep(retry_delay(attempt))
        assert text is not None  # noqa: S101 - every attempt failed
        target = host.route.target
        if stderr_cause(text) == "auth" and (reason := await unusable_key(target)) is not None:
            return failure(place, "no-key", reason)
        name = host.host_key_alias or host_name(target.hostname, target.port)
        return stderr_failure(place, text, name=name, known_hosts=self.fleet.known_hosts)

    async def _start_master(self, host: FleetHost) -> str | None:
        """Log in and keep the connection; None, or what ssh said."""
        path = self._folder / str(host.index)
        path.unlink(missing_ok=True)
        argv = ssh.node_argv(self.fleet, host, HOLD, batch=True, control=str(path))
        timeout = max(1, round(self.connect_timeout))
        argv[1:1] = ["-o", "ControlMaster=yes", "-o", "ControlPersist=no", "-o", f"ConnectTimeout={timeout}", "-T"]
        process = await self._spawn(argv)
        tail = Tail(process.stderr)
        ready = False
        try:
            async with asyncio.timeout(self.connect_timeout):
                ready = await _said_ready(process)
        except TimeoutError:
            return "Connection timed out"
        finally:
            if not ready:
                await self._reap(process)
        if not ready:
            return await tail.ended()
        self._masters[host.name] = _Master(process, path, tail)
        return None

    def _session_argv(self, name: str, *words: str) -> list[str]:
        """ssh over a node's master; when that is gone it fails and does not log in anew."""
        argv = ["ssh", "-F", "none", "-S", str(self._masters[name].socket), "-T", "-o", "ProxyCommand=false"]
        return [*argv, "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", *words]

    async def _exec(self, name: str, command: str, data: bytes, timeout: float | None) -> Outcome:
        try:
            async with asyncio.timeout(timeout):
                for attempt in range(ATTEMPTS):
                    status, out, err = await self._collect(self._session_argv(name, "--", name, command), data)
                    # sshd counts a session until it has reaped it, a moment after it told us of its end.
                    if status != SSH_FAILED or REFUSED_BY_MASTER.encode() not in err:
                        break
                    await asyncio.sleep(retry_delay(attempt))
        except TimeoutError:
            return self._fail(name, "too-long", f"{timeout:g}")
        except OutputTooBig:
            return self._fail(name, "too-big", str(MAX_OUTPUT >> 20))
        if status == SSH_FAILED and (cause := await self._broken(name, err)) is not None:
            return self._fail(name, *cause)
        return Completed(name, status, out, err)

    async def _broken(self, name: str, err: bytes) -> tuple[Cause, str] | None:
        """Why ssh itself, and not the command, ended with status 255; None when it was the command."""
        if REFUSED_BY_MASTER.encode() in err:
            return "not-started", "it allows no more sessions"
        status, _, _ = await self._collect(self._session_argv(name, "-O", "check", "--", name))
        return None if status == 0 else ("lost", " while a command ran")

    async def _open_channel(self, name: str, command: str, release: Callable[[], None]) -> Channel:
        process = await self._spawn(self._session_argv(name, "--", name, command))

        async def lost(err: bytes) -> Failure | None:
            cause = await self._broken(name, err)
            return self._fail(name, *cause) if cause is not None else None

        async def ended() -> None:
            await self._reap(process)
            release()

        return ProcessChannel(process, lost, ended)

    async def _open_forward(self, name: str, remote: int | str, local_host: str, local_port: int) -> Forward:
        port = local_port or _free_port(local_host)
        far = f"localhost:{remote}" if isinstance(remote, int) else remote
        listen = f"{local_host}:{port}:{far}"
        status, err = await self._control(name, "forward", listen)
        if status != 0:
            raise TransportError(self._fail(name, "other", err))

        master = self._masters.get(name)

        def alive() -> bool:
            return self._alive(name) and self._masters.get(name) is master

        async def close() -> None:
            if alive():
                await self._control(name, "cancel", listen)

        return _Listener(port, alive, close)

    async def _control(self, name: str, command: str, listen: str) -> tuple[int, str]:
        status, _, err = await self._collect(self._session_argv(name, "-O", command, "-L", listen, "--", name))
        return status, err.decode(errors="replace")

    async def _spawn(self, argv: list[str]) -> Process:
        process = await start(argv)
        self._running.add(process)
        return process

    async def _collect(self, argv: list[str], data: bytes = b"") -> tuple[int, bytes, bytes]:
        process = await self._spawn(argv)
        try:
            return await collect(process, data)
        finally:
            await self._reap(process)

    async def _reap(self, process: Process) -> None:
        await reap(process)
        self._running.discard(process)

    async def _shutdown(self) -> None:
        for task in self._routes.values():
            task.cancel()
        await asyncio.gather(*self._routes.values(), return_exceptions=True)
        await finish(list(self._running))
        self._running.clear()
        self._masters.clear()
        self._routes.clear()
        await self._jump_masters.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Listener:
    def __init__(self, port: int, alive: Callable[[], bool], close: Callable[[], Awaitable[None]]) -> None:
        self.port = port
        self._alive = alive
        self._close = close

    @property
    def alive(self) -> bool:
        return self._alive()

    async def close(self) -> None:
        await self._close()


async def _said_ready(process: Process) -> bool:
    """Whether the master reports that its command runs; what the shell's own files print before does not count."""
    assert process.stdout is not None  # noqa: S101 (a pipe)
    while line := await process.stdout.readline():
        if line.strip() == READY:
            return True
    return False


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
