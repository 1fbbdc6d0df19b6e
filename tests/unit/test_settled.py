"""A question about one run or service waits for hosts that are silent only as long as they could change the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from lambdactl.run import nodes
from lambdactl.run.nodes import Problem, call_all, same
from lambdactl.run.service_control import fetch_services
from lambdactl.run.status import fetch_runs
from lambdactl.transport.api import Completed

pytestmark = pytest.mark.timeout(60)
HOSTS = ("n0", "n1", "n2")
RUN = "11111111-2222-3333-4444-555555555555"


class Beds:
    """A part of a Runner: its hosts answer at once, the frozen ones when they thaw.

    The event loop's turns are the clock here: a frozen host answers only after everything else has come to rest.
    """

    def __init__(self, answers: Mapping[str, Mapping[str, Any]], frozen: tuple[str, ...] = ()) -> None:
        self.answers = answers
        self.frozen = frozen
        self.thaw = asyncio.Event()
        self.given_up: list[str] = []

    async def fan_out(self, commands: Any, *, on_result: Any = None, **_: Any) -> dict[str, Completed]:
        async def one(host: str) -> Completed:
            try:
                if host in self.frozen:
                    await self.thaw.wait()
            except asyncio.CancelledError:
                self.given_up.append(host)
                raise
            line = json.dumps({"id": 1, "ok": True, "result": self.answers[host]}).encode() + b"\n"
            outcome = Completed(host, 0, line, b"")
            if on_result is not None:
                on_result(host, outcome)
            return outcome

        done = await asyncio.gather(*(one(host) for host in commands))
        return {outcome.host: outcome for outcome in done}


def rank(number: int, state: str = "running", nodes_num: int | None = 2, name: str = "train") -> dict[str, Any]:
    gang = {"state": state} if number == 0 else None
    return {
        "ranks": [
            {"run_id": RUN, "run_name": name, "rank": number, "nodes_num": nodes_num, "state": state, "gang": gang}
        ]
    }


def service(state: str) -> dict[str, Any]:
    return {"services": [{"name": "web", "state": state, "supervised": True}]}


NONE: dict[str, Any] = {"ranks": [], "services": []}


def asked(
    bed_answers: Mapping[str, Mapping[str, Any]], frozen: tuple[str, ...], question: Any
) -> tuple[Any, list[str]]:
    """What comes of a question while these hosts are frozen; they thaw when it has not been answered without them."""

    async def body() -> tuple[Any, list[str]]:
        bed = Beds(bed_answers, frozen)
        asking = asyncio.ensure_future(question(bed))
        for _ in range(20):  # more turns of the loop than the answers that come need
            await asyncio.sleep(0)
        if not asking.done():
            bed.thaw.set()
        return await asking, bed.given_up

    return asyncio.run(body())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "OTHERS_GET", 0.0)


def test_a_service_that_goes_on_is_found_while_another_host_is_frozen() -> None:
    answers = {"n0": NONE, "n1": service("running"), "n2": NONE}
    (found, problems), given_up = asked(answers, ("n2",), lambda bed: fetch_services(bed, HOSTS, "web"))
    assert [(status.ingress, status.state) for status in found] == [("n1", "running")]
    assert (given_up, [problem.code for problem in problems.values()]) == (["n2"], ["timeout"])


@pytest.mark.parametrize("name", ["web", None])
def test_an_ended_service_and_all_services_wait_for_every_host(name: str | None) -> None:
    answers = {"n0": service("stopped" if name else "running"), "n1": NONE, "n2": service("running")}
    (found, problems), given_up = asked(answers, ("n2",), lambda bed: fetch_services(bed, HOSTS, name))
    assert ([status.ingress for status in found], problems, given_up) == (["n0", "n2"], {}, [])


def test_a_run_all_of_whose_ranks_have_answered_is_found_while_another_host_is_frozen() -> None:
    answers = {"n0": rank(0), "n1": rank(1), "n2": NONE}
    for key in ("train", RUN):
        (runs, _), given_up = asked(answers, ("n2",), lambda bed, key=key: fetch_runs(bed, HOSTS, key))
        assert [(status.name, status.unseen) for status in runs] == [("train", {})]
        assert given_up == ["n2"]


@pytest.mark.parametrize(
    ("key", "n0", "n1"),
    [
        ("train", rank(0), NONE),  # its second rank is somewhere
        ("train", rank(0, "done"), rank(1, "done")),  # a newer one of that name may be somewhere
        ("train", rank(0, "scheduled", 1), NONE),  # and so may one that the schedule started
        (RUN, rank(0, "reserved", None), NONE),  # nobody knows yet how many there are
        (None, rank(0), rank(1)),  # all runs are wanted
    ],
)
def test_a_run_that_a_silent_host_may_know_more_of_waits_for_it(
    key: str | None, n0: dict[str, Any], n1: dict[str, Any]
) -> None:
    _, given_up = asked({"n0": n0, "n1": n1, "n2": NONE}, ("n2",), lambda bed: fetch_runs(bed, HOSTS, key))
    assert given_up == []


def test_an_ended_run_asked_for_by_its_id_needs_no_other_host() -> None:
    answers = {"n0": rank(0, "done"), "n1": rank(1, "done"), "n2": NONE}
    (runs, _), given_up = asked(answers, ("n2",), lambda bed: fetch_runs(bed, HOSTS, RUN))
    assert (runs[0].state, given_up) == ("done", ["n2"])


def test_answers_come_in_the_order_of_the_hosts_and_the_last_moment_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "OTHERS_GET", 30.0)
    seen: list[int] = []

    def settled(answers: nodes.Answers) -> bool:
        seen.append(len(answers))
        return True

    answers = {host: {"host": host} for host in HOSTS}
    replies, given_up = asked(answers, ("n0",), lambda bed: call_all(bed, same(HOSTS, op="status"), settled=settled))
    assert (replies, list(replies), given_up) == (answers, list(HOSTS), [])
    assert seen == [1]


def test_an_interrupted_question_is_interrupted() -> None:
    async def body() -> None:
        bed = Beds(dict.fromkeys(HOSTS, NONE), HOSTS)
        asking = asyncio.ensure_future(fetch_runs(bed, HOSTS, RUN))  # type: ignore[arg-type]  # a part of a Runner
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(body())


def test_who_is_silent_is_a_problem_with_words() -> None:
    answers: dict[str, Any] = {"n0": rank(0), "n1": rank(1), "n2": NONE}
    (_, problems), _ = asked(answers, ("n2",), lambda bed: fetch_runs(bed, HOSTS, "train"))
    assert problems == {"n2": Problem("n2", "timeout", "it has not answered in time.")}
