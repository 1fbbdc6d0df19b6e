"""Runs programs and says what they cost: seconds, CPU seconds of the program and all that it started, peak memory.

A meter is a control group, so that connections which outlive a command (OpenSSH's masters) are counted where they work.
CPU is the group's own account. Memory is the group's anonymous memory, looked at every 20 ms: the page cache, which a
group's own peak would include, is the machine's. Where no group can be made, CPU is what the kernel tells of ended
children, and memory that of the largest process; `METHOD` says which it was.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

TIMEOUT = 1800.0
_MOUNT = Path("/sys/fs/cgroup")
_ENTER = 'for group in $METER_GROUPS; do echo $$ >"$group/cgroup.procs"; done; unset METER_GROUPS; exec "$@"'


class BenchError(Exception):
    """A program that is measured failed; the message ends with what it printed."""


@dataclass(frozen=True)
class Sample:
    """One run: seconds, CPU seconds, bytes; `seconds` is what the row is about, `wall` the whole program."""

    wall: float
    cpu: float
    memory: int
    out: str = ""
    err: str = ""
    rc: int = 0
    started: float = 0.0
    seconds: float = 0.0
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """The runs of one variant; all figures are medians."""

    name: str
    samples: Sequence[Sample]
    note: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(sample.seconds or sample.wall for sample in self.samples)

    @property
    def cpu(self) -> float:
        return statistics.median(sample.cpu for sample in self.samples)

    @property
    def memory(self) -> float:
        return statistics.median(sample.memory for sample in self.samples)

    def value(self, name: str) -> float:
        """The median of a figure of this row's own."""
        return statistics.median(sample.values[name] for sample in self.samples)

    def as_dict(self) -> dict[str, Any]:
        """Every run, for benchmarks.json."""
        rows = [
            {"seconds": round(s.seconds or s.wall, 4), "wall": round(s.wall, 4), "cpu": round(s.cpu, 4),
             "memory": s.memory, **{name: round(value, 6) for name, value in s.values.items()}}
            for s in self.samples
        ]  # fmt: skip
        return {"name": self.name, "note": self.note, "runs": rows}


def _groups() -> list[Path]:
    """Fresh groups below this process's own, one a hierarchy that counts something; empty where none can be made."""
    name, found = f"lambdactl-bench-{uuid.uuid4().hex[:8]}", []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        wanted = [part for part in ("cpuacct", "memory") if part in controllers.split(",")]
        if not wanted and not (controllers == "" and not (_MOUNT / "cpuacct").exists()):
            continue
        for base in (_MOUNT / (wanted[0] if wanted else ""),):
            group = base / path.strip("/") / name
            with contextlib.suppress(OSError):
                group.mkdir()
                found.append(group)
    return found


class Meter:
    """See the module.

    Args:
        nodes: the meter of the nodes that the programs work on; `Sample.values` has what it counted as `node_cpu`.
    """

    def __init__(self, nodes: Meter | None = None) -> None:
        self._groups = _groups()
        self._nodes = nodes
        self._peak = 0

    def adopt(self, pid: int) -> None:
        """Count what this process starts from now on, too."""
        for group in self._groups:
            with contextlib.suppress(OSError):
                (group / "cgroup.procs").write_text(str(pid))

    @property
    def method(self) -> str:
        """How CPU and memory are counted here, for the report."""
        if self._read_cpu() is not None and self._read_memory() is not None:
            return "a control group of its own for each program with all that it started"
        return "the kernel's account of ended children (CPU), and the largest single process (memory)"

    def _read_cpu(self) -> float | None:
        for group in self._groups:
            with contextlib.suppress(OSError, ValueError):
                return int((group / "cpuacct.usage").read_text()) / 1e9
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = (group / "cpu.stat").read_text().split()
                return int(words[words.index("usage_usec") + 1]) / 1e6
        return None

    def cpu(self) -> float | None:
        """CPU seconds so far, where they can be counted."""
        return self._read_cpu()

    def _read_memory(self) -> int | None:
        for group in self._groups:
            with contextlib.suppress(OSError, ValueError):
                words = (group / "memory.stat").read_text().split()
                return int(words[words.index("anon" if "anon" in words else "total_rss") + 1])
        return None

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(0.02):
            self._peak = max(self._peak, self._read_memory() or 0)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program inside of this meter; the caller waits for it."""
        env = {**options.pop("env", os.environ), "METER_GROUPS": " ".join(map(str, self._groups))}
        return subprocess.Popen(
            ["/bin/sh", "-c", _ENTER, "sh", *map(str, argv)], env=env, stdin=subprocess.DEVNULL,
            start_new_session=True, **options,
        )  # fmt: skip

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        drain: Callable[[IO[bytes]], Mapping[str, float]] | None = None,
        check: bool = True,
    ) -> Sample:
        """Run a program to its end.

        Args:
            drain: reads its standard output as it comes, and returns figures for `Sample.values`.
            check: a failure is an error.
        """
        before, children = self._read_cpu(), resource.getrusage(resource.RUSAGE_CHILDREN)
        nodes_before = self._nodes._read_cpu() if self._nodes else None
        machine_before = machine_cpu()
        self._peak, ended = self._read_memory() or 0, threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        values: Mapping[str, float] = {}
        # Files and not pipes: masters that stay behind keep their standard error open.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            watcher.start()
            started, clock = time.time(), time.perf_counter()
            process = self.popen(argv, env=dict(env), cwd=cwd, stdout=subprocess.PIPE if drain else out, stderr=err)
            try:
                if drain is not None and process.stdout is not None:
                    values = drain(process.stdout)
                rc = process.wait(timeout=TIMEOUT)
            finally:
                wall = time.perf_counter() - clock
                ended.set()
                watcher.join()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            texts = [_text(file) for file in (out, err)]
        if check and rc != 0:
            raise BenchError(
                f"{' '.join(map(str, argv))[:300]} ended with {rc}:\n{texts[0][-1500:]}\n{texts[1][-1500:]}"
            )
        cpu, memory = self._cost(before, children)
        if self._nodes is not None and nodes_before is not None:
            nodes = (self._nodes._read_cpu() or 0.0) - nodes_before
            others = max(0.0, machine_cpu() - machine_before - cpu - nodes) / wall
            values = {**values, "node_cpu": nodes, "others": others}
        return Sample(wall, cpu, memory, texts[0], texts[1], rc, started, wall, values)

    def _cost(self, before: float | None, children: resource.struct_rusage) -> tuple[float, int]:
        after = self._read_cpu()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        if after is None or before is None:
            cpu = usage.ru_utime + usage.ru_stime - children.ru_utime - children.ru_stime
        else:
            cpu = after - before
        return cpu, self._peak or usage.ru_maxrss * 1024

    def end_processes(self) -> None:
        """End what commands left running, such as persistent connections."""
        for _ in range(200):
            pids = {int(word) for group in self._groups for word in _words(group / "cgroup.procs")}
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.end_processes()
        for group in self._groups:
            with contextlib.suppress(OSError):
                group.rmdir()


def machine_cpu() -> float:
    """CPU seconds that this machine has worked since it started."""
    words = Path("/proc/stat").read_text().split(None, 9)[1:9]  # user nice system idle iowait irq softirq steal
    ticks = [int(word) for word in words]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@dataclass(frozen=True)
class Plan:
    """How often to measure.

    Attributes:
        runs: samples a variant.
        budget: seconds after which a slow variant is not run again (it has at least one sample).
        until: the moment (monotonic clock) from which on every variant has one sample only.
    """

    runs: int = 5
    budget: float = 30.0
    until: float = math.inf

    def series(self, name: str, once: Callable[[], Sample], *, note: str = "", warm_up: bool = False) -> Series:
        """Measure a variant; with ``warm_up`` one run before is not counted."""
        if warm_up:
            once()
        samples: list[Sample] = []
        begun = time.monotonic()
        while len(samples) < self.runs and (not samples or time.monotonic() < min(begun + self.budget, self.until)):
            samples.append(once())
        return Series(name, samples, note)


def tool(name: str) -> str:
    """A program of this environment, or of the machine."""
    import sys

    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BenchError(f"{name} is not installed.")
    return found
