"""Several "nodes" on this machine: one LAMBDACTL_ROOT each, real runner processes, peers started without ssh."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from lambdactl import content

FINAL = ("done", "failed", "stopped")
# The oldest Python that nodes may have, where this machine has it, beside the one that runs the tests.
OLDEST = [shutil.which("python3.8"), *map(str, sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python3")))]
PYTHONS = [sys.executable, *[path for path in OLDEST if path][-1:]]
PATIENCE = 60.0


class Refused(Exception):
    """The runner refused a request."""

    def __init__(self, error: dict[str, str]) -> None:
        self.code, self.message = error["code"], error["message"]
        super().__init__(f"{self.code}: {self.message}")


class Node:
    """One node: a folder, and a `serve` session to it."""

    def __init__(self, bed: Bed, name: str) -> None:
        self.bed, self.name, self.root = bed, name, bed.base / name
        self.root.mkdir()
        self.env = {**bed.env, "LAMBDACTL_ROOT": str(self.root)}
        self._serve: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        return self.root / "var/lib/lambdactl"

    def argv(self, *args: str) -> list[str]:
        return [self.bed.python, "-I", "-S", str(self.bed.runner), *args]

    def ask(self, line: bytes) -> dict[str, Any]:
        if self._serve is None:
            pipe = subprocess.PIPE
            self._serve = subprocess.Popen(self.argv("serve"), stdin=pipe, stdout=pipe, env=self.env)
        assert self._serve.stdin is not None
        assert self._serve.stdout is not None
        self._serve.stdin.write(line + b"\n")
        self._serve.stdin.flush()
        return json.loads(self._serve.stdout.readline())

    def call(self, op: str, **request: Any) -> Any:
        answer = self.ask(json.dumps({"id": 1, "op": op, **request}).encode())
        if not answer["ok"]:
            raise Refused(answer["error"])
        return answer["result"]

    def rank(self, run: str) -> dict[str, Any]:
        return self.call("status", run=run)["ranks"][0]

    def run_dir(self, run: str) -> Path:
        return self.state / "runs" / run

    def runner(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.argv(*args), env=self.env, capture_output=True, timeout=PATIENCE)

    def log(self, run: str, *args: str) -> bytes:
        return read_frames(self.runner("logs", run, *args).stdout)["data"]

    def supervisor(self, run: str) -> int:
        return next(pid for pid, name in runners(self.run_dir(run)) if name == "lambdactl rank")

    def close(self) -> None:
        if self._serve is not None:
            assert self._serve.stdin is not None
            assert self._serve.stdout is not None
            self._serve.stdin.close()
            self._serve.wait(PATIENCE)
            self._serve.stdout.close()


class Bed:
    """A cluster of such nodes with one runner."""

    def __init__(self, base: Path, python: str, size: int) -> None:
        self.base, self.python = base, python
        self.runner = base / "runner.pyz"
        self.runner.write_bytes(content.runner_zipapp())
        keep = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        peer = f"env LAMBDACTL_ROOT={base}/{{name}} {python} -I -S {self.runner} agent {{run}}"
        self.env = {**keep, "HOME": str(base), "LAMBDACTL_PEER_COMMAND": peer}
        self.nodes = [Node(self, f"n{index}") for index in range(size)]
        self.runs: list[str] = []

    def job(self, script: str, size: int | None = None, **fields: Any) -> dict[str, Any]:
        nodes = self.nodes[: size or len(self.nodes)]
        places = [
            {"name": node.name, "ip": f"127.0.0.{rank + 1}", "gpus": 0, "ssh_user": os.environ.get("USER", "root")}
            for rank, node in enumerate(nodes)
        ]
        base = {"run_id": str(uuid.uuid4()), "run_name": "test", "nodes": places, "owner": "me", "env": {}}
        return {**base, "working_dir": str(self.base), "script": script, **fields}

    def start(self, script: str, size: int | None = None, *, order: list[int] | None = None, **fields: Any) -> str:
        job = self.job(script, size, **fields)
        run = job["run_id"]
        self.runs.append(run)
        ranks = order or list(range(len(job["nodes"])))
        for rank in ranks:
            node = self.nodes[rank]
            node.call("reserve", run_id=run, run_name=job["run_name"], owner="me", gpus="all", ttl=60)
        for rank in ranks:
            self.nodes[rank].call("start", job={**job, "rank": rank})
        return run

    def finish(self, run: str, rank: int = 0) -> dict[str, Any]:
        """The rank's state once nothing changes any more."""
        return self.until(
            run, rank, lambda value: value["state"] in FINAL and (value["gang"] or {}).get("state") in FINAL
        )

    def until(self, run: str, rank: int, condition: Any) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            value = self.nodes[rank].rank(run)
            if condition(value):
                return value
            assert time.monotonic() < deadline, f"rank {rank} stays {value}"
            time.sleep(0.02)

    def running(self, run: str, rank: int = 0) -> dict[str, Any]:
        return self.until(run, rank, lambda value: value["state"] == "running")

    def wait_log(self, run: str, text: bytes, rank: int = 0) -> bytes:
        deadline = time.monotonic() + PATIENCE
        while text not in (log := self.nodes[rank].log(run)):
            assert time.monotonic() < deadline, log
            time.sleep(0.05)
        return log

    def leftovers(self, run: str) -> list[int]:
        """Processes of the job that still run, found by their environment."""
        return [pid for pid in processes() if f"LC_LAMBDACTL_RUN={run}".encode() in environ(pid)]

    def no_leftovers(self, run: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while left := self.leftovers(run):
            assert time.monotonic() < deadline, [cmdline(pid) for pid in left]
            time.sleep(0.02)

    def no_runner(self, run: str) -> None:
        """Wait until no process of the runner itself works for the run."""
        deadline = time.monotonic() + PATIENCE
        while left := [found for node in self.nodes for found in runners(node.run_dir(run))]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def close(self) -> None:
        for pid, words in command_lines():
            if any(word.startswith(str(self.base)) for word in words) and words[-2:-1] == ["agent"]:
                kill(pid)
        for pid in [pid for pid, name in runners(self.base) if name == "lambdactl rank"]:
            kill(pid)  # its guard cleans up after it
        for run in self.runs:
            for pid in self.leftovers(run):
                kill(pid)
        for node in self.nodes:
            node.close()


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def environ(pid: int) -> list[bytes]:
    return _read(f"/proc/{pid}/environ").split(b"\0")


def cmdline(pid: int) -> list[str]:
    return _read(f"/proc/{pid}/cmdline").decode("utf-8", "replace").split("\0")[:-1]


def runners(folder: Path) -> list[tuple[int, str]]:
    """(pid, name) of the guards and supervisors of the runs in this folder; their errors go to a file of the run."""
    found = []
    for pid in processes():
        try:
            errors = os.readlink(f"/proc/{pid}/fd/2")
        except OSError:
            continue
        if errors.startswith(f"{folder}/") and errors.partition(" ")[0].endswith("/runner.err"):
            found.append((pid, _read(f"/proc/{pid}/comm").decode().strip()))
    return found


def command_lines() -> list[tuple[int, list[str]]]:
    return [(pid, words) for pid in processes() if (words := cmdline(pid))]


def read_frames(data: bytes) -> dict[str, Any]:
    """What a `logs` stream holds: data, its first offset, gaps, states, end; a cut last frame counts in part."""
    found: dict[str, Any] = {"data": b"", "offset": None, "gaps": [], "states": [], "end": None}
    parts, position = [], 0
    while (newline := data.find(b"\n", position)) >= 0:
        kind, _, words = data[position:newline].partition(b" ")
        position = newline + 1
        if kind == b"D":
            offset, length = map(int, words.split())
            found["offset"] = offset if found["offset"] is None else found["offset"]
            parts.append(data[position : position + length])
            position += length
        elif kind == b"G":
            found["gaps"].append(tuple(map(int, words.split())))
        else:
            found["states"].append(json.loads(words))
            found["end"] = found["states"][-1] if kind == b"E" else None
    found["data"] = b"".join(parts)
    return found
