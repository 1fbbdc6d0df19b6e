"""known_hosts: the same verdicts as OpenSSH's, and no lost or doubled line under concurrent writers."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lambdactl.transport.hostkeys import HostKeyChanged, KnownHosts

A, B, C = (f"ssh-ed25519 AAAA{letter}" for letter in "abc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ssh" / "known_hosts"


@pytest.mark.parametrize(
    ("text", "host", "port", "known"),
    [
        ("node1 KEY", "node1", 22, True),
        ("node1 KEY", "NODE1", 22, True),
        ("node1,10.0.0.1 KEY comment here", "10.0.0.1", 22, True),
        ("[node1]:2222 KEY", "node1", 2222, True),
        ("[node1]:2222 KEY", "node1", 22, False),
        ("node1 KEY", "node1", 2222, True),
        ("10.0.0.* KEY", "10.0.0.7", 22, True),
        ("10.0.0.*,!10.0.0.7 KEY", "10.0.0.7", 22, False),
        ("[10.0.0.?]:2222 KEY", "10.0.0.7", 2222, True),
        ("# node1 KEY", "node1", 22, False),
        ("node1", "node1", 22, False),
        ("\n\nnode1 KEY", "node1", 22, True),
        ("@cert-authority node1 KEY", "node1", 22, False),
        ("|1|not|base64! KEY", "node1", 22, False),
    ],
)
def test_lookup(path: Path, text: str, host: str, port: int, known: bool) -> None:
    path.parent.mkdir()
    path.write_text(text.replace("KEY", A) + "\n")
    assert KnownHosts(path).check(host, port, A) is known


def test_a_changed_key_names_the_line(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(f"# one\nother {B}\n[node]:2200 {A}\n")
    with pytest.raises(HostKeyChanged) as changed:
        KnownHosts(path).check("node", 2200, C)
    assert (changed.value.name, changed.value.line, changed.value.revoked) == ("[node]:2200", 3, False)


def test_a_revoked_key_is_refused_even_when_it_is_on_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(f"node {A}\n@revoked * {A}\n")
    with pytest.raises(HostKeyChanged) as changed:
        KnownHosts(path).check("node", 22, A)
    assert (changed.value.line, changed.value.revoked) == (2, True)


def test_names_hashed_by_ssh_keygen_are_found(path: Path) -> None:
    path.parent.mkdir()
    key = path.parent / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    text = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    KnownHosts(path).accept("node", 2222, text)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    assert "node" not in path.read_text()
    hosts = KnownHosts(path)
    assert hosts.check("node", 2222, text)
    with pytest.raises(HostKeyChanged):
        hosts.check("node", 2222, A)


def test_what_others_append_remove_or_rewrite_is_seen(path: Path) -> None:
    hosts = KnownHosts(path)
    assert not hosts.check("node", 22, A)
    hosts.accept("node", 22, A)
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a") as file:
        file.write(f"other {B}")  # no newline: another writer's last line
    hosts.accept("third", 22, C)
    assert path.read_text().splitlines() == [f"node {A}", f"other {B}", f"third {C}"]
    replaced = path.with_name("new")
    replaced.write_text(f"node {B}\n")
    replaced.rename(path)
    with pytest.raises(HostKeyChanged):
        hosts.check("node", 22, A)
    path.unlink()
    assert not hosts.check("node", 22, A)


def test_many_writers_lose_and_double_nothing(path: Path) -> None:
    script = (
        "import sys; from lambdactl.transport.hostkeys import KnownHosts; hosts = KnownHosts(sys.argv[1])\n"
        f"for n in range(200): hosts.accept(f'node{{n}}', 22, {A!r})"
    )
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda _: subprocess.run([sys.executable, "-c", script, str(path)]).returncode, range(4))
        assert list(runs) == [0] * 4
    assert sorted(path.read_text().splitlines()) == sorted(f"node{n} {A}" for n in range(200))


def test_of_two_first_contacts_with_different_keys_one_wins(path: Path) -> None:
    one, two = KnownHosts(path), KnownHosts(path)
    assert not one.check("node", 22, A)
    assert not two.check("node", 22, B)
    one.accept("node", 22, A)
    with pytest.raises(HostKeyChanged):
        two.accept("node", 22, B)
    assert path.read_text() == f"node {A}\n"
