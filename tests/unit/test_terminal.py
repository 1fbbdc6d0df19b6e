"""What a person at a terminal is asked: before a run starts, and at Ctrl-C while its log is followed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.bed.gang import GangBed

LAMBDACTL = Path(sys.executable).with_name("lambdactl")
PATIENCE = 90.0
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def bed() -> Iterator[GangBed]:
    with GangBed(nodes=2) as bed:
        bed.load()
        yield bed


class Person:
    """A command on a terminal of its own, and somebody who reads and types."""

    def __init__(self, bed: GangBed, *words: str | Path) -> None:
        self.seen = ""
        argv = [str(LAMBDACTL), *map(str, words), "--fleet", str(bed.fleet_file)]
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(argv[0], argv, {**os.environ, "HOME": str(bed.home), "TERM": "xterm", "NO_COLOR": "1"})

    def reads(self, pattern: str) -> None:
        """Wait until the screen has shown this after what was read before."""
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self.seen!r}"
            assert self._more(), f"it ended without {pattern!r}: {self.seen!r}"
        self.seen = self.seen[found.end() :]

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def ends(self) -> int:
        """The exit code."""
        while self._more():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _more(self) -> bool:
        ready, _, _ = select.select([self._terminal], [], [], PATIENCE)
        assert ready, f"nothing comes any more after {self.seen!r}"
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            if data := os.read(self._terminal, 1 << 16):
                self.seen += data.decode(errors="replace")
                return True
        return False


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "t.dstack.yml"
    commands = ["echo up $DSTACK_NODE_RANK", "sleep 1000"]
    path.write_text(yaml.safe_dump({"type": "task", "name": "patient", "nodes": 2, "commands": commands}))
    return path


def state(bed: GangBed) -> str:
    done = subprocess.run(
        [LAMBDACTL, "run", "get", "patient", "--json", "--fleet", str(bed.fleet_file)],
        env={**os.environ, "HOME": str(bed.home)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return str(json.loads(done.stdout)["state"])


def test_no_is_the_answer_of_who_only_presses_enter(bed: GangBed, task: Path) -> None:
    person = Person(bed, "apply", "-f", task)
    person.reads(r"Run patient on \S+\?")
    person.types("\n")
    assert person.ends() == 0
    assert "submitted" not in person.seen


@pytest.mark.parametrize("answer", ["\x03", "\x04", "maybe\n"])
def test_ctrl_c_and_what_is_no_answer_end_the_question(bed: GangBed, task: Path, answer: str) -> None:
    person = Person(bed, "apply", "-f", task)
    person.reads(r"Run patient on \S+\? \[y/N\] ")
    person.types(answer)
    assert person.ends() == (130 if answer == "\x03" else 0)
    assert "submitted" not in person.seen


def test_ctrl_c_offers_to_stop_or_to_detach(bed: GangBed, task: Path) -> None:
    person = Person(bed, "apply", "-f", task)
    person.reads(r"Run patient on \S+\?")
    person.types("y\n")
    person.reads("up 0")
    person.types("\x03")
    person.reads(r"Stop the run \[s\], detach and let it run \[d\], or go on \[Enter\]\?")
    person.types("d\n")
    person.reads("detached; the run goes on")
    assert person.ends() == 0
    assert state(bed) == "running"

    again = Person(bed, "attach", "patient")
    again.reads("up 0")
    again.types("\x03")
    again.reads("Stop the run")
    again.types("s\n")
    again.reads("stopping patient")
    again.reads("patient was stopped")
    assert again.ends() != 0
    assert state(bed) == "stopped"
