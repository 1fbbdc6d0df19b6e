"""`runner.pyz agent RUN`: the coordinator's ear and hand on a peer; JSON lines on standard input and output.

In: {"op": "ping" | "go" | "stop" | "gang", ...}. Out: {"state": RankState} at every change, {"pong": true},
{"ack": "gang"}, {"error": text}. It holds no decisions: if it dies the coordinator starts another one.
"""

from __future__ import annotations

import os
import select
import time

from . import control, light, paths, repair, state
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

APPEAR_TIMEOUT = 15.0
SETTLE_TIMEOUT = 3.0
MAX_LINE = 1 << 20


def _say(message: dict[str, Any]) -> None:
    data = light.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def _wait_for_run(run: str) -> dict[str, Any] | None:
    """The rank's state, waiting a little: the controller starts all ranks at about the same time."""
    until = time.monotonic() + APPEAR_TIMEOUT
    while True:
        value = repair.repair(run)
        if value is not None or time.monotonic() > until:
            return value
        time.sleep(0.02)


class Agent:
    """Relays between the coordinator and the rank's supervisor on this node."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._buffer = b""
        self._said: dict[str, Any] | None = None
        self._wakeups: socket.socket | None = None

    def _connect(self) -> None:
        """Subscribe to the supervisor; one that was created just now may not listen yet."""
        until = time.monotonic() + SETTLE_TIMEOUT
        while self._wakeups is None:
            self._wakeups = control.subscribe(self.run, log=False, agent=True)
            if self._wakeups is None:
                value = repair.repair(self.run)
                if value is None or state.is_final(value) or time.monotonic() > until:
                    return
                time.sleep(0.02)

    def _report(self) -> None:
        value = state.read(self.run)
        if value is not None and value != self._said:
            self._said = value
            _say({"state": repair.public(value, self.run)})

    def _supervisor_gone(self) -> None:
        """Its last state is being written, by itself or by `post`."""
        if self._wakeups is not None:
            self._wakeups.close()
            self._wakeups = None
        until = time.monotonic() + SETTLE_TIMEOUT
        while True:
            value = state.read(self.run)
            if value is None or state.is_final(value):
                break
            if time.monotonic() > until:
                repair.repair(self.run)
                break
            time.sleep(0.01)
        self._report()

    def _obey(self, line: bytes) -> None:
        message = light.loads(line)
        operation = message.get("op")
        if operation == "ping":
            if self._wakeups is not None:
                self._wakeups.sendall(b"\n")
            _say({"pong": True})
        elif operation == "gang":
            state.update(self.run, gang=message["gang"])
            _say({"ack": "gang"})
        elif operation in ("go", "stop"):
            control.call(self.run, message)

    def _read_input(self) -> bool:
        data = os.read(0, 65536)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            try:
                self._obey(line)
            except (ValueError, KeyError, OSError):
                _say({"error": "the agent could not carry out what the coordinator asked for"})
        return bool(data) and len(self._buffer) < MAX_LINE

    def serve(self) -> None:
        """Relay until the coordinator closes the connection."""
        self._connect()
        self._report()
        if self._wakeups is None:
            self._supervisor_gone()
        while True:
            ready = select.select([0] + ([self._wakeups] if self._wakeups is not None else []), [], [])[0]
            if self._wakeups in ready and self._wakeups is not None:
                try:
                    gone = not self._wakeups.recv(4096)
                except OSError:
                    gone = True
                if gone:
                    self._supervisor_gone()
                else:
                    self._report()
            if 0 in ready and not self._read_input():
                return


def main(args: list[str]) -> int:
    """Serve the coordinator of one run."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz agent RUN")
    run = paths.run_id(args[0])
    if _wait_for_run(run) is None:
        _say({"error": f"run {run} was not started on this node"})
        return 1
    Agent(run).serve()
    return 0
