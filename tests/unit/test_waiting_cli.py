"""What `apply` says about a full fleet, and whether a run waits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lambdactl import spec
from lambdactl.cli import waiting
from lambdactl.cli.logs import ranks_wanted
from lambdactl.errors import CapacityError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import Address, NodeFacts
from lambdactl.run.admission import Patience
from lambdactl.run.placement import NodeView
from lambdactl.run.plan import Overrides, Shortage, make_plan
from lambdactl.run.status import combine
from lambdactl.run.status import waiting as waiting_runs
from tests.bed.gang import task


def fleet(**fields: Any) -> Fleet:
    hosts = ["h0", "h1", "h2"]
    text = {"type": "fleet", "name": "pod", "ssh_config": {"user": "u", "hosts": hosts}, **fields}
    parsed = spec.loads(json.dumps(text), kind="fleet")
    assert isinstance(parsed, spec.FleetSpec)
    return Fleet.from_spec(parsed, path=None)


def view(number: int, *leases: dict[str, Any], queue: tuple[dict[str, Any], ...] = ()) -> NodeView:
    known = NodeFacts(cpus=8, memory=64 << 30, runner="x", addresses=(Address("eth0", f"10.0.0.{number + 1}", 24),))
    return NodeView(f"h{number}", known, leases, queue=queue)


def lease(run: str, **fields: Any) -> dict[str, Any]:
    base = {"run_id": run, "run_name": run, "owner": "ann@laptop", "whole": True, "gpus": [0, 1], "since": 1000.0}
    return {**base, **fields}


def shortage(views: dict[str, NodeView], nodes: int) -> Shortage:
    with pytest.raises(Shortage) as caught:
        make_plan(task("true", nodes=nodes), fleet(), views, Overrides())
    return caught.value


TICKET = {
    "run_id": "r", "run_name": "first", "owner": "bob@desk", "priority": 0, "since": 5.0, "nodes": 3, "expires": 9.0,
    "reason": "1 of 3 nodes is free", "not_before": None, "attempt": 1, "submitted_at": 5.0,
}  # fmt: skip


def test_who_holds_what_and_what_becomes_free(capsys: pytest.CaptureFixture[str]) -> None:
    views = {
        "h0": view(0, lease("long")),
        "h1": view(1, lease("gang", ends=90000.0), queue=(TICKET,)),
        "h2": view(2, lease("gang", ends=90000.0), queue=(TICKET,)),
    }
    short = shortage(views, 3)
    assert short.passes
    assert waiting.holders(views, short.placement, 3) == [
        ("gang", "ann@laptop", "h1 h2", 4, "1970-01-01 00:16 UTC", "1970-01-02 01:00 UTC", "2 of 3"),
        ("long", "ann@laptop", "h0", 2, "1970-01-01 00:16 UTC", "unknown", "3 of 3"),
    ]
    waiting.show_holders(views, short, waits=False)
    told = capsys.readouterr().err
    assert "THEN FREE" in told
    assert "1 run waits in the queue: first of bob@desk since" in told
    assert "Pass --wait to wait for your turn." in told
    waiting.show_holders(views, short, waits=True)
    assert "Pass --wait" not in capsys.readouterr().err
    assert short.because.startswith("0 of 3 nodes are free; h0 is in use by run long of ann@laptop since")


def test_no_more_hosts_become_free_than_a_run_needs() -> None:
    views = {"h0": view(0, lease("a")), "h1": view(1, lease("b")), "h2": view(2, lease("c"))}
    rows = waiting.holders(views, shortage(views, 1).placement, 1)
    assert [row[-1] for row in rows] == ["1 of 1"] * 3


def test_what_waiting_does_not_help_is_no_wish_to_wait(capsys: pytest.CaptureFixture[str]) -> None:
    views = {"h0": view(0), "h1": NodeView("h1", problem="does not take part: it is down"), "h2": view(2, lease("a"))}
    short = shortage(views, 3)
    assert not short.passes
    assert "2 of 3 hosts can take it at present: h1 does not take part" in short.because
    waiting.show_holders(views, short, waits=False)
    assert "Pass --wait" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("when_full", "variable", "wait", "max_wait", "expected"),
    [
        ("refuse", None, None, None, Patience()), ("wait", None, None, None, Patience(waits=True)),
        ("wait", "0", None, None, Patience(never=True)), ("refuse", "1", None, None, Patience(waits=True)),
        ("wait", "1", False, None, Patience(never=True)), ("refuse", "0", True, None, Patience(waits=True)),
        ("refuse", None, None, "2m", Patience(waits=True, limit=120.0)),
    ],
)  # fmt: skip
def test_who_decides_whether_a_run_waits(
    monkeypatch: pytest.MonkeyPatch,
    when_full: str,
    variable: str | None,
    wait: bool | None,
    max_wait: str | None,
    expected: Patience,
) -> None:
    monkeypatch.delenv("LAMBDACTL_WAIT", raising=False)
    if variable is not None:
        monkeypatch.setenv("LAMBDACTL_WAIT", variable)
    assert waiting.patience(fleet(when_full=when_full), wait, max_wait) == expected


def test_wrong_wishes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for wait, limit in ((False, "2m"), (None, "off"), (None, "0")):
        with pytest.raises(SpecError, match="--max-wait must be a length of time"):
            waiting.patience(fleet(), wait, limit)
    monkeypatch.setenv("LAMBDACTL_WAIT", "maybe")
    with pytest.raises(SpecError, match="LAMBDACTL_WAIT is 'maybe'; allowed is 1"):
        waiting.patience(fleet(), None, None)


def test_the_frozen_inventory_knows_the_policy() -> None:
    from lambdactl.fleet.ssh import host_vars

    where = fleet(when_full="wait")
    frozen = {host.name: host_vars(where, host) for host in where.hosts}
    assert Fleet.from_hostvars(frozen, ["h0", "h1"]).when_full == "wait"


def test_a_schedule_has_no_log_yet() -> None:
    rank = {"run_id": "r", "run_name": "nightly", "rank": 0, "nodes_num": 2, "state": "scheduled", "node": "h0"}
    status = combine([{**rank, "message": "next at 2026-11-30 03:00 UTC"}])
    with pytest.raises(CapacityError, match="nightly has no log yet: it is started at its times, next at 2026-11-30"):
        ranks_wanted(status, status.hosts, None, all_ranks=True)


def test_a_run_that_waits_has_no_log_yet() -> None:
    status = waiting_runs([TICKET])[0]
    assert (status.state, status.waits, status.hosts, status.final) == ("queued", True, {}, False)
    assert status.as_json()["queue"] == {"place": 1, "of": 1, "priority": 0, "since": 5.0, "not_before": None}
    with pytest.raises(CapacityError, match="first has no nodes and no log yet: 1st of 1 in the queue: 1 of 3 nodes"):
        ranks_wanted(status, {}, None, all_ranks=False)
    resting = waiting_runs([{**TICKET, "not_before": 1e11, "reason": "attempt 1 failed", "attempt": 2}])[0]
    assert (resting.state, resting.message, resting.attempt) == ("resting", "attempt 1 failed", 2)
