"""A run on its way: workers stopped at rank 0's end, and the logs of eight ranks."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import yaml

from lambdactl.fleet import Fleet
from tests.bench.baselines import module, place_arguments
from tests.bench.meter import Meter, Plan, Sample, tool
from tests.bench.place import BedPlace, Place, at_home
from tests.bench.results import Group

OURS, PER_LINE = "lambdactl", "per-line loop"
RANKS = 8
LINE = 100  # bytes
LOG = 32 << 20  # bytes a rank
_PACE = (
    "import sys, time\n"
    "for _ in range(400):\n"
    "    sys.stdout.write(repr(time.time()) + chr(10)); sys.stdout.flush(); time.sleep(0.01)\n"
)


def _write_task(path: Path, **fields: object) -> Path:
    path.write_text(yaml.safe_dump({"type": "task", "name": path.name.partition(".")[0], **fields}))
    return path


def _apply(place: Place, task: Path, *options: str) -> list[str]:
    return [tool("lambdactl"), "apply", "-f", str(task), "--fleet", str(place.fleet_file), "-y", *options]


def stop(meter: Meter, place: Place, plan: Plan, folder: Path) -> Group:
    """Workers end after rank 0, by the nodes' own clocks: its last command's time to the last worker's end."""
    nodes = len(Fleet.load(str(place.fleet_file)).hosts)
    script = 'if [ "$DSTACK_NODE_RANK" = 0 ]; then sleep 1; date +%s.%N; else sleep infinity; fi'
    task = _write_task(
        folder / "stop.dstack.yml", nodes=nodes, commands=[script], startup_order="workers-first",
        stop_criteria="master-done",
    )  # fmt: skip
    get = [tool("lambdactl"), "run", "get", "stop", "--json", "--fleet", str(place.fleet_file)]

    def once() -> Sample:
        sample = meter.run(_apply(place, task), env=place.env)
        ended = float(next(line for line in sample.out.split() if line.replace(".", "").isdigit()))
        status = json.loads(meter.run(get, env=place.env).out)
        finished = [float(rank["finished_at"]) for rank in status["ranks"] if rank["rank"] != 0]
        if len(finished) != nodes - 1:
            raise RuntimeError(f"{len(finished)} of {nodes - 1} workers have ended")
        return replace(sample, seconds=max(finished) - ended)

    real = not isinstance(place, BedPlace)
    return Group("stop", place.label, nodes, [plan.series(OURS, once)], delayed=place.round_trip > 0, real=real)


def _drain(stream: IO[bytes]) -> Mapping[str, float]:
    """Read to the end; bytes, lines, and the seconds between the first byte and the last."""
    total = lines = 0
    first = last = 0.0
    while chunk := stream.read1(1 << 20):  # type: ignore[attr-defined]  # a pipe's buffered reader has it
        last = time.perf_counter()
        first = first or last
        total += len(chunk)
        lines += chunk.count(b"\n")
    return {"bytes": float(total), "lines": float(lines), "transfer": last - first}


def throughput(meter: Meter, place: BedPlace, plan: Plan, folder: Path) -> Group:
    """Eight ranks' finished logs of 100-byte lines, prefixed, and a complete copy of each beside."""
    source = folder / "log"
    line = b"%09d " + b"x" * (LINE - 11) + b"\n"
    source.write_bytes(b"".join(line % number for number in range(LOG // LINE)))
    wanted = hashlib.sha256(source.read_bytes()).hexdigest()
    # Each run would find a name that is taken; one finished run is read again and again.
    task = _write_task(folder / "logs.dstack.yml", nodes=RANKS, commands=[f"cat {source}"])
    meter.run(_apply(place, task), env=place.env)

    def rates(sample: Sample) -> Sample:
        values = sample.values
        if values["lines"] != RANKS * (LOG // LINE):
            raise RuntimeError(f"{values['lines']:.0f} lines came")
        extra = {
            "rate": values["bytes"] / values["transfer"] / 1e6,
            "line_rate": values["lines"] / values["transfer"] / 1e6,
        }
        return replace(sample, values={**values, **extra})

    def ours() -> Sample:
        with tempfile.TemporaryDirectory(dir=folder) as copies:
            argv = [tool("lambdactl"), "logs", "logs", "--all", "--log-dir", copies, "--fleet", str(place.fleet_file)]
            sample = rates(meter.run(argv, env=place.env, drain=_drain))
            for rank in range(RANKS):
                if hashlib.sha256((Path(copies) / f"rank-{rank}.log").read_bytes()).hexdigest() != wanted:
                    raise RuntimeError(f"the copy of rank {rank}'s log is not the log")
            return sample

    def per_line() -> Sample:
        with at_home(place) as fleet:
            argv = module("perline", place_arguments(fleet, f"cat {source}"))
        return rates(meter.run(argv, env=place.env, drain=_drain))

    series = [plan.series(OURS, ours, note="with --log-dir, every copy checked"), plan.series(PER_LINE, per_line)]
    return Group("logs", place.label, RANKS, series, delayed=place.round_trip > 0)


def _delays(stream: IO[bytes]) -> Mapping[str, float]:
    """Each line holds the moment at which it was written; p50 and p99 of what lies between, in milliseconds.

    What was written before the logs were followed, and in the second after that, does not count.
    """
    found: list[float] = []
    rest, begun = b"", 0.0
    while chunk := stream.read1(1 << 20):  # type: ignore[attr-defined]  # a pipe's buffered reader has it
        now = time.time()
        begun = begun or now
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            written = float(line.rpartition(b" ")[2])
            if written > begun + 1:
                found.append((now - written) * 1000)
    found.sort()
    return {"lines": float(len(found)), "p50": statistics.median(found), "p99": found[int(len(found) * 0.99)]}


def delay(meter: Meter, place: BedPlace, plan: Plan, folder: Path) -> Group:
    """Eight ranks that write a line every 10 ms, until each line is on standard output."""
    program = folder / "pace.py"
    program.write_text(_PACE)
    task = _write_task(folder / "pace.dstack.yml", nodes=RANKS, commands=[f"/usr/bin/python3 -I -S {program}"])
    argv = _apply(place, task, "--all")
    series = [plan.series(OURS, lambda: meter.run(argv, env=place.env, drain=_delays))]
    return Group("delay", place.label, RANKS, series, delayed=place.round_trip > 0)
