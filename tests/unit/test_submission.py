"""A playbook that begins while the nodes are looked at: whatever becomes of the run, nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bed.sshd import descendants
from tests.bench.converged import ConvergedBed

LAMBDACTL = Path(sys.executable).with_name("lambdactl")
LONG = 60.0  # seconds


@pytest.fixture(scope="module")
def bed() -> Iterator[ConvergedBed]:
    with ConvergedBed(2) as bed:
        bed.load()
        bed.converge()
        yield bed


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def start(bed: ConvergedBed, folder: Path, task: str) -> subprocess.Popen[str]:
    """`apply -y` of a task as a user runs it; its temporary files are below `folder`."""
    (folder / "tmp").mkdir()
    (folder / "t.dstack.yml").write_text(task)
    words = [LAMBDACTL, "apply", "-f", folder / "t.dstack.yml", "--fleet", bed.fleet_file, "-y", "-n", "late"]
    return subprocess.Popen(
        [*map(str, words)],
        env={**bed.environment(), "TMPDIR": str(folder / "tmp")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def playbooks(process: subprocess.Popen[str]) -> list[int]:
    """Processes of ansible-playbook that this command has started."""
    return [pid for pid in descendants(process.pid) if b"ansible-playbook" in words_of(pid)]


def words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def nothing_left(bed: ConvergedBed, folder: Path, pids: list[int]) -> None:
    until(lambda: not any(b"ansible" in words_of(pid) for pid in pids), f"left running: {pids}")
    assert not list((folder / "tmp").glob("lambdactl-*")), "the plan, which has the environment of the run, is left"
    for address in bed.addresses:
        assert not list((bed.root(address) / "var/lib/lambdactl/runs").glob("*")), "a run is left on a node"


def test_sigterm_before_the_plan_ends_the_playbook_and_starts_nothing(bed: ConvergedBed, tmp_path: Path) -> None:
    os.kill(bed.node.pid, signal.SIGSTOP)  # the nodes do not answer, so there is no plan
    try:
        process = start(bed, tmp_path, "type: task\nnodes: 2\ncommands: [echo started]\n")
        until(lambda: playbooks(process), "no playbook was started")
        begun = playbooks(process)
        process.terminate()
        text, _ = process.communicate(timeout=LONG)
    finally:
        os.kill(bed.node.pid, signal.SIGCONT)
    assert process.returncode == 130, text
    assert "terminated; no run was started." in text
    assert "Traceback" not in text
    nothing_left(bed, tmp_path, begun)


def test_a_run_that_does_not_fit_leaves_no_playbook(bed: ConvergedBed, tmp_path: Path) -> None:
    process = start(bed, tmp_path, "type: task\nnodes: 2\nresources: {gpu: 8}\ncommands: [echo started]\n")
    begun: set[int] = set()
    while process.poll() is None:
        begun.update(playbooks(process))
        time.sleep(0.02)
    text, _ = process.communicate(timeout=LONG)
    assert process.returncode == 3, text
    assert begun, "the playbook was not begun beside the look at the nodes"
    nothing_left(bed, tmp_path, list(begun))
