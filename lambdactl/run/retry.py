"""Whether and when a run that has failed is tried again: dstack's events, windows and back-off (its `retry`).

`no-capacity` is no failure here but the queue: the run waits for its turn, at most `duration` from its submission. The
others restart all ranks as a new attempt of the same name; their window begins when the last attempt has ended, so it
bounds how long the run may be without nodes, not how often it may fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lambdactl.run.status import RunStatus
from lambdactl.spec import Retry

# Seconds before the 2nd, 3rd, ... attempt; the last one repeats (dstack's pending.py).
DELAYS = (15.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_ERRORS = frozenset({"exited", "signalled", "oom", "start-failed"})
# A lost node is an interruption; dstack counts an SSH host that does not answer as an error, so both words mean it.
_LOST = frozenset({"node-unreachable", "node-rebooted", "coordinator-lost", "runner-killed", "disrupted"})


def events(status: RunStatus) -> frozenset[str]:
    """The events of `on_events` that a run's end is; empty when it is done, was stopped, or was over its time limit."""
    if status.state != "failed":
        return frozenset()
    reason = status.reason or ""
    if reason in _LOST:
        return frozenset({"interruption", "error"})
    return frozenset({"error"}) if reason in _ERRORS else frozenset()


def delay(attempt: int) -> float:
    """Seconds between the end of an attempt (1, 2, ...) and the next one."""
    return DELAYS[min(attempt, len(DELAYS)) - 1]


@dataclass
class Attempts:
    """The attempts of one run, as far as they have ended."""

    policy: Retry | None
    submitted_at: float
    earlier: list[dict[str, Any]] = field(default_factory=list)
    ended_at: float | None = None

    @property
    def number(self) -> int:
        """The number of the attempt that is being made."""
        return len(self.earlier) + 1

    def as_job(self) -> Mapping[str, Any]:
        """The `attempt` of a JobSpec."""
        return {"number": self.number, "earlier": list(self.earlier)}

    def patience(self, now: float) -> float | None:
        """Seconds that the next attempt may wait for nodes; None when a full fleet is no reason to wait."""
        if self.policy is None:
            return None
        if self.ended_at is None:
            began, waits = self.submitted_at, "no-capacity" in self.policy.on_events
        else:
            began, waits = self.ended_at, True
        return max(0.0, self.policy.duration - (now - began)) if waits else None

    def after(self, status: RunStatus, now: float) -> float | None:
        """Take note of an attempt's end; seconds until the next attempt, or None when there is none."""
        wanted = self.policy is not None and events(status) & set(self.policy.on_events)
        pause = delay(self.number)
        self.ended_at = min(status.finished_at or now, now)
        self.earlier.append(
            {
                "run_id": status.run_id,
                "state": status.state,
                "reason": status.reason,
                "exit_code": status.exit_code,
                "message": status.message,
                "submitted_at": status.submitted_at,
                "finished_at": self.ended_at,
                "nodes": list(status.hosts.values()),
            }
        )
        if self.policy is None or not wanted or pause > self.policy.duration:
            return None
        return pause
