"""Hosts that do not answer: what is remembered of their fleet, and what is said of a run that may be on them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from lambdactl.cli import apply, delete, finding
from lambdactl.cli.apply import Options
from lambdactl.cli.select import locate_run
from lambdactl.errors import EXIT_OK, EXIT_UNREACHABLE, ConnectionFailed, LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.run.nodes import Problem
from lambdactl.run.status import RunStatus
from lambdactl.state import State

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def nobody(tmp_path: Path, home: Path) -> Path:
    """A fleet file whose one host refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    path = tmp_path / "gone.dstack.yml"
    hosts = f"[{{hostname: 127.0.0.1, port: {port}}}]"
    path.write_text(f"type: fleet\nname: gone\nssh_config: {{user: u, identity_file: /dev/null, hosts: {hosts}}}\n")
    return path


def known() -> list[str]:
    with State() as state:
        return [record.name for record in state.fleets()]


def test_a_fleet_that_was_never_reached_is_not_remembered(nobody: Path) -> None:
    assert apply.run(str(nobody), Options(yes=True)) == EXIT_UNREACHABLE
    assert known() == []


def test_a_fleet_whose_hosts_are_gone_is_forgotten_on_request(nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with State() as state:
        state.remember_fleet(Fleet.load(nobody), nobody.read_text(), facts={})
    assert apply.run(str(nobody), Options(yes=True)) == EXIT_UNREACHABLE
    assert delete.run(str(nobody), None, yes=True) == EXIT_UNREACHABLE
    assert "gone stays known here; when these hosts are gone for good, pass --forget." in capsys.readouterr().err
    assert known() == ["gone"]
    assert delete.run(str(nobody), None, yes=True, forget=True) == EXIT_OK
    assert "gone is forgotten." in capsys.readouterr().err
    assert known() == []


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (
            "timeout",
            ConnectionFailed,
            r"no run named train is known on the nodes that answer\. h1 did not: h1: too late\.",
        ),
        ("no-runner", SpecError, r"no run named train is known on the nodes; "),
    ],
)
def test_a_run_may_be_on_a_host_that_is_silent(
    code: str, error: type[LambdactlError], words: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fleet.yml"
    path.write_text("type: fleet\nname: lab\nssh_config: {user: u, hosts: [h0, h1]}\n")

    async def asked(*_: object) -> tuple[list[RunStatus], dict[str, Problem]]:
        return [], {"h1": Problem("h1", code, "too late.")}

    async def look() -> None:
        async with finding.found_run("train", str(path)):
            pass

    monkeypatch.setattr(finding, "fetch_runs", asked)
    with pytest.raises(error, match=words):
        asyncio.run(look())


@pytest.mark.parametrize("key", ["", "$(id)", "Train", "\x1b[31mx", "a b"])
def test_what_can_be_no_run_is_asked_of_nobody(key: str, home: Path) -> None:
    with (
        State() as state,
        pytest.raises(SpecError, match=r"^'.*' is neither a run's name \(a-z, 0-9 and '-'\) nor its id"),
    ):
        locate_run(key, None, state)
