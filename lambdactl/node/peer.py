"""Rank 0's link to the agent on one peer: an ssh process, JSON lines both ways, made again whenever it breaks."""

from __future__ import annotations

import os
import time

from . import light, paths
from .errors import NodeError
from .launch import User, find_user, spawn
from .light import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop, Timer
    from .spec import Job, Node

RECONNECT_FIRST, RECONNECT_MAX = 0.2, 5.0
PING_INTERVAL = 5.0
MAX_BUFFER = 1 << 20
LAST_WORDS = 400
SSH = (
    "ssh -T -a -x -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
    " -o ControlMaster=no -o ControlPath=none -o LogLevel=ERROR"
)


def replaced(template: str, run: str, node: Node) -> list[str]:
    """The words of LAMBDACTL_PEER_COMMAND with the peer's places filled in."""
    import shlex

    words = shlex.split(template)
    for place, value in {"{ip}": node.ip, "{run}": run, "{name}": node.name}.items():
        words = [word.replace(place, value) for word in words]
    return words


def ssh_command(node: Node, verb: list[str]) -> list[str]:
    """How to start a verb of the runner on a peer, as root there."""
    sudo = [] if node.ssh_user == "root" else ["sudo", "-n"]
    remote = [*sudo, "python3", "-I", "-S", paths.RUNNER, *verb]
    return [*SSH.split(), "-p", str(node.ssh_port), "-l", node.ssh_user, node.ip, *remote]


def agent_command(run: str, node: Node) -> list[str]:
    """How to start the agent of a run on a peer."""
    replacement = os.environ.get("LAMBDACTL_PEER_COMMAND") if paths.ROOT else None
    return replaced(replacement, run, node) if replacement else ssh_command(node, ["agent", run])


class PeerLink:
    """Keeps one peer's agent connected, from `open` on.

    Calls `on_message(rank, message)`, and `on_lost(rank, text)` on giving up.
    """

    def __init__(
        self,
        loop: Loop,
        job: Job,
        rank: int,
        *,
        on_message: Callable[[int, dict[str, Any]], None],
        on_lost: Callable[[int, str], None],
    ) -> None:
        self._loop = loop
        self._job = job
        self.rank = rank
        self._on_message = on_message
        self._on_lost = on_lost
        self.pid: int | None = None
        self.attached = False
        self.closed = False
        self._stdin = self._stdout = self._stderr = -1
        self._input = b""
        self._output = b""
        self._words = b""
        self._delay = RECONNECT_FIRST
        self._heard = time.monotonic()
        self._retry: Timer | None = None

    def open(self) -> None:
        """Connect for the first time."""
        self._heard = time.monotonic()
        self._loop.later(self._interval, self._ping)
        self._connect()

    def _user(self) -> User:
        if paths.ROOT or os.geteuid() != 0:
            return find_user(str(os.geteuid()))
        return find_user(self._job.node.ssh_user)

    def _connect(self) -> None:
        self._retry = None
        if self.closed:
            return
        user = None
        ends = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (child_in, self._stdin), (self._stdout, child_out), (self._stderr, child_err) = ends
        env = {**os.environ, "LC_ALL": "C"}
        env.pop("LC_LAMBDACTL_RUN", None)  # the agent must outlive the job, so it must not join the job's group
        try:
            user = self._user()
            env.update(HOME=user.home, USER=user.name, LOGNAME=user.name)
            self.pid = spawn(
                agent_command(self._job.run_id, self._job.nodes[self.rank]), user, env, (child_in, child_out, child_err)
            )
        except NodeError as error:
            self._words = error.message.encode()
        finally:
            for descriptor in (child_in, child_out, child_err):
                os.close(descriptor)
        self._input = self._output = b""
        for descriptor in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(descriptor, False)
        self._loop.watch(self._stdout, self._read)
        self._loop.watch(self._stderr, self._read_words)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message if the agent is there; what must arrive is sent again after a reconnect."""
        if self._stdin >= 0 and len(self._output) < MAX_BUFFER:
            self._output += light.dumps(message).encode() + b"\n"
            self._flush()

    def _flush(self) -> None:
        try:
            self._output = self._output[os.write(self._stdin, self._output) :]
        except BlockingIOError:
            pass
        except OSError:  # the process is gone; its end is noticed at its output
            self._output = b""
        if self._output:
            self._loop.watch(self._stdin, self._flush, 2)
        else:
            self._loop.forget(self._stdin)

    def _read_words(self) -> None:
        try:
            data = os.read(self._stderr, 65536)
        except BlockingIOError:
            return
        if data:
            self._words = (self._words + data)[-LAST_WORDS:]
        else:
            self._loop.forget(self._stderr)

    def _read(self) -> None:
        try:
            data = os.read(self._stdout, 65536)
        except BlockingIOError:
            return
        self._input += data
        if not data or len(self._input) > MAX_BUFFER:
            self._broken()
            return
        *lines, self._input = self._input.split(b"\n")
        for line in lines:
            self._message(line)

    def _message(self, line: bytes) -> None:
        try:
            message = light.loads(line)
        except ValueError:  # a login banner or an rc file's chatter on standard output
            self._words = (self._words + line)[-LAST_WORDS:]
            return
        if not isinstance(message, dict):
            return
        if "error" in message:
            self._words = str(message["error"]).encode()
            return
        self._heard = time.monotonic()
        self._delay = RECONNECT_FIRST
        self._words = b""
        self.attached = True
        self._on_message(self.rank, message)

    def _ping(self) -> None:
        if self.closed:
            return
        silent = time.monotonic() - self._heard
        if silent > self._job.node_timeout:
            self._give_up(silent)
            return
        if self.pid is not None and silent > max(3 * self._interval, self._job.node_timeout / 2):
            self._kill()  # it neither answers nor ends: try a new connection in the time that is left
        self.send({"op": "ping"})
        self._loop.later(self._interval, self._ping)

    @property
    def _interval(self) -> float:
        return min(PING_INTERVAL, self._job.node_timeout / 4)

    def _give_up(self, silent: float) -> None:
        node = self._job.nodes[self.rank]
        words = " ".join(self._words.decode("utf-8", "replace").split()) or "it does not answer"
        self.close()
        self._on_lost(
            self.rank, f"node {node.name} ({node.ip}) has been unreachable from rank 0 for {silent:.0f} s: {words}"
        )

    def _broken(self) -> None:
        self._read_words()
        self._close_pipes()
        self._kill()
        self.attached = False
        if not self.closed:
            self._retry = self._loop.later(self._delay, self._connect)
            self._delay = min(self._delay * 2, RECONNECT_MAX)

    def _close_pipes(self) -> None:
        for descriptor in (self._stdin, self._stdout, self._stderr):
            if descriptor >= 0:
                self._loop.forget(descriptor)
                os.close(descriptor)
        self._stdin = self._stdout = self._stderr = -1

    def _kill(self) -> None:
        if self.pid is not None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return

    def reaped(self) -> None:
        """The process has ended and was waited for."""
        self.pid = None

    def close(self) -> None:
        """End the link for good."""
        self.closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._close_pipes()
        self._kill()
