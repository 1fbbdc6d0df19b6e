"""The state database: private, and whole when several connections of one process and of others use it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lambdactl.errors import LambdactlError
from lambdactl.fleet import Fleet
from lambdactl.state import RunRecord, State

OPEN_AND_CLOSE = "import pathlib, sys; from lambdactl.state import State; State(pathlib.Path(sys.argv[1])).__exit__()"
REMEMBER = """
import pathlib, sys
from lambdactl.state import RunRecord, State
path, who = pathlib.Path(sys.argv[1]), sys.argv[2]
for number in range(40):
    with State(path) as outer, State(path) as inner:
        inner.runs()
        outer.remember_run(RunRecord(f"{who}-{number}", "train", "fleet", ("a",), 0.0, "running"))
"""


def elsewhere(code: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *words])


def test_the_file_is_private(tmp_path: Path) -> None:
    with State(tmp_path / "state.db"):
        assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600


def test_a_second_connection_takes_no_locks_away_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with State(path) as first:
        first.runs()
        with State(path):
            pass
        log = os.stat(f"{path}-wal").st_ino
        assert elsewhere(OPEN_AND_CLOSE, str(path)).wait(60) == 0
        assert os.stat(f"{path}-wal").st_ino == log  # the last one to leave removes it, and we are still here
        first.remember_run(RunRecord("1", "train", "fleet", ("a",), 0.0, "running"))
    with State(path) as again:
        assert [run.run_id for run in again.runs()] == ["1"]


def test_processes_with_several_connections_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    writers = [elsewhere(REMEMBER, str(path), str(number)) for number in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    with State(path) as state:
        assert len(state.runs()) == 160


def test_a_file_that_cannot_be_used_is_told_with_what_helps(tmp_path: Path) -> None:
    damaged = tmp_path / "state.db"
    damaged.write_text("no database\n" * 100)
    for path, words in ((damaged, "is not a database.*move it away"), (Path("/dev/full"), "is full.*make room there")):
        with pytest.raises(LambdactlError, match=f"the state file {path} cannot be used .*{words}"):
            State(path)


def test_a_file_that_is_another_fleets_by_now_is_not_taken_for_this_one(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yml"

    def write(name: str, host: str) -> str:
        path.write_text(text := f"type: fleet\nname: {name}\nssh_config: {{user: u, hosts: [{host}]}}\n")
        return text

    with State(tmp_path / "state.db") as state:
        for name in ("one", "two"):
            text = write(name, f"host-of-{name}")
            state.remember_fleet(Fleet.load(path), text, facts={})
        seen = {record.name: record.load() for record in state.fleets()}
        assert {name: fleet.hosts[0].name for name, fleet in seen.items()} == {
            "one": "host-of-one",
            "two": "host-of-two",
        }
        assert (seen["one"].path, seen["two"].path) == (None, str(path))
        write("two", "another-host")
        record = state.fleet("two")
        assert record is not None
        assert record.load().hosts[0].name == "another-host"
        path.unlink()
        assert record.load().hosts[0].name == "host-of-two"
