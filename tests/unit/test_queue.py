"""The fleet's queue: tickets on a node, and controllers that wait on real nodes behind real sshd."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl import spec
from lambdactl.errors import CapacityError, Interrupted
from lambdactl.run import retry
from lambdactl.run.admission import Patience
from lambdactl.run.control import stop_run
from lambdactl.run.launch import Launch, Wishes
from lambdactl.run.nodes import call_all, same
from lambdactl.run.plan import Overrides, RunPlan, job_specs
from lambdactl.run.status import RunStatus, fetch_runs, in_order, ordinal
from lambdactl.run.submit import submit
from lambdactl.run.survey import survey
from lambdactl.transport import Transport, open_transport
from tests.bed.gang import GangBed, task
from tests.unit.node_bed import PYTHONS, Bed, Node, Refused

pytestmark = pytest.mark.timeout(300)
ALL = {"gpus": "all"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    bed = Bed(tmp_path, PYTHONS[-1], 1)
    yield bed.nodes[0]
    bed.close()


def wait(node: Node, name: str, *, run: str = "", want: Any = ALL, **fields: Any) -> dict[str, Any]:
    base = {"run_id": run or str(uuid.uuid4()), "run_name": name, "owner": "ann", "nodes": 1, "holds": True}
    return node.call("queue", **{**base, "want": want, **fields})


def reserve(node: Node, name: str, run: str = "", **fields: Any) -> str:
    run = run or str(uuid.uuid4())
    node.call("reserve", run_id=run, run_name=name, owner="bob", **fields)
    return run


def names(node: Node) -> list[str]:
    return [ticket["run_name"] for ticket in node.call("status", run=None).get("queue", [])]


# Tickets on a node


def test_the_order_is_priority_then_arrival(node: Node) -> None:
    first = wait(node, "first")
    wait(node, "second")
    wait(node, "urgent", priority=50)
    wait(node, "early", since=first["ticket"]["since"] - 60)
    assert names(node) == ["urgent", "early", "first", "second"]
    again = wait(node, "first", run=first["ticket"]["run_id"], since=first["ticket"]["since"])
    assert again["ticket"]["since"] == first["ticket"]["since"]
    assert node.call("probe")["queue"][0]["run_name"] == "urgent"
    assert node.call("status", run="second")["queue"][3]["run_name"] == "second"
    assert "queue" not in node.call("status", run="unknown")


def test_nobody_goes_before_who_waits(node: Node) -> None:
    ticket = wait(node, "gang")["ticket"]
    for fields in ({}, {"gpus": 0}, {"blocks": 1, "of": 1}):
        with pytest.raises(Refused, match="the node is kept for run gang of ann, which waits since 20") as refused:
            reserve(node, "small", **fields)
        assert refused.value.code == "queued"
    urgent = reserve(node, "urgent", priority=1)
    node.call("release", run_id=urgent)
    reserve(node, "gang", ticket["run_id"])


def test_who_cannot_use_the_node_now_holds_nobody_back(node: Node) -> None:
    later = time.time() + 100
    for fields in ({"want": None}, {"holds": False}, {"not_before": later}):
        wait(node, "waits", run="00000000-0000-4000-8000-000000000001", **fields)
        passed = reserve(node, "passes")
        assert names(node) == ["waits"]
        node.call("release", run_id=passed)


def test_a_run_that_is_over_in_time_passes_before(node: Node) -> None:
    wait(node, "gang", earliest=time.time() + 1000)
    with pytest.raises(Refused, match="gang"):
        reserve(node, "long", limit=2000)
    with pytest.raises(Refused, match="gang"):
        reserve(node, "unknown")
    reserve(node, "short", limit=500)


def test_both_fit_beside_each_other_unless_the_node_is_emptied(node: Node) -> None:
    import os

    if (cpus := os.cpu_count() or 1) % 2:
        pytest.skip("an odd number of CPUs cannot be halved")  # the same rule is in test_queue_rule without a node
    run = wait(node, "half", want={"blocks": cpus // 2, "of": cpus})["ticket"]["run_id"]
    beside = reserve(node, "beside", blocks=cpus // 2, of=cpus)
    with pytest.raises(Refused, match="kept for run half"):
        reserve(node, "third", blocks=1, of=cpus)
    node.call("release", run_id=beside)
    wait(node, "half", run=run, want={"blocks": cpus // 2, "of": cpus}, drain=True)
    with pytest.raises(Refused, match="kept for run half"):
        reserve(node, "beside", blocks=cpus // 2, of=cpus)


def test_a_ticket_ends_without_its_controller_and_with_the_node(node: Node) -> None:
    wait(node, "dead", ttl=0.2)
    time.sleep(0.3)
    assert names(node) == []
    wait(node, "alive")
    node.close()
    node._serve = None
    node.env["LAMBDACTL_BOOT"] = "next"
    assert names(node) == []


def test_stop_tells_the_controller_that_waits(node: Node) -> None:
    run = wait(node, "mine")["ticket"]["run_id"]
    assert node.call("stop", run="mine", message="enough") == {"ranks": []}
    assert names(node) == []
    with pytest.raises(Refused, match="run mine was stopped while it waited: enough") as refused:
        wait(node, "mine", run=run)
    assert refused.value.code == "cancelled"
    wait(node, "mine")
    node.call("dequeue", run_id=run)
    node.call("dequeue", run_id=run)


def test_one_name_waits_once_and_bad_tickets_are_refused(node: Node) -> None:
    wait(node, "one")
    with pytest.raises(Refused, match="a run named one of ann waits in the queue already"):
        wait(node, "one")
    for fields in ({"want": 7}, {"priority": 101}, {"since": "now"}, {"ttl": -1}, {"nodes": 0}, {"run": "../x"}):
        with pytest.raises(Refused) as refused:
            wait(node, "two", **fields)
        assert refused.value.code == "bad-request"


def test_one_queue_of_many_hosts() -> None:
    def ticket(run: str, since: float, priority: int = 0, expires: float = 1.0) -> dict[str, Any]:
        return {"run_id": run, "since": since, "priority": priority, "expires": expires}

    told = [ticket("b", 2.0), ticket("a", 1.0), ticket("b", 2.0, expires=2.0), ticket("c", 9.0, priority=5)]
    assert [(one["run_id"], one["expires"]) for one in in_order(told)] == [("c", 1.0), ("a", 1.0), ("b", 2.0)]
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 22, 113)] == ["1st", "2nd", "3rd", "4th", "11th", "22nd", "113th"]


# Controllers


@pytest.fixture(scope="module")
def bed() -> Iterator[GangBed]:
    with GangBed(nodes=2) as bed:
        yield bed


class Person:
    """Somebody with the fleet file, who runs things."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.hosts = [host.name for host in transport.fleet.hosts]
        self.notes: list[str] = []

    def launch(self, wanted: spec.TaskSpec, name: str, *, waits: bool = True, limit: float | None = None) -> Launch:
        wishes = Wishes(wanted, Overrides(name=name, node_timeout=20), Patience(waits, limit))
        return Launch(self.transport, self.transport.fleet, wishes, notify=self.notes.append)

    async def start(self, launch: Launch) -> RunPlan:
        plan = await launch.nodes((await survey(self.transport, self.transport.fleet)).views)
        outcome = await submit(plan.run_id, plan.run_name, plan.owner, job_specs(plan), self.transport)
        assert outcome["ok"], outcome
        return plan

    async def until(self, name: str, *states: str) -> RunStatus:
        while True:
            runs, _ = await fetch_runs(self.transport, self.hosts, name)
            if runs and runs[0].state in states:
                return runs[0]
            await asyncio.sleep(0.1)

    async def tickets(self) -> list[str]:
        answers = await call_all(self.transport, same(self.hosts, op="status", run=None))
        return [t["run_name"] for answer in answers.values() for t in answer.get("queue", ())]  # type: ignore[union-attr]  # it is there, or the test fails here


def on(bed: GangBed, body: Any) -> Any:
    async def inside() -> Any:
        async with open_transport(bed.load()) as transport:
            return await body(Person(transport))

    return asyncio.run(inside())


def test_a_waiting_gang_gets_its_nodes_before_a_later_small_run(bed: GangBed) -> None:
    async def body(me: Person) -> None:
        blocker = await me.start(me.launch(task("sleep 1000"), "blocker"))
        gang = asyncio.ensure_future(me.start(me.launch(task("sleep 1000", nodes=2), "gang")))
        seen = await me.until("gang", "queued")
        assert seen.queue is not None
        assert (seen.queue["place"], seen.queue["of"], seen.nodes_num) == (1, 1, 2)
        while "1 of 2 nodes is free" not in (seen.message or ""):  # the reason comes with the second look
            seen = await me.until("gang", "queued")
        assert f"{bed.addresses[0]} is in use by run blocker of" in (seen.message or "")
        with pytest.raises(CapacityError, match="the node is kept for run gang"):
            await me.start(me.launch(task("true"), "small", waits=False))
        behind = asyncio.ensure_future(me.start(me.launch(task("true"), "behind")))
        assert (await me.until("behind", "queued")).queue["place"] == 2  # type: ignore[index]  # it is there, or the test fails here
        await stop_run(me.transport, blocker.run_id, me.hosts, abort=True)
        plan = await gang
        assert [node.name for node in plan.nodes] == list(bed.addresses)
        assert any("gang waits, 1st of 1 in the queue: 1 of 2 nodes is free" in text for text in me.notes)
        assert not behind.done()
        await stop_run(me.transport, plan.run_id, me.hosts, abort=True)
        await behind
        assert (await me.until("behind", "done")).exit_code == 0
        assert await me.tickets() == []

    on(bed, body)


def test_who_stops_waiting_leaves_nothing_behind(bed: GangBed) -> None:
    async def body(me: Person) -> None:
        blocker = await me.start(me.launch(task("sleep 1000", nodes=2), "blocker"))
        given_up = asyncio.ensure_future(me.start(me.launch(task("true"), "ctrl-c")))
        await me.until("ctrl-c", "queued")
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert await me.tickets() == []
        stopped = asyncio.ensure_future(me.start(me.launch(task("true"), "stopped")))
        await me.until("stopped", "queued")
        await stop_run(me.transport, "stopped", me.hosts)
        with pytest.raises(Interrupted, match="stopped was stopped while it waited"):
            await stopped
        with pytest.raises(CapacityError, match=r"late waited 1s for its turn.*in use by run blocker"):
            await me.start(me.launch(task("true"), "late", limit=1))
        with pytest.raises(CapacityError, match="asks for 3 nodes, but the fleet"):
            await me.start(me.launch(task("true", nodes=3), "never"))
        assert await me.tickets() == []
        await stop_run(me.transport, blocker.run_id, me.hosts, abort=True)

    on(bed, body)


def test_a_failed_run_is_tried_again_with_its_name(
    bed: GangBed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(retry, "DELAYS", (2.0,))
    script = f"echo $DSTACK_NODE_RANK >>{tmp_path}/ran; [ $(wc -l <{tmp_path}/ran) -gt 2 ] || exit 7"

    async def body(me: Person) -> None:
        launch = me.launch(task(f"[ $DSTACK_NODE_RANK = 1 ] || {{ {script}; }}", nodes=2, retry=True), "again")
        first = await me.start(launch)
        for attempt in (1, 2):
            status = await me.until("again", "failed")
            assert (status.exit_code, status.attempt) == (7, attempt)
            resting = asyncio.ensure_future(me.until("again", "resting"))
            assert await launch.again(status)
            assert "attempt" in ((await resting).message or "")
            plan = await me.start(launch)
            assert plan.run_id != first.run_id
        last = await me.until("again", "done")
        assert (last.attempt, last.nodes_num, len(last.ranks)) == (3, 2, 2)
        assert [attempt["exit_code"] for attempt in last.attempts] == [7, 7]
        assert last.as_json()["attempts"][0]["run_id"] == first.run_id
        assert not await launch.again(last)
        assert "attempt 1 of again failed" in me.notes[0]
        assert await me.tickets() == []

    on(bed, body)
