"""The sandbox's parts that need no Docker engine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from lambdactl import sandbox
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.sandbox import debootstrap, docker, image
from lambdactl.sandbox.model import Node, Sandbox, SandboxError
from lambdactl.sandbox.network import Network
from lambdactl.sandbox.store import Store
from lambdactl.sandbox.traces import forget_nodes


@pytest.mark.parametrize("name", ["", "-a", "0a", "A", "a_b", "a.b", "a/b", "../a", "a b", "a" * 32, "ä"])
def test_a_bad_name_is_refused(home: Path, name: str) -> None:
    with pytest.raises(SpecError, match="cannot name a sandbox"):
        Store(name)


@pytest.mark.parametrize("workers", [0, -1, 65])
def test_a_bad_number_of_workers_is_refused(home: Path, workers: int) -> None:
    with pytest.raises(SpecError, match=f"1 to 64 workers, not {workers}"):
        sandbox.up("demo", workers)


def test_files_that_cannot_be_placed_are_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no absolute path in the node"):
        sandbox.up("demo", files={"bin/x": tmp_path})
    with pytest.raises(SpecError, match=r"is not there, to be put on the workers as /bin/x"):
        sandbox.up("demo", files={"/bin/x": tmp_path / "nothing"})


@pytest.mark.parametrize(("name", "fleet_name"), [("default", "sandbox"), ("demo", "sandbox-demo")])
def test_the_fleet_file_is_a_fleet_file(home: Path, name: str, fleet_name: str) -> None:
    store = Store(name)
    store.public_key()
    store.write_fleet(["worker-0", "worker-1"], 20022)
    fleet = Fleet.load(store.fleet_file)
    assert fleet.name == fleet_name
    assert fleet.placement == "cluster"
    assert [host.name for host in fleet.hosts] == ["worker-0", "worker-1"] == store.workers()
    (hop,) = fleet.hosts[1].route.hops
    assert (hop.hostname, hop.port, hop.user, hop.identity_file) == (
        "127.0.0.1",
        20022,
        "ubuntu",
        str(store.identity_file),
    )


def test_the_fleet_file_survives_a_strange_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "it's: a #home"))
    store = Store("demo")
    store.public_key()
    store.write_fleet(["worker-0"], 20022)
    assert yaml.safe_load(store.fleet_file.read_text())["ssh_config"]["identity_file"] == str(store.identity_file)


def test_the_fleet_file_is_rewritten_only_when_it_changes(home: Path) -> None:
    store = Store("demo")
    store.public_key()
    store.write_fleet(["worker-0"], 20022)
    before = store.fleet_file.stat().st_ino
    store.write_fleet(["worker-0"], 20022)
    assert store.fleet_file.stat().st_ino == before
    store.write_fleet(["worker-0"], 20023)
    assert store.fleet_file.stat().st_ino != before


def test_the_key_is_private_kept_and_made_again(home: Path) -> None:
    store = Store("demo")
    first = store.public_key()
    assert first.split()[0] == "ssh-ed25519"
    assert first.split()[2] == "lambdactl-sandbox-demo"
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert store.identity_file.stat().st_mode & 0o777 == 0o600
    store.identity_file.chmod(0o644)
    assert store.public_key() == first
    assert store.identity_file.stat().st_mode & 0o777 == 0o600
    store.identity_file.write_text("no key at all\n")
    assert store.public_key() != first


def test_nothing_is_left_of_a_store(home: Path) -> None:
    store = Store("demo")
    with store.lock():
        store.public_key()
        store.remove()
    assert list(store.root.iterdir()) == []


APT = [
    (
        "Debian with its security archive; another vendor's repository of the same suite is left out",
        "http://deb.debian.org/debian/ bookworm main\n"
        "http://deb.debian.org/debian/ bookworm-updates main\n"
        "http://deb.debian.org/debian-security/ bookworm-security main\n"
        "https://apt.example.com/ bookworm main\n"
        "https://deb.example.com/node_20.x nodistro main\n",
        "bookworm",
        "http://deb.debian.org/debian",
        [
            "deb http://deb.debian.org/debian bookworm main",
            "deb http://deb.debian.org/debian bookworm-updates main",
            "deb http://deb.debian.org/debian-security bookworm-security main",
        ],
    ),
    (
        "Ubuntu, where Open MPI is in universe",
        "http://mirror.example.org/ubuntu noble main\n"
        "http://mirror.example.org/ubuntu noble restricted\n"
        "http://mirror.example.org/ubuntu noble universe\n"
        "http://mirror.example.org/ubuntu noble universe\n"
        "http://mirror.example.org/ubuntu noble-backports main\n",
        "noble",
        "http://mirror.example.org/ubuntu",
        ["deb http://mirror.example.org/ubuntu noble main universe"],
    ),
    (
        "a local mirror cannot be reached from a container",
        "file:/srv/debian bookworm main\n", "bookworm", "D", ["deb D bookworm main"],
    ),
    ("no apt at all", "", "bookworm", "D", ["deb D bookworm main"]),
    ("torn lines", "http://a/debian\n\nhttp://a/debian bookworm\n", "bookworm", "D", ["deb D bookworm main"]),
]  # fmt: skip


@pytest.mark.parametrize(("targets", "suite", "mirror", "lines"), [case[1:] for case in APT], ids=[c[0] for c in APT])
def test_the_machines_own_mirror(targets: str, suite: str, mirror: str, lines: list[str]) -> None:
    release = debootstrap.parse_targets(targets, suite, "D")
    assert (release.suite, release.mirror, list(release.sources)) == (suite, mirror, lines)


def test_the_images_tag_follows_its_content(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    script = tmp_path / "etc" / "script"
    script.write_text("one")
    tags = [image.content_hash(tmp_path, "debian:12"), image.content_hash(tmp_path, "debian:13")]
    script.chmod(0o755)
    tags.append(image.content_hash(tmp_path, "debian:12"))
    script.write_text("two")
    tags.append(image.content_hash(tmp_path, "debian:12"))
    (tmp_path / "more").write_text("")
    tags.append(image.content_hash(tmp_path, "debian:12"))
    assert len(set(tags)) == len(tags)
    assert image.content_hash(tmp_path, "debian:12") == tags[-1]


NETWORK = Network("lambdactl-demo", "id", "172.18.0.0/16")


@pytest.mark.parametrize(
    ("node", "address"), [("jump", "172.18.0.2"), ("worker-0", "172.18.0.3"), ("worker-63", "172.18.0.66")]
)
def test_addresses_are_fixed(node: str, address: str) -> None:
    assert NETWORK.address(node) == address


def test_a_small_network_has_no_room() -> None:
    with pytest.raises(SandboxError, match=r"10\.0\.0\.0/29, has no room for worker-4"):
        Network("n", "id", "10.0.0.0/29").address("worker-4")


def test_an_unknown_node_is_named(tmp_path: Path) -> None:
    jump = Node("jump", "c", "id", "172.18.0.2")
    cluster = Sandbox("demo", jump, "127.0.0.1", 1, (), "n", "s", tmp_path, tmp_path, tmp_path)
    with pytest.raises(SandboxError, match="Sandbox demo has no node worker-9; it has jump"):
        cluster.exec("worker-9", "true")


def test_a_machine_without_docker_gets_a_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(LambdactlError, match=r"The docker command is not installed. Install Docker, or run"):
        sandbox.status("demo")


DOCKERS = [
    ("permission denied while trying to connect", "Add yourself to the group docker"),
    ("Cannot connect to the Docker daemon", "Start it"),
]


@pytest.mark.parametrize(("said", "remedy"), DOCKERS)
def test_an_engine_that_does_not_answer(home: Path, monkeypatch: pytest.MonkeyPatch, said: str, remedy: str) -> None:
    program = home / "docker"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(docker.DockerError, match=rf"No Docker engine answers: {said}\. {remedy}"):
        sandbox.down("demo")


def test_a_node_made_again_is_trusted_anew(home: Path) -> None:
    store = Store("demo")
    key = " ".join(store.public_key().split()[:2])
    store.write_fleet(["worker-0", "worker-1"], 20022)
    known_hosts = Path(Fleet.load(store.fleet_file).known_hosts).expanduser()
    known_hosts.parent.mkdir(parents=True)
    known_hosts.write_text(f"worker-0 {key}\nworker-1 {key}\n[127.0.0.1]:20022 {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known_hosts)], check=True, capture_output=True)
    forget_nodes(store.fleet_file, ["worker-1", "jump"])
    kept = [
        name
        for name in ("worker-0", "worker-1", "[127.0.0.1]:20022")
        if subprocess.run(["ssh-keygen", "-F", name, "-f", str(known_hosts)], capture_output=True).returncode == 0
    ]
    assert kept == ["worker-0"]


def test_shell_scripts_parse() -> None:
    root = Path(__file__).resolve().parents[2]
    scripts = [*(root / "scripts").iterdir(), root / ".ci" / "run", *(root / "sandbox" / "rootfs").rglob("sbin/*")]
    assert len(scripts) >= 8
    for script in scripts:
        shell = script.read_text().splitlines()[0].rpartition("/")[2].rpartition(" ")[2]
        assert shutil.which(shell), script
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize("base", ["ubuntu", "--privileged:1", "a b:1", ""])
def test_a_base_that_is_no_image_is_refused(base: str) -> None:
    with pytest.raises(SpecError, match="is neither auto, registry, debootstrap, nor an image with its tag"):
        image.ensure(base, print)
