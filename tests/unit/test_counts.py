"""What must not grow: connections, sessions, bytes and processes are counted here, because time depends on the machine.

`make bench` measures the same paths with a clock.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl import provision
from lambdactl.fleet import Fleet
from lambdactl.run import survey as run_survey
from lambdactl.transport import open_transport
from lambdactl.transport.api import Commands, Outcome, plan_commands
from tests.bench.converged import ConvergedBed

pytestmark = pytest.mark.timeout(300)

LAMBDACTL = Path(sys.executable).with_name("lambdactl")
MANY = 8  # nodes; more than a command may have forks
MAX_UPLOAD = 1024  # bytes a node and no-op, command and input together

# Imported by every Python process below a command; notes each process that one of them starts.
SPY = """
import os, sys
def _hook(event, args, _path=os.environ.get("SPAWN_LOG"), _own=os.open):
    if _path and event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"):
        fd = _own(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, (event + " " + repr(args)[:200] + "\\n").encode())
        os.close(fd)
sys.addaudithook(_hook)
"""


@pytest.fixture(scope="module", params=[2, MANY])
def bed(request: pytest.FixtureRequest) -> Iterator[ConvergedBed]:
    with ConvergedBed(request.param) as bed:
        bed.load()
        bed.converge()
        yield bed


@dataclass(frozen=True)
class Counts:
    """What one command cost at the far side, and the processes that it started here."""

    rc: int
    text: str
    jump_logins: int
    node_logins: dict[str, int]
    sessions: int
    spawned: list[str]


def counted(bed: ConvergedBed, folder: Path, *words: str | Path) -> Counts:
    """Run lambdactl on the bed as a user does."""
    jump, nodes, sessions = bed.jump_logins(), bed.node_logins(), sessions_of(bed)
    done, spawned = spied(bed, folder, [LAMBDACTL, *words])
    return Counts(
        done.returncode,
        done.stdout + done.stderr,
        bed.jump_logins() - jump,
        dict(bed.node_logins() - nodes),
        sessions_of(bed) - sessions,
        spawned,
    )


def spied(
    bed: ConvergedBed, folder: Path, argv: Sequence[str | Path]
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a Python program, and list the processes that it and its Python children start."""
    (folder / "spy").mkdir(exist_ok=True)
    (folder / "spy" / "sitecustomize.py").write_text(SPY)
    log = folder / "spawned"
    log.write_text("")
    env = {**bed.environment(), "PYTHONPATH": str(folder / "spy"), "SPAWN_LOG": str(log)}
    done = subprocess.run(
        [*map(str, argv)], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    return done, log.read_text().splitlines()


def sessions_of(bed: ConvergedBed) -> int:
    """How many sessions (exec requests) the nodes have started."""
    return bed.node.log.read_text(errors="replace").count("Starting session:")


def once_each(bed: ConvergedBed) -> dict[str, int]:
    return dict.fromkeys(bed.addresses, 1)


def test_a_no_op_apply_is_one_jump_connection_and_one_session_a_node(bed: ConvergedBed, tmp_path: Path) -> None:
    counts = counted(bed, tmp_path, "apply", "-f", bed.fleet_file, "-y")
    assert counts.rc == 0, counts.text
    assert "nothing to change" in counts.text
    assert (counts.jump_logins, counts.node_logins) == (1, once_each(bed))
    assert counts.sessions == len(bed.addresses)
    # asyncssh looks for optional libraries when it is imported, by five names; there is nothing else, and no compiler.
    assert len(counts.spawned) <= 5
    assert all("ldconfig" in line for line in counts.spawned), counts.spawned


def test_a_submission_is_one_jump_connection_and_one_login_a_node(bed: ConvergedBed, tmp_path: Path) -> None:
    """The playbook and its actions use the connections of the command; nothing is forked for a host."""
    task = tmp_path / "t.dstack.yml"
    task.write_text(yaml.safe_dump({"type": "task", "nodes": len(bed.addresses), "commands": ["echo started"]}))
    counts = counted(bed, tmp_path, "apply", "-f", task, "--fleet", bed.fleet_file, "-y")
    assert counts.rc == 0, counts.text
    assert "started" in counts.text
    assert (counts.jump_logins, counts.node_logins) == (1, once_each(bed))
    # One session of the runner on each node, for all requests; the log of rank 0.
    assert counts.sessions == len(bed.addresses) + 1
    # ansible-playbook in its terminal, and one worker a task of the playbook, whatever the number of nodes.
    forks = Counter(line.split()[0] for line in counts.spawned if line.startswith("os."))
    assert forks["os.forkpty"] == 1
    assert forks.total() < MANY, counts.spawned


class Counting:
    """A transport that adds up what it is given to send."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    async def fan_out(self, commands: Commands, **options: Any) -> dict[str, Outcome]:
        everyone = [host.name for host in self._transport.fleet.hosts]
        for name, (command, data) in plan_commands(commands, options.get("names"), everyone, b"").items():
            self.bytes[name] += len(command.encode()) + len(data)
            self.calls[name] += 1
        return await self._transport.fan_out(commands, **options)  # type: ignore[no-any-return]  # a stand-in for a transport that counts, with options of any kind


@pytest.mark.parametrize("look", ["fleet", "run"])
def test_a_look_uploads_at_most_one_kilobyte_a_node(
    bed: ConvergedBed, look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(bed.home))
    fleet = bed.load()

    async def body(fleet: Fleet) -> Counting:
        async with open_transport(fleet) as transport:
            counting = Counting(transport)
            if look == "fleet":
                seen = await provision.survey(fleet, counting)  # type: ignore[arg-type]  # a stand-in for a transport that counts, with options of any kind
                assert not seen.problems
                assert not seen.changed
            else:
                assert not (await run_survey.survey(counting, fleet)).problems  # type: ignore[arg-type]  # a stand-in for a transport that counts, with options of any kind
            return counting

    counting = asyncio.run(body(fleet))
    assert counting.calls == once_each(bed)
    assert max(counting.bytes.values()) <= MAX_UPLOAD, counting.bytes


def test_a_node_with_another_runner_costs_one_more_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that node is sent the runner; the others are asked once."""
    with ConvergedBed(3) as own:
        own.load()
        own.converge()
        for file in ("runner.pyz", "runner.sha256"):
            (own.root(own.addresses[1]) / "opt/lambdactl" / file).write_text("another version\n")
        monkeypatch.setenv("HOME", str(own.home))
        fleet = own.load()

        async def body() -> Counting:
            async with open_transport(fleet) as transport:
                counting = Counting(transport)
                seen = await provision.survey(fleet, counting)  # type: ignore[arg-type]  # a stand-in for a transport that counts, with options of any kind
                assert list(seen.changed) == [own.addresses[1]]
                return counting

        counting = asyncio.run(body())
        assert counting.calls == {**once_each(own), own.addresses[1]: 2}
