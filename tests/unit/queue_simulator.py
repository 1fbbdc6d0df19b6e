"""A fleet, its nodes' own decisions and waiting controllers in simulated time: the real rule, and no clock.

Each node is its leases and tickets in memory, decided by lambdactl.node.tickets and lambdactl.node.blocks as on a node;
each waiting run is a controller that looks every few seconds, as lambdactl.run.queue does, with lambdactl.run.claims.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import Any

from lambdactl.node import blocks, tickets
from lambdactl.run.blocks import Want
from lambdactl.run.claims import Room, claims

GPUS = 8
LOOK = 10.0


@dataclass
class Run:
    """One arrival; `limit` is its max_duration (None: unknown), `length` how long it really takes."""

    name: str
    arrives: float
    nodes: int
    want: Want
    length: float
    limit: float | None
    priority: int = 0
    started: float | None = None
    since: float | None = None
    hosts: list[str] = field(default_factory=list)

    @property
    def request(self) -> Any:
        return "all" if self.want.whole else (self.want.blocks, self.want.of)


class Simulation:
    """Runs every arrival to its end; `now` is in seconds."""

    def __init__(self, hosts: int, monkeypatch: Any) -> None:
        self.now = 0.0
        self.leases: dict[str, list[dict[str, Any]]] = {f"h{number}": [] for number in range(hosts)}
        self.queue: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.leases}
        self._here = ""
        monkeypatch.setattr(tickets, "current", lambda: sorted(self.queue[self._here].values(), key=tickets.order))
        monkeypatch.setattr(tickets.time, "time", lambda: self.now)

    def simulate(self, runs: list[Run]) -> None:
        events: list[tuple[float, int, str, Run]] = []
        for number, run in enumerate(runs):
            heapq.heappush(events, (run.arrives, number, "look", run))
        number = len(runs)
        while events:
            self.now, _, what, run = heapq.heappop(events)
            number += 1
            if what == "end":
                for name in run.hosts:
                    self.leases[name] = [lease for lease in self.leases[name] if lease["run_id"] != run.name]
            elif self._look(run):
                heapq.heappush(events, (self.now + run.length, number, "end", run))
            else:
                heapq.heappush(events, (self.now + LOOK, number, "look", run))

    def _look(self, run: Run) -> bool:
        """One look of a waiting controller; True when the run starts."""
        run.since = self.now if run.since is None else run.since
        rooms = {name: Room(run.want, GPUS, held) for name, held in self.leases.items()}
        if self._reserve(run, [name for name, room in rooms.items() if room.free]):
            run.started = self.now
            for name in self.queue:
                self.queue[name].pop(run.name, None)
            return True
        asked = claims(rooms, run.nodes, now=self.now, waited=self.now - run.since)
        for name, claim in asked.items():
            assert claim.want is not None
            self.queue[name][run.name] = {
                "run_id": run.name, "priority": run.priority, "since": run.since, "want": claim.want.request(),
                "holds": claim.holds, "drain": claim.drain, "earliest": claim.earliest, "not_before": None,
            }  # fmt: skip
        return False

    def _reserve(self, run: Run, free: list[str]) -> bool:
        granted: dict[str, dict[str, Any]] = {}
        for name in free:
            if len(granted) == run.nodes:
                break
            self._here = name
            held = self.leases[name]
            if tickets.first_before(run.name, run.priority, run.request, run.limit, GPUS, held) is None:
                lease = blocks.grant(run.request, GPUS, held)
                assert lease is not None
                ends = None if run.limit is None else self.now + run.limit
                granted[name] = {**lease, "run_id": run.name, "ends": ends}
        if len(granted) < run.nodes:
            return False
        run.hosts = list(granted)
        for name, lease in granted.items():
            self.leases[name].append(lease)
            self._check(name)
        return True

    def _check(self, name: str) -> None:
        """No block is given twice."""
        gpus = [gpu for lease in self.leases[name] for gpu in lease["gpus"]]
        assert len(gpus) == len(set(gpus)), (name, self.leases[name])
        assert not any(lease["whole"] for lease in self.leases[name]) or len(self.leases[name]) == 1


def small_runs(dice: random.Random, *, until: float, every: float, limits: bool, of: int = 8) -> list[Run]:
    """Single-node runs that keep arriving, each of some blocks (of 1: whole hosts) and of 1 to 20 minutes."""
    runs, now = [], 0.0
    while now < until:
        now += dice.expovariate(1 / every)
        length = dice.uniform(60, 1200)
        limit = length * dice.uniform(1, 2) if limits and dice.random() < 0.7 else None
        want = Want(dice.choice([1, 1, 1, 2, 4]), of) if of > 1 else Want()
        runs.append(Run(f"s{len(runs)}", now, 1, want, length, limit))
    return runs
