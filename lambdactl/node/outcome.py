"""How a rank ended, as the fields of its RankState."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What a stop order's reason makes of the rank; everything else that stops it was somebody's wish.
STATE_OF_REASON = {
    "master-done": "done",
    "max-duration": "failed",
    "coordinator-lost": "failed",
    "node-rebooted": "failed",
}
EXIT_MAX_DURATION = 124  # as timeout(1) has it


def exit_code(status: int) -> int:
    """A wait status as a shell would report it: the exit code, or 128 + the signal's number."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def of_exit(status: int, *, oom: bool) -> dict[str, Any]:
    """The end of a job that nobody stopped."""
    code = exit_code(status)
    if code == 0:
        return {"state": "done", "reason": "exited", "exit_code": 0, "message": None}
    if oom:
        text = "the kernel killed a process of the job for lack of memory"
        return {"state": "failed", "reason": "oom", "exit_code": code, "message": text}
    if os.WIFSIGNALED(status):
        import signal

        name = (
            signal.Signals(os.WTERMSIG(status)).name
            if os.WTERMSIG(status) in set(signal.Signals)
            else f"signal {code - 128}"
        )
        return {
            "state": "failed",
            "reason": "signalled",
            "exit_code": code,
            "message": f"the commands were killed by {name}",
        }
    return {
        "state": "failed",
        "reason": "exited",
        "exit_code": code,
        "message": f"the commands exited with code {code}",
    }


def of_stop(order: dict[str, Any], status: int | None) -> dict[str, Any]:
    """The end of a job that was stopped; `status` is None when its commands had not started."""
    reason = order["reason"]
    code = None if status is None else exit_code(status)
    return {
        "state": STATE_OF_REASON.get(reason, "stopped"),
        "reason": reason,
        "exit_code": EXIT_MAX_DURATION if reason == "max-duration" else code,
        "message": order.get("message"),
    }
