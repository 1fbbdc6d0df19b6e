"""retry: dstack's events, windows and back-off, by a clock that only the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from lambdactl.run.retry import DELAYS, Attempts, delay, events
from lambdactl.run.status import RunStatus
from lambdactl.spec import Retry

EVERY = Retry()


def ended(reason: str, *, state: str = "failed", at: float = 0.0, **fields: Any) -> RunStatus:
    rank = {"rank": 0, "node": "n0", "state": state}
    base: dict[str, Any] = {"run_id": "r", "name": "n", "ranks": (rank,), "nodes_num": 1, "submitted_at": 0.0}
    return RunStatus(**base, owner="me", state=state, reason=reason, finished_at=at, **fields)


@pytest.mark.parametrize(
    ("reason", "state", "found"),
    [
        ("exited", "failed", {"error"}), ("signalled", "failed", {"error"}), ("oom", "failed", {"error"}),
        ("start-failed", "failed", {"error"}), ("node-unreachable", "failed", {"error", "interruption"}),
        ("node-rebooted", "failed", {"error", "interruption"}), ("runner-killed", "failed", {"error", "interruption"}),
        ("coordinator-lost", "failed", {"error", "interruption"}), ("max-duration", "failed", set()),
        ("stopped-by-user", "stopped", set()), ("exited", "done", set()),
    ],
)  # fmt: skip
def test_which_end_is_which_event(reason: str, state: str, found: set[str]) -> None:
    assert events(ended(reason, state=state)) == found


def test_the_back_off_is_dstacks_and_repeats() -> None:
    assert [delay(n) for n in range(1, 9)] == [15, 30, 60, 120, 300, 600, 600, 600]
    attempts = Attempts(EVERY, 0.0)
    now, pauses = 0.0, []
    for _ in range(8):
        now += 5
        pause = attempts.after(ended("exited", at=now), now)
        assert pause is not None
        pauses.append(pause)
        now += pause
    assert pauses == [*DELAYS, 600, 600]
    assert attempts.number == 9


def test_no_capacity_counts_from_the_submission() -> None:
    attempts = Attempts(Retry(on_events=("no-capacity",), duration=600), submitted_at=1000.0)
    assert attempts.patience(1000.0) == 600
    assert attempts.patience(1590.0) == 10
    assert attempts.patience(2000.0) == 0
    assert attempts.after(ended("exited", at=1500.0), 1500.0) is None  # an error is not among its events
    assert Attempts(Retry(on_events=("error",)), 0.0).patience(0.0) is None
    assert Attempts(None, 0.0).patience(0.0) is None


def test_other_windows_count_from_the_end_of_the_last_attempt() -> None:
    attempts = Attempts(Retry(on_events=("error",), duration=100), submitted_at=0.0)
    assert attempts.after(ended("exited", at=5000.0), 5010.0) == 15  # however long it has run
    assert attempts.patience(5025.0) == 75
    assert attempts.after(ended("node-unreachable", at=9000.0), 9000.0) == 30
    assert attempts.after(ended("exited", at=9100.0), 9100.0) == 60
    assert attempts.after(ended("exited", at=9200.0), 9200.0) is None  # 2 minutes are longer than the window


def test_an_end_that_is_no_event_is_the_end() -> None:
    attempts = Attempts(Retry(on_events=("interruption",)), 0.0)
    assert attempts.after(ended("exited", at=1.0), 1.0) is None
    assert Attempts(EVERY, 0.0).after(ended("stopped-by-user", state="stopped", at=1.0), 1.0) is None
    assert Attempts(None, 0.0).after(ended("exited", at=1.0), 1.0) is None


def test_the_next_attempt_tells_of_those_before_it() -> None:
    attempts = Attempts(EVERY, 0.0)
    attempts.after(ended("exited", at=3.0, exit_code=7), 4.0)
    told = attempts.as_job()
    assert told["number"] == 2
    assert (told["earlier"][0]["exit_code"], told["earlier"][0]["nodes"]) == (7, ["n0"])
