"""What is done for a rank whose supervisor is gone: say how it ended, give its lease back.

`post` runs right after the main process, whatever killed it (systemd's ExecStopPost); `repair` runs whenever somebody
asks about a run, and finds what even `post` could not record: a reboot, a power cut.
"""

from __future__ import annotations

import os
import sys
import time

from . import lease, logstore, paths, state
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TEXT = {
    "node-rebooted": "the node was restarted while the run was active",
    "runner-killed": "the rank's supervisor was killed",
    "oom": "the kernel killed the rank's supervisor for lack of memory",
}


def python() -> str:
    """The interpreter that runs this."""
    return sys.executable or "/usr/bin/python3"


def runner_argv(run: str) -> list[str]:
    """How to start the runner for a run: its own copy, so that an upgrade does not touch what runs."""
    return [python(), "-I", "-S", paths.run_dir(run) + "/runner.pyz"]


def _bury(run: str, value: dict[str, Any], reason: str) -> dict[str, Any]:
    now = time.time()
    start, size = logstore.extent(paths.run_dir(run) + "/log")
    changes: dict[str, Any] = {}
    if not state.is_final(value):
        changes = {"state": "failed", "reason": reason, "message": f"{TEXT[reason]} (node {value.get('node')})"}
        changes.update(finished_at=now, log_size=size, log_start=start)
    if value.get("rank") == 0:
        text = f"rank 0 on {value.get('node')}: {TEXT[reason]}, and with it the run's coordinator"
        changes["gang"] = {"state": "failed", "reason": reason, "message": text, "first_failed_rank": 0}
        changes["gang"].update(exit_code=None, finished_at=now)
    return state.update(run, **changes)


def repair(run: str) -> dict[str, Any] | None:
    """The run's RankState, corrected if its supervisor is gone; None when the run is unknown here."""
    value = state.read(run)
    if value is None or state.is_settled(value) or state.is_alive(run):
        return value
    value = state.read(run) or value  # it may have ended between the two looks
    if not state.is_settled(value):
        value = _bury(run, value, "node-rebooted" if value.get("boot") != paths.boot() else "runner-killed")
    _remove_container(run)
    lease.release(run)
    return value


def _remove_container(run: str) -> None:
    folder = paths.run_dir(run)
    if os.path.exists(folder + "/container.json") or os.path.exists(folder + "/container"):
        from . import container_run

        container_run.remove(run)


def post(args: list[str]) -> int:
    """Record the end of a rank whose main process has just ended."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz post RUN")
    run = paths.run_id(args[0])
    value = state.read(run)
    if value is not None and not state.is_settled(value):
        _bury(run, value, "oom" if os.environ.get("SERVICE_RESULT") == "oom-kill" else "runner-killed")
    _remove_container(run)
    lease.release(run)
    return 0


def public(value: dict[str, Any], run: str) -> dict[str, Any]:
    """A RankState as others see it, with the log's extent as it is now."""
    shown = {name: field for name, field in value.items() if name != "boot"}
    if not state.is_final(value):
        shown["log_start"], shown["log_size"] = logstore.extent(paths.run_dir(run) + "/log")
    return shown
