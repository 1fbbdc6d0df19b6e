"""Several ranks: the gang's decisions as a table, then real supervisors and agents on several roots."""
# ruff: noqa: E501 (tables of vectors read better in long lines)

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.node import coordinator
from lambdactl.node import state as node_state
from lambdactl.node.gang import Gang
from lambdactl.node.spec import Job
from tests.unit.node_bed import PYTHONS, Bed, command_lines, kill

RUN = "00000000-0000-4000-8000-000000000000"


def gang(size: int = 3, **fields: Any) -> Gang:
    nodes = [{"name": f"n{rank}", "ip": f"10.0.0.{rank}"} for rank in range(size)]
    return Gang(Job({"run_id": RUN, "run_name": "x", "nodes": nodes, "rank": 0, "script": "", **fields}))


def value(state: str, reason: str | None = None, code: int | None = None) -> dict[str, Any]:
    return {"state": state, "reason": reason, "exit_code": code, "message": None}


WAIT, RUN_, DONE = value("waiting"), value("running"), value("done", "exited", 0)
FAILED, STOPPED = value("failed", "exited", 9), value("stopped", "gang-failed", 130)
BY_USER = value("stopped", "stopped-by-user")
MASTER, IGNORE = {"stop_criteria": "master-done"}, {"on_node_failure": "ignore"}


@pytest.mark.parametrize(
    ("fields", "events", "order", "end"),
    [
        ({}, [(0, DONE), (1, DONE), (2, DONE)], None, ("done", None, None, 0)),
        ({}, [(1, DONE), (0, RUN_), (2, RUN_)], None, ("running", None, None, None)),
        ({}, [(0, RUN_), (1, RUN_)], None, ("starting", None, None, None)),
        ({}, [(2, FAILED), (0, RUN_)], "gang-failed", ("stopping", "exited", 2, 9)),
        ({}, [(2, FAILED), (0, STOPPED), (1, FAILED)], "gang-failed", ("failed", "exited", 2, 9)),
        (MASTER, [(0, DONE), (1, RUN_), (2, RUN_)], "master-done", ("stopping", "master-done", None, None)),
        (MASTER, [(1, DONE), (0, DONE), (2, value("done", "master-done", 137))], "master-done", ("done", "master-done", None, 0)),
        (MASTER, [(1, FAILED), (0, DONE), (2, STOPPED)], "gang-failed", ("failed", "exited", 1, 9)),
        (MASTER, [(0, FAILED), (1, STOPPED), (2, STOPPED)], "gang-failed", ("failed", "exited", 0, 9)),
        ({**MASTER, **IGNORE}, [(1, FAILED), (0, DONE), (2, DONE)], "master-done", ("done", "master-done", None, 0)),
        ({**MASTER, **IGNORE}, [(0, FAILED), (1, RUN_), (2, RUN_)], "gang-failed", ("stopping", "exited", 0, 9)),
        (IGNORE, [(0, FAILED), (1, RUN_), (2, RUN_)], None, ("running", None, None, None)),
        (IGNORE, [(1, FAILED), (0, FAILED), (2, DONE)], None, ("failed", "exited", 1, 9)),
        ({}, [(1, BY_USER), (0, RUN_), (2, RUN_)], "stopped-by-user", ("stopping", "stopped-by-user", None, None)),
        ({}, [(1, BY_USER), (0, BY_USER), (2, BY_USER)], "stopped-by-user", ("stopped", "stopped-by-user", None, None)),
    ],
)  # fmt: skip
def test_decisions(fields: dict[str, str], events: list[Any], order: str | None, end: tuple[Any, ...]) -> None:
    run = gang(**fields)
    for rank, state in events:
        run.observe(rank, state)
    assert (run.stop_order or {}).get("reason") == order
    summary = run.summary()
    assert tuple(summary[key] for key in ("state", "reason", "first_failed_rank", "exit_code")) == end


@pytest.mark.parametrize(
    ("order", "states", "may"),
    [
        ("any", [None, None, None], [True, True, True]),
        ("master-first", [WAIT, WAIT, WAIT], [True, False, False]),
        ("master-first", [RUN_, WAIT, WAIT], [True, True, True]),
        ("master-first", [DONE, WAIT, WAIT], [True, True, True]),
        ("workers-first", [WAIT, RUN_, WAIT], [False, True, True]),
        ("workers-first", [WAIT, RUN_, None], [False, True, True]),
        ("workers-first", [WAIT, RUN_, DONE], [True, True, True]),
    ],
)
def test_startup_order(order: str, states: list[Any], may: list[bool]) -> None:
    run = gang(startup_order=order)
    for rank, state in enumerate(states):
        if state is not None:
            run.observe(rank, state)
    assert [run.may_start(rank) for rank in range(3)] == may


def test_unreachable_and_second_thoughts() -> None:
    run = gang()
    run.ask_stop("stopped-by-user", None, abort=False, grace=5)
    run.ask_stop("stopped-by-user", None, abort=True, grace=None)
    assert run.stop_order is not None
    assert run.stop_order["abort"]
    run = gang(**IGNORE)
    run.observe(1, FAILED)
    run.ask_stop("stopped-by-user", None, abort=False, grace=None)
    assert run.stop_order is not None
    run = gang()
    run.unreachable(2, "node n2 (10.0.0.2) has been unreachable")
    run.observe(0, STOPPED)
    assert not run.final
    run.observe(1, STOPPED)
    assert run.final
    assert run.summary()["message"] == "rank 2 on n2: node n2 (10.0.0.2) has been unreachable"


@pytest.fixture(params=PYTHONS, ids=lambda path: "py38" if "3.8" in path else "py")
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 3)
    yield bed
    bed.close()


MASTER_ENDS = "test $DSTACK_NODE_RANK != 0 || exit {code}; sleep 1000"


def outcome(bed: Bed, run: str, rank: int) -> tuple[str, str, int | None]:
    value = bed.finish(run, rank)
    bed.no_leftovers(run)
    return value["state"], value["reason"], value["exit_code"]


@pytest.mark.parametrize("order", ["any", "master-first", "workers-first"])
@pytest.mark.parametrize("submit", [[0, 1, 2], [2, 1, 0]], ids=["up", "down"])
def test_master_done(bed: Bed, order: str, submit: list[int]) -> None:
    run = bed.start(MASTER_ENDS.format(code=0), startup_order=order, stop_criteria="master-done", order=submit)
    assert outcome(bed, run, 0) == ("done", "exited", 0)
    for rank in (1, 2):
        assert outcome(bed, run, rank)[:2] == ("done", "master-done")
        assert bed.nodes[rank].rank(run)["gang"]["state"] == "done"
    # When each rank's shell was started; what it writes itself may come later, or never if the worker is stopped by then.
    times = [at for rank in range(3) if (at := bed.nodes[rank].rank(run)["ready_at"]) is not None]
    assert order == "any" or times[0] == (max(times) if order == "workers-first" else min(times))


def test_all_done_waits_for_all(bed: Bed) -> None:
    run = bed.start("test $DSTACK_NODE_RANK = 0 || while ! test -e go; do sleep 0.05; done")
    bed.until(run, 0, lambda value: value["state"] == "done")
    assert bed.nodes[0].rank(run)["gang"]["state"] in ("starting", "running")
    assert bed.nodes[1].rank(run)["state"] == "running"
    (bed.base / "go").touch()
    assert bed.finish(run)["gang"]["state"] == "done"
    assert [outcome(bed, run, rank) for rank in (1, 2)] == [("done", "exited", 0)] * 2


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failing_rank_stops_all_and_gives_the_exit_code(bed: Bed, failing: int) -> None:
    run = bed.start(
        f"while ! test -e go; do sleep 0.05; done; test $DSTACK_NODE_RANK != {failing} || exit 7; sleep 1000"
    )
    for rank in range(3):
        bed.running(run, rank)
    (bed.base / "go").touch()
    for rank in range(3):
        gang_ = bed.finish(run, rank)["gang"]
        assert (gang_["state"], gang_["reason"], gang_["first_failed_rank"], gang_["exit_code"]) == (
            "failed",
            "exited",
            failing,
            7,
        )
        assert gang_["message"] == f"rank {failing} on n{failing}: the commands exited with code 7"
        assert outcome(bed, run, rank)[:2] == (("failed", "exited") if rank == failing else ("stopped", "gang-failed"))


def test_ignore_lets_the_others_finish(bed: Bed) -> None:
    run = bed.start("test $DSTACK_NODE_RANK != 1 || exit 7; sleep 0.5; echo end", on_node_failure="ignore")
    assert outcome(bed, run, 0) == ("done", "exited", 0)
    assert bed.finish(run)["gang"]["exit_code"] == 7
    assert bed.nodes[2].log(run) == b"end\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_stop_from_any_node(bed: Bed, rank: int) -> None:
    run = bed.start("trap '' INT; sleep 1000 & sleep 1000", stop_grace=0.3)
    for other in range(3):
        bed.running(run, other)
    bed.nodes[rank].call("stop", run=run)
    for other in range(3):
        assert outcome(bed, run, other)[:2] == ("stopped", "stopped-by-user")
        assert bed.nodes[other].rank(run)["gang"]["state"] == "stopped"


def test_stop_while_waiting_for_the_gate(bed: Bed) -> None:
    run = bed.start("sleep 1000", startup_order="master-first", order=[1, 2, 0], user="nobody-here")
    assert bed.finish(run)["reason"] == "start-failed"
    assert outcome(bed, run, 1) == ("stopped", "gang-failed", None)


def test_killed_worker_supervisor(bed: Bed) -> None:
    run = bed.start("sleep 1000")
    for rank in range(3):
        bed.running(run, rank)
    kill(bed.nodes[2].supervisor(run))
    value = bed.finish(run)
    assert (value["state"], value["reason"]) == ("stopped", "gang-failed")
    assert (value["gang"]["reason"], value["gang"]["first_failed_rank"]) == ("runner-killed", 2)
    assert outcome(bed, run, 2)[:2] == ("failed", "runner-killed")


def test_killed_coordinator(bed: Bed) -> None:
    run = bed.start("sleep 1000", node_timeout=2)
    for rank in range(3):
        bed.running(run, rank)
    bed.until(run, 0, lambda value: value["gang"]["state"] == "running")  # before, the others wait a minute for it
    kill(bed.nodes[0].supervisor(run))
    assert outcome(bed, run, 0)[:2] == ("failed", "runner-killed")
    for rank in (1, 2):
        value = bed.until(run, rank, lambda value: value["state"] == "failed")
        assert value["reason"] == "coordinator-lost"
        assert "n0" in value["message"]
    bed.no_leftovers(run)


def test_agents_that_die_are_replaced(bed: Bed) -> None:
    run = bed.start("while ! test -e go; do sleep 0.05; done")
    for rank in range(3):
        bed.running(run, rank)
    for _ in range(3):
        for pid, words in command_lines():
            if words[-2:] == ["agent", run]:
                kill(pid)
        time.sleep(0.3)
    (bed.base / "go").touch()
    assert bed.finish(run)["gang"]["state"] == "done"
    assert outcome(bed, run, 1) == ("done", "exited", 0)


def test_unreachable_node(bed: Bed) -> None:
    bed.env["LAMBDACTL_PEER_COMMAND"] = "sh -c 'echo no route to {ip} >&2; exit 255'"
    for node in bed.nodes:
        node.env.update(bed.env)
    run = bed.start("sleep 1000", node_timeout=1, stop_grace=0.3)
    value = bed.finish(run)
    assert (value["gang"]["state"], value["gang"]["reason"]) == ("failed", "node-unreachable")
    for words in ("n1 (127.0.0.2)", "no route to 127.0.0.2", "rank 1"):
        assert words in value["gang"]["message"]


class Links:
    """Stands in for the links to the peers and for the loop's timers: what is opened when, without processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[int] = []
        self.due: list[Any] = []
        outer = self

        class Link:
            attached = closed = False
            pid = None

            def __init__(self, loop: Any, job: Job, rank: int, **_: Any) -> None:
                self.rank = rank

            def open(self) -> None:
                outer.opened.append(self.rank)

        monkeypatch.setattr(coordinator, "PeerLink", Link)

    def later(self, _seconds: float, callback: Any) -> None:
        self.due.append(callback)

    def coordinate(self, **fields: Any) -> coordinator.Coordinator:
        nodes = [{"name": f"n{rank}", "ip": f"10.0.0.{rank}"} for rank in range(3)]
        job = Job({"run_id": RUN, "run_name": "x", "nodes": nodes, "rank": 0, "script": "", **fields})

        def ignore(*_: Any) -> None:
            return

        return coordinator.Coordinator(
            self,  # type: ignore[arg-type]  # a stand-in with what is asked of it
            job,
            on_start=lambda: self.opened.append(0),
            on_stop=ignore,
            on_gang=ignore,
            on_end=ignore,
        )


def test_the_commands_go_before_the_links_where_no_start_waits_for_these(monkeypatch: pytest.MonkeyPatch) -> None:
    links = Links(monkeypatch)
    links.coordinate().observe_own(WAIT)
    assert links.opened == [0]
    for callback in [*links.due, *links.due]:
        callback()
    assert links.opened == [0, 1, 2]


@pytest.mark.parametrize(
    "fields", [{"startup_order": "workers-first"}, {"files": [{"manifest": "0" * 64, "path": "x"}]}]
)
def test_a_start_that_waits_for_others_has_its_links_at_once(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    links = Links(monkeypatch)
    links.coordinate(**fields)
    assert links.opened == [1, 2]


def test_a_run_that_is_to_end_has_its_links_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    links = Links(monkeypatch)
    run = links.coordinate()
    run.observe_own(WAIT)
    run.ask_stop("stopped-by-user", None, abort=False, grace=None)
    assert links.opened == [0, 1, 2]


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations_with_replacement(range(3), 2)))
def test_a_run_is_alive_whenever_one_looks_while_its_supervisor_takes_over(
    monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    held = ({"start.lock"}, {"start.lock", "rank.lock"}, {"rank.lock"})
    moments = iter((first, second))
    monkeypatch.setattr(node_state.locks, "is_held", lambda path: os.path.basename(path) in held[next(moments)])
    assert node_state.is_alive(RUN)
