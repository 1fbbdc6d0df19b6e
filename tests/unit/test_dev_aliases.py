"""The aliases of dev environments, and the one line of ours in the user's ssh_config. HOME is a folder of the test."""

from __future__ import annotations

import io
import os
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from lambdactl.cli import dev_alias
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.run import aliases, ssh_include
from lambdactl.run.aliases import Alias, Entry
from lambdactl.run.status import RunStatus, combine

FLEET = """\
type: fleet
name: lab
ssh_config:
  user: ubuntu
  identity_file: ~/.ssh/node key
  hosts: [10.0.0.1, 10.0.0.2]
  proxy_jump:
    - {hostname: gate, port: 2201, user: first, identity_file: ~/.ssh/gate}
    - {hostname: head, user: second, identity_file: ~/.ssh/head}
"""
HOST_KEY = "ssh-ed25519 " + "A" * 68


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def fleet(home: Path) -> Fleet:
    (home / "lab.yml").write_text(FLEET)
    return Fleet.load(home / "lab.yml")


def alias(fleet: Fleet, name: str = "env", **fields: str) -> Alias:
    run_id = fields.pop("run_id", str(uuid.uuid4()))
    host = fleet.hosts[0]
    proxy = aliases.proxy_command(fleet, host, run_id, aliases.public_key())
    return Alias(run_id, name, fleet.id, host.name, "ubuntu", HOST_KEY, proxy)


def effective(name: str, config: Path) -> dict[str, str]:
    """What OpenSSH makes of the file for a host."""
    done = subprocess.run(["ssh", "-G", "-F", config, name], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_an_alias_has_the_whole_route(fleet: Fleet, home: Path) -> None:
    one = alias(fleet)
    aliases.put(one)
    seen = effective("env", aliases.config_file())
    assert (seen["user"], seen["stricthostkeychecking"], seen["identitiesonly"]) == ("ubuntu", "true", "yes")
    assert seen["hostkeyalias"] == f"lambdactl-{one.run_id}"
    assert seen["identityfile"] == f"{home}/.ssh/lambdactl/key"
    assert seen["serveraliveinterval"] == "15"
    route = seen["proxycommand"]
    for part in ("2201", "-l first", ".ssh/gate", "-l second", ".ssh/head", "-l ubuntu", "node key", "10.0.0.1"):
        assert part in route
    assert f"known_hosts.lambdactl-{fleet.id}" in route
    assert f"session {one.run_id} " in route
    assert (home / ".ssh/lambdactl/known_hosts").read_text() == f"lambdactl-{one.run_id} {HOST_KEY}\n"
    assert (home / ".ssh/lambdactl").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o77 for path in (home / ".ssh/lambdactl").iterdir() if path.suffix != ".pub"} == {0}


def test_the_route_is_what_a_shell_makes_of_the_nodes_own(fleet: Fleet) -> None:
    one = alias(fleet)
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {one.proxy.replace('%%', '%')}"], capture_output=True, text=True
    )
    assert words.stdout.splitlines()[0] == "ssh"
    assert words.stdout.splitlines()[-1].endswith(f"-S \"$r\" session {one.run_id} '{aliases.public_key()}'")


def test_a_key_from_the_environment_is_looked_up_when_the_alias_is_made(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "lab.yml").write_text(FLEET)
    monkeypatch.setenv("LAMBDACTL_JUMP_KEY", "/keys/jump")
    fleet = Fleet.load(home / "lab.yml")
    assert "/keys/jump" in alias(fleet).proxy
    assert "LAMBDACTL_JUMP_KEY" not in alias(fleet).proxy
    monkeypatch.delenv("LAMBDACTL_JUMP_KEY")
    with pytest.raises(SpecError, match="LAMBDACTL_JUMP_KEY"):
        alias(fleet)


def test_aliases_come_and_go_without_touching_each_other(fleet: Fleet) -> None:
    one, two = alias(fleet, "one"), alias(fleet, "two")
    for item in (one, two, one):
        aliases.put(item)
    assert {entry.name for entry in aliases.entries()} == {"one", "two"}
    again = alias(fleet, "two")  # another run of the same name stands for the old one
    aliases.put(again)
    assert Entry(again.run_id, "two", "10.0.0.1", fleet.id) in aliases.entries()
    assert two.run_id not in aliases.config_file().read_text()
    assert [entry.name for entry in aliases.drop(lambda entry: entry.run_id == one.run_id)] == ["one"]
    assert aliases.drop(lambda entry: entry.run_id == one.run_id) == []
    assert one.run_id not in (aliases.folder() / "known_hosts").read_text()
    assert effective("two", aliases.config_file())["hostkeyalias"] == f"lambdactl-{again.run_id}"


def test_the_key_is_made_once(home: Path) -> None:
    first = aliases.public_key()
    assert first.startswith("ssh-ed25519 AAAA")
    assert aliases.public_key() == first


USERS = b"# mine\r\nHost *\n  ForwardAgent no\nHost env\n  User wrong"


def test_the_include_line_is_ours_alone(home: Path, fleet: Fleet) -> None:
    config = home / ".ssh/config"
    config.parent.mkdir(mode=0o700, exist_ok=True)
    config.write_bytes(USERS)
    config.chmod(0o640)
    assert ssh_include.add()
    assert not ssh_include.add()
    assert config.read_bytes() == f"Include {home}/.ssh/lambdactl/config\n".encode() + USERS
    assert config.stat().st_mode & 0o777 == 0o640
    assert os.listdir(config.parent) == ["config"]
    aliases.put(alias(fleet))
    config.chmod(0o600)
    assert effective("env", config)["user"] == "ubuntu"
    assert ssh_include.remove()
    assert not ssh_include.remove()
    assert config.read_bytes() == USERS


def test_a_line_below_a_section_is_moved_up(home: Path) -> None:
    config = home / ".ssh/config"
    config.parent.mkdir(mode=0o700)
    config.write_text(f"Host a\n  User b\n{ssh_include.include_line()}\n")
    assert not ssh_include.is_included()
    assert ssh_include.add()
    assert config.read_text() == f"{ssh_include.include_line()}\nHost a\n  User b\n"


def test_a_link_stays_a_link(home: Path) -> None:
    real = home / "dotfiles/ssh"
    real.parent.mkdir()
    real.write_text("Host a\n")
    config = home / ".ssh/config"
    config.parent.mkdir(mode=0o700)
    config.symlink_to("../dotfiles/ssh")
    ssh_include.add()
    assert config.is_symlink()
    assert real.read_text() == f"{ssh_include.include_line()}\nHost a\n"
    ssh_include.remove()
    assert (config.is_symlink(), real.read_text()) == (True, "Host a\n")


def test_without_a_config_of_the_users_there_is_none_after_us(home: Path) -> None:
    assert ssh_include.add()
    assert (home / ".ssh/config").stat().st_mode & 0o777 == 0o600
    assert (home / ".ssh").stat().st_mode & 0o777 == 0o700
    assert ssh_include.remove()
    assert not (home / ".ssh/config").exists()


def test_a_config_that_cannot_be_changed_is_one_sentence(home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").symlink_to("config")
    with pytest.raises(LambdactlError, match=r"\.ssh/config cannot be (read|changed)"):
        ssh_include.add()


def run_status(one: Alias, state: str) -> RunStatus:
    return combine([
        {"run_id": one.run_id, "run_name": one.name, "rank": 0, "node": one.host, "nodes_num": 1, "state": state}
    ])  # fmt: skip


def test_a_look_at_the_fleet_sweeps_what_is_over(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    on_one = {name: alias(fleet, name) for name in ("active", "ended", "forgotten")}
    foreign = replace(alias(fleet, "foreign"), fleet_id="another")
    silent = replace(alias(fleet, "silent"), host="10.0.0.2")
    for item in (*on_one.values(), foreign, silent):
        aliases.put(item)
    ssh_include.add()
    seen = [run_status(on_one["active"], "running"), run_status(on_one["ended"], "stopped")]
    dev_alias.sweep(fleet, seen, {"10.0.0.2": "does not answer"})
    assert {entry.name for entry in aliases.entries()} == {"active", "foreign", "silent"}
    assert ssh_include.is_included()
    dev_alias.forget([foreign.run_id])
    dev_alias.forget_fleet(fleet.id)
    assert aliases.entries() == []
    assert not ssh_include.is_included(), "the line goes with the last alias"
    assert capsys.readouterr().err == ""


def test_the_line_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert not dev_alias.include(yes=False)
    assert "is left alone: nobody can be asked here" in capsys.readouterr().err
    assert not (home / ".ssh/config").exists()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert not dev_alias.include(yes=False)
    assert "Add the line 'Include " in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert dev_alias.include(yes=False)
    assert dev_alias.include(yes=False), "not asked again"
    assert dev_alias.clear() == 0
    assert not (home / ".ssh/config").exists()


def test_a_config_that_cannot_be_changed_does_not_stop_anything(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").mkdir()
    assert not dev_alias.include(yes=True)
    assert "cannot be read (Is a directory). Put 'Include " in capsys.readouterr().err
