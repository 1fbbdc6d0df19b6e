"""Hosts that do not answer: what is remembered of their fleet, and what is said of a run that may be on them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from lambdactl.cli import apply, delete
from lambdactl.cli.apply import Options
from lambdactl.cli.finding import found_run
from lambdactl.errors import EXIT_OK, EXIT_UNREACHABLE, ConnectionFailed
from lambdactl.fleet import Fleet
from lambdactl.state import State
from tests.bed.gang import GangBed

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


def test_a_run_may_be_on_a_host_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with GangBed(nodes=2) as bed:
        monkeypatch.setenv("HOME", str(bed.home))
        bed.load()
        text = bed.fleet_file.read_text()
        silent = bed.addresses[1]
        bed.fleet_file.write_text(text.replace(silent, "127.0.99.250"))

        async def look() -> None:
            async with found_run("train", str(bed.fleet_file)):
                pass

        with pytest.raises(ConnectionFailed, match=r"no run named train is known on the nodes that answer\. 127\.0\.0"):
            asyncio.run(look())
