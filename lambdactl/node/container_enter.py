"""`runner.pyz enter RUN [-- COMMAND]`: run a command line, or a shell, inside the run's container on this node.

This is how mpirun's daemons get into a peer's container without an ssh server in the image: node-to-node SSH ends on
the host, its forced command (shell.py) becomes this. The command has the container's variables, user and limits, and
ends with it.
"""

from __future__ import annotations

import contextlib
import os
import time

from . import container, container_argv, container_pull, container_run, control, spec, state
from .errors import NodeError

WAIT = 60.0  # ranks are started at about the same time
POLL = 0.1


def _wait_until_running(run: str) -> None:
    until = time.monotonic() + WAIT
    while True:
        value = state.read(run) or {}
        if value.get("state") == "running" and container_run.record(run).get("started"):
            return
        if state.is_final(value) or time.monotonic() > until:
            name, now = value.get("run_name", run), value.get("state", "unknown")
            raise NodeError("not-found", f"the container of run {name} does not run on this node (it is {now})")
        time.sleep(POLL)


def main(args: list[str]) -> int:
    """Become the engine's client with the command in the container."""
    words = args[1:2] == ["--"] if len(args) == 3 else len(args) == 1
    if not words:
        raise NodeError("bad-request", "usage: runner.pyz enter RUN [-- COMMAND]")
    run = state.find(args[0])
    if run is None:
        raise NodeError("not-found", f"there is no run {args[0]} on this node")
    job = spec.load(run)
    container.needed(job)
    _wait_until_running(run)
    with contextlib.suppress(NodeError):
        control.call(run, {"op": "adopt", "entered": True})  # this process then ends with the rank
    known = container_run.record(run)
    engine = container_run.engine_of(known)
    argv = container_argv.enter(
        engine, str(known["name"]), args[2] if len(args) == 3 else None, shell=job.shell, tty=os.isatty(0)
    )
    os.execve(argv[0], argv, container_pull.client_environment(job))
