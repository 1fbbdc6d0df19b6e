"""The queue's rule by simulation: no starvation, no double booking, order of arrival, back-filling without harm."""

from __future__ import annotations

import itertools
import random

import pytest

from lambdactl.node import tickets
from lambdactl.run.blocks import Want
from lambdactl.run.claims import PATIENCE, Room, claims
from tests.unit.queue_simulator import Run, Simulation, small_runs

HOUR = 3600.0
LONGEST = 1200.0  # of a small run, in seconds
HOSTS = 5


def fleet(monkeypatch: pytest.MonkeyPatch) -> Simulation:
    return Simulation(HOSTS, monkeypatch)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("of", [1, 8])
@pytest.mark.parametrize("limits", [False, True], ids=["no-limits", "limits"])
def test_a_gang_is_not_starved_by_small_runs(
    monkeypatch: pytest.MonkeyPatch, seed: int, of: int, *, limits: bool
) -> None:
    """More small runs arrive than the fleet can take; a gang of any size starts within the time that bounds it."""
    dice = random.Random(seed)
    small = small_runs(dice, until=HOUR, every=30 if of > 1 else 110, limits=limits, of=of)
    gangs = [
        Run(f"gang{n}", HOUR / 4 * (1 + n), dice.randint(2, HOSTS), Want(), dice.uniform(60, 600), None)
        for n in range(3)
    ]
    fleet(monkeypatch).simulate([*small, *gangs])
    # Those before it end (a small run and the gangs before), it is then first, and what it waits for is only emptied.
    bound = LONGEST + 3 * (LONGEST + 600 + HOSTS * PATIENCE) if of > 1 else 3 * (LONGEST * 2 + 600)
    waiting = [run.started - run.arrives for run in gangs if run.started is not None]
    assert len(waiting) == 3
    assert max(waiting) < bound
    assert all(run.started is not None for run in small)


@pytest.mark.parametrize("seed", range(3))
def test_without_the_rule_a_gang_does_starve(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """What the test above is worth: with nodes that look at no tickets, the gang waits until the small runs stop."""
    small = small_runs(random.Random(seed), until=HOUR, every=40, limits=False, of=8)
    gang = Run("gang", HOUR / 4, HOSTS, Want(), 60, None)
    simulation = fleet(monkeypatch)
    monkeypatch.setattr(tickets, "first_before", lambda *_: None)
    simulation.simulate([*small, gang])
    assert gang.started is not None
    assert gang.started > HOUR


@pytest.mark.parametrize("seed", range(3))
def test_equal_runs_start_in_the_order_of_arrival_and_priority_goes_first(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    runs = [
        Run(f"r{n:02}", n * 20 + dice.random(), 1, Want(), dice.uniform(300, 900), None, priority=10 * (n % 3 == 0))
        for n in range(40)
    ]
    fleet(monkeypatch).simulate(runs)
    for priority in (0, 10):
        # Controllers look every ten seconds, so that neighbours may be told of one end in either order.
        starts = [run.started or 0.0 for run in runs if run.priority == priority]
        assert all(later > earlier - 10.0 for earlier, later in itertools.pairwise(starts))
    urgent = sum(run.started - run.arrives for run in runs[20:] if run.started and run.priority) / 7
    normal = sum(run.started - run.arrives for run in runs[20:] if run.started and not run.priority) / 13
    assert urgent < normal


def test_a_short_run_fills_the_gap_before_a_gang_and_a_long_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Run("holder", 0, 1, Want(), 1000, 1000)
    gang = Run("gang", 10, HOSTS, Want(), 100, 100)
    short = Run("short", 20, 1, Want(), 300, 600)
    unknown = Run("unknown", 20, 1, Want(), 300, None)
    long = Run("long", 20, 1, Want(), 300, 2000)
    fleet(monkeypatch).simulate([holder, gang, short, unknown, long])
    assert short.started is not None
    assert short.started < 40
    assert gang.started is not None
    assert 1000 <= gang.started < 1011
    for run in (unknown, long):
        assert run.started is not None
        assert run.started >= gang.started + 100


def test_hosts_are_emptied_for_what_is_lacking_and_more_with_patience() -> None:
    def shared(*taken: int, ends: float | None = None) -> list[dict[str, object]]:
        return [{"whole": False, "blocks": [b], "of": 8, "gpus": [b], "ends": ends} for b in taken]

    rooms = {
        "free": Room(Want(), 8),
        "long": Room(Want(), 8, shared(0, 1, 2)),
        "short": Room(Want(), 8, shared(0, 1, ends=500.0)),
        "one": Room(Want(), 8, shared(0)),
    }
    first = claims(rooms, 2, now=100.0, waited=0)
    assert [name for name, claim in first.items() if claim.drain] == ["short"]
    assert {claim.earliest for claim in first.values()} == {500.0}
    later = claims(rooms, 2, now=100.0, waited=PATIENCE)
    assert [name for name, claim in later.items() if claim.drain] == ["short", "one"]
    unknown = claims({"a": rooms["one"], "b": rooms["long"]}, 1, now=100.0, waited=0)
    assert unknown["a"].drain
    assert unknown["a"].earliest is None
    impossible = claims({"free": rooms["free"]}, 2, now=100.0, waited=0)
    assert not impossible["free"].holds
