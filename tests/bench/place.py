"""Where a measurement is made: the wide bed or the sandbox, with what every variant needs to reach its nodes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lambdactl import content, sandbox
from lambdactl.fleet import Fleet, ssh
from lambdactl.fleet.model import Hop
from tests.bench.converged import ConvergedBed
from tests.bench.meter import Meter

ROOT = Path(__file__).resolve().parents[2]
ONE_WAY = 25  # ms, the delay line
LOOK = 0.01  # seconds between two looks for stamps


class Place(Protocol):
    """A provisioned fleet."""

    label: str
    fleet_file: Path
    env: dict[str, str]
    round_trip: float  # seconds, of the delay line
    stamp: str  # a command for every node that notes the moment at which it runs

    def forget_stamps(self) -> None: ...

    def stamps(self) -> list[float]:
        """What the stamp command has noted, seconds since the epoch."""
        ...

    def watch(self, nodes: int) -> contextlib.AbstractContextManager[list[float]]:
        """A list that gets the nodes' CPU seconds from now until the stamp command has begun on the last of them."""
        ...


@dataclass
class BedPlace:
    """The wide bed."""

    bed: ConvergedBed
    label: str
    round_trip: float
    nodes: Meter

    def __post_init__(self) -> None:
        self.fleet_file = self.bed.fleet_file
        self.env = environment(self.bed.environment())
        self.folder = self.bed.directory / "stamps"
        self.folder.mkdir(mode=0o777)
        self.stamp = f"date +%s.%N >{self.folder}/$$"  # all nodes of the bed share this machine's process ids

    def forget_stamps(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()

    def stamps(self) -> list[float]:
        return [float(text) for path in self.folder.iterdir() if (text := path.read_text().strip())]

    @contextlib.contextmanager
    def watch(self, nodes: int) -> Iterator[list[float]]:
        worked: list[float] = []
        before, ended = self.nodes.cpu(), threading.Event()

        def look() -> None:
            while not ended.wait(LOOK):
                if len(os.listdir(self.folder)) >= nodes:
                    after = self.nodes.cpu()
                    worked.extend([] if before is None or after is None else [after - before])
                    return

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            yield worked
        finally:
            ended.set()
            looking.join()


@dataclass
class SandboxPlace:
    """A sandbox; its containers share this machine's clock."""

    cluster: sandbox.Sandbox
    label: str
    home: Path
    round_trip: float = 0.0
    stamp: str = "date +%s.%N >/tmp/bench-stamp"

    def __post_init__(self) -> None:
        self.fleet_file = self.cluster.fleet_file
        self.env = environment({"HOME": str(self.home), "COLUMNS": "200"})

    def forget_stamps(self) -> None:
        for worker in self.cluster.workers:
            self.cluster.exec(worker.name, "rm -f /tmp/bench-stamp")

    def stamps(self) -> list[float]:
        texts = [self.cluster.exec(node.name, "cat /tmp/bench-stamp", check=False) for node in self.cluster.workers]
        return [float(done.stdout) for done in texts if done.returncode == 0 and done.stdout.strip()]

    @contextlib.contextmanager
    def watch(self, nodes: int) -> Iterator[list[float]]:
        yield []  # a container's work is counted by nobody here


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """What programs are measured with: nothing of the user's but the search path."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "DOCKER_HOST") if name in os.environ}
    return {
        **kept, **own, "PYTHONPATH": str(ROOT), "ANSIBLE_CONFIG": str(content.path("ansible.cfg")),
        "ANSIBLE_NOCOLOR": "1", "ANSIBLE_DEPRECATION_WARNINGS": "0",
    }  # fmt: skip


@contextlib.contextmanager
def bed_place(nodes: int, *, delayed: bool) -> Iterator[BedPlace]:
    """A converged bed."""
    with ConvergedBed(nodes, delay_ms=ONE_WAY if delayed else 0) as bed:
        bed.load()
        bed.converge()
        line = f" behind {2 * ONE_WAY} ms" if delayed else ""
        with Meter() as meter:
            meter.adopt(bed.node.pid)
            try:
                yield BedPlace(bed, f"bed, {nodes} nodes{line}", 2 * ONE_WAY / 1000 if delayed else 0.0, meter)
            finally:
                bed.close()


@contextlib.contextmanager
def at_home(place: Place) -> Iterator[Fleet]:
    """The place's fleet, with HOME as its commands have it: paths of sockets and known_hosts are below it."""
    before = os.environ.get("HOME")
    os.environ["HOME"] = place.env["HOME"]
    try:
        fleet = Fleet.load(str(place.fleet_file))
        ssh.prepare(fleet)
        yield fleet
    finally:
        if before is not None:
            os.environ["HOME"] = before


def ends(fleet: Fleet) -> tuple[Hop, list[Hop]]:
    """The one jump host and the nodes."""
    return fleet.hosts[0].route.hops[0], [host.route.target for host in fleet.hosts]


def wait_for_stamps(place: Place, wanted: int, patience: float = 10.0) -> list[float]:
    """Stamps are written by the nodes; the last may arrive a moment after the command has ended."""
    until = time.monotonic() + patience
    while len(found := place.stamps()) < wanted and time.monotonic() < until:
        time.sleep(0.05)
    return found
