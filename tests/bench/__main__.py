"""Measure, and write docs/benchmarks.md and docs/benchmarks.json: ``python -m tests.bench``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import lambdactl
from lambdactl import sandbox
from tests.bench import rows_alone, rows_apply, rows_run
from tests.bench.meter import Meter, Plan, tool
from tests.bench.place import ONE_WAY, ROOT, SandboxPlace, bed_place
from tests.bench.report import render
from tests.bench.results import Group, Results

SECTIONS = ("noop", "launch", "stop", "logs", "delay", "inventory", "help", "reach")
# Modules that the roles run on a converged node without GPUs; counted anew whenever the sandbox is measured.
ROLE_TASKS = 21


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=int(os.environ.get("RUNS") or 5), help="samples a variant")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds after which a variant is not run again")
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no variant is run more than once")
    parser.add_argument("--nodes", default="8,32,256", help="sizes of the wide bed")
    parser.add_argument("--reach", default="64,256", help="sizes of the bed on which lost nodes are counted")
    parser.add_argument("--workers", type=int, default=8, help="workers of the sandbox; 0 leaves it out")
    parser.add_argument("--sandbox", default="bench", help="the sandbox's name; one that is up is used as it is")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections to measure")
    parser.add_argument("--no-delay", action="store_true", help="without the delay line")
    parser.add_argument("--keep-sandbox", action="store_true", help="leave the sandbox up, for the next run")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.md")
    return parser.parse_args()


class Bench:
    """One run of the benchmarks."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.plan = Plan(args.runs, args.budget, time.monotonic() + args.minutes * 60)
        self.only = set(args.only.split(","))
        self.results = Results()
        self.role_tasks = ROLE_TASKS
        self.load = os.getloadavg()[1]

    def attempt(self, label: str, measure: Callable[[], Group]) -> None:
        """One group; what fails is said in the report and does not end the run."""
        print(f"{time.strftime('%H:%M:%S')} {label}", flush=True)
        try:
            group = measure()
        except Exception as error:
            traceback.print_exc()
            self.results.failures.append(f"{label}: {str(error).splitlines()[0][:300] if str(error) else repr(error)}")
            return
        self.results.groups.append(group)
        self.write()  # what there is, in case that the run is ended early
        for series in group.series:
            print(
                f"    {series.name}: {series.seconds:.2f} s, {series.cpu:.2f} s CPU, {len(series.samples)} runs",
                flush=True,
            )

    def run(self) -> None:
        if "help" in self.only:
            with Meter() as meter:
                self.attempt("help", lambda: rows_alone.start(meter, self.plan, self.folder))
        if "inventory" in self.only:
            with Meter() as meter:
                self.attempt("inventory", lambda: rows_alone.inventory(meter, self.plan, self.folder))
        self.sandbox()
        for delayed in (False,) if self.args.no_delay else (False, True):
            for nodes in numbers(self.args.nodes):
                self.bed(nodes, delayed=delayed)
        if "reach" in self.only:
            for nodes in numbers(self.args.reach):
                with bed_place(nodes, delayed=False) as place, Meter(place.nodes) as meter:
                    self.attempt(f"reach {nodes}", lambda: rows_alone.reach(meter, place, self.plan, self.folder))

    def sandbox(self) -> None:
        """The real roles and the real runner, on containers."""
        wanted = self.only & {"noop", "launch", "stop"}
        if not wanted or not self.args.workers:
            return
        try:
            with (
                provisioned_sandbox(self.args, self.folder) as place,
                Meter() as meter,
            ):
                if "noop" in wanted:
                    self.role_tasks = rows_apply.count_role_tasks(meter, place, self.folder)
                    self.results.facts["role_tasks_source"] = "in this run, on the sandbox"
                    self.attempt(
                        "sandbox noop", lambda: rows_apply.no_op(meter, place, self.plan, self.folder, tasks=None)
                    )
                if "launch" in wanted:
                    self.attempt("sandbox launch", lambda: rows_apply.launch(meter, place, self.plan, self.folder))
                if "stop" in wanted:
                    self.attempt("sandbox stop", lambda: rows_run.stop(meter, place, self.plan, self.folder))
        except Exception as error:
            traceback.print_exc()
            self.results.failures.append(f"sandbox: {str(error).splitlines()[0][:300]}")

    def bed(self, nodes: int, *, delayed: bool) -> None:
        """The wide bed at one size."""
        tasks = self.role_tasks
        rows: dict[str, Callable[[], Group]] = {
            "noop": lambda: rows_apply.no_op(meter, place, self.plan, self.folder, tasks=tasks),
            "launch": lambda: rows_apply.launch(meter, place, self.plan, self.folder),
        }
        if nodes <= STOP_MAX:
            rows["stop"] = lambda: rows_run.stop(meter, place, self.plan, self.folder)
        if nodes == rows_run.RANKS:
            rows["logs"] = lambda: rows_run.throughput(meter, place, self.plan, self.folder)
            rows["delay"] = lambda: rows_run.delay(meter, place, self.plan, self.folder)
        chosen = [name for name in rows if name in self.only]
        if not chosen:
            return
        with bed_place(nodes, delayed=delayed) as place, Meter(place.nodes) as meter:
            for name in chosen:
                self.attempt(f"{place.label} {name}", rows[name])

    def others(self) -> str:
        """What else kept the machine busy while rows of the bed were measured, where all that is ours is counted."""
        found = [
            sample.values["others"]
            for group in self.results.groups
            for series in group.series
            for sample in series.samples
            if "others" in sample.values
        ]
        if not found:
            return "not known"
        busy = statistics.median(found)
        words = f"used {busy:.1f} of {os.cpu_count()} cores meanwhile (median)"
        return (
            words if busy <= QUIET else f"**{words}: seconds are too high and ratios rough; repeat on a quiet machine**"
        )

    def describe(self, *, complete: bool) -> None:
        """The machine, the versions and how to repeat."""
        with Meter() as meter:
            counted = meter.method
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores ({processor()}), {memory()} GB",
            "system": f"{platform.system()} {platform.release()}",
            "complete": "yes" if complete else "no, it was ended before everything was measured",
            "load before": f"{self.load:.1f} (5 minutes)",
            "other programs": self.others(),
            "versions": ", ".join(versions()),
            "repeat": f"`{command(self.args)}`",
            "runs": f"up to {self.args.runs} a variant, medians shown",
            "budget seconds": f"{self.args.budget:g}",
            "delay line": f"{ONE_WAY} ms in each direction ({2 * ONE_WAY} ms round trip)",
            "counted by": counted,
        }
        facts["role_tasks_source"] = self.results.facts.get("role_tasks_source", "on a sandbox in an earlier run")
        facts["role_tasks"] = str(self.role_tasks)
        self.results.facts = facts

    def write(self, *, complete: bool = False) -> None:
        """The page, and the raw numbers beside it."""
        self.describe(complete=complete)
        output: Path = self.args.output
        output.write_text(render(self.results))
        output.with_suffix(".json").write_text(json.dumps(self.results.as_dict(), indent=1) + "\n")


QUIET = 0.3
"""Cores that others may use before a run's seconds are called into question."""
STACK = ("gcc", "libc6-dev", "libopenmpi-dev", "openmpi-bin")
"""What a rented node has from the beginning; installing it on all workers is not what is measured."""
STOP_MAX = 32
"""A gang of hundreds on one machine measures the machine."""


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


@contextlib.contextmanager
def provisioned_sandbox(args: argparse.Namespace, folder: Path) -> Iterator[SandboxPlace]:
    """A sandbox with every role in place; provisioning it is not measured."""
    print(f"sandbox of {args.workers} workers ...", flush=True)
    cluster = sandbox.up(args.sandbox, args.workers, packages=STACK)
    try:
        place = SandboxPlace(cluster, f"sandbox, {args.workers} nodes", folder / "home")
        with Meter() as meter:
            meter.run([tool("lambdactl"), "apply", "-f", str(cluster.fleet_file), "-y"], env=place.env)
        yield place
    finally:
        if not args.keep_sandbox:
            sandbox.down(args.sandbox)


def command(args: argparse.Namespace) -> str:
    own = [word for word in sys.argv[1:] if not word.startswith("--runs")]
    return f"make bench RUNS={args.runs}" if not own else f"python -m tests.bench {' '.join(sys.argv[1:])}"


def processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)


def versions() -> list[str]:
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.split(",")[0].strip()
    names = ("ansible-core", "ansible-runner", "asyncssh", "typer")
    docker = shutil.which("docker")
    extra = []
    if docker:
        done = subprocess.run(
            [docker, "version", "-f", "{{.Server.Version}}"], capture_output=True, text=True, check=False
        )
        extra = [f"Docker {done.stdout.strip()}"] if done.stdout.strip() else []
    return [
        f"lambdactl {lambdactl.__version__}", f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in names), ssh, *extra,
    ]  # fmt: skip


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    with tempfile.TemporaryDirectory(prefix="lbench-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "home").mkdir()
        bench = Bench(args, folder)
        bench.run()
        bench.write(complete=True)
        print(f"wrote {args.output}")
    return 1 if bench.results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
