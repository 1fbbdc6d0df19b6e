"""The Python inside of the roles, called as the modules call it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROLES = Path(__file__).resolve().parents[2] / "roles"


def load(path: str) -> ModuleType:
    """A file of a role as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


manifests = load("manifest/module_utils/lambdactl_manifests.py")
sys.modules["ansible.module_utils.lambdactl_manifests"] = manifests
apt = load("manifest/library/lambdactl_apt.py")
manifest_module = load("manifest/library/lambdactl_manifest.py")
nodes = load("node_ssh/filter_plugins/lambdactl_nodes.py")
check = load("node_ssh/library/lambdactl_ssh_check.py")


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "var" / "lib" / "lambdactl"
    monkeypatch.setattr(manifests, "STATE_DIR", str(folder))
    monkeypatch.setattr(manifests, "MANIFESTS", str(folder / "provisioned"))
    return folder


class TestManifest:
    def test_what_an_earlier_run_added_stays_listed(self, state_dir: Path) -> None:
        manifest = manifests.Manifest("openmpi")
        assert manifest.write(manifest.merged(digest="1", packages_added=["a", "b"], paths_added=["/x"]))
        assert manifest.write(manifest.merged(digest="2", packages_added=["b", "c"]))
        content = json.loads((state_dir / "provisioned" / "openmpi.json").read_text())
        assert content == {
            "role": "openmpi", "digest": "2", "packages_added": ["a", "b", "c"], "paths_added": ["/x"], "verify": [],
        }  # fmt: skip

    def test_a_role_that_was_interrupted_leaves_what_to_remove(self, state_dir: Path) -> None:
        manifest = manifests.Manifest("node_ssh")
        module = SimpleNamespace(params={"paths_added": ["/x", "/y"]}, check_mode=False)
        assert manifest_module.begin(module, manifest)["changed"]
        assert not manifest_module.begin(module, manifest)["changed"]
        assert (manifest.read()["digest"], manifest.read()["paths_added"]) == ("", ["/x", "/y"])
        manifest.write(manifest.merged(digest="1", paths_added=["/x", "/y"]))
        assert not manifest_module.begin(module, manifest)["changed"], "the next run finds all of it listed"
        assert manifest.read()["digest"] == "1"

    def test_writing_the_same_again_changes_nothing(self, state_dir: Path) -> None:
        manifest = manifests.Manifest("runner")
        content = manifest.merged(digest="1")
        assert [manifest.write(content), manifest.write(content)] == [True, False]

    @pytest.mark.parametrize("damage", ["", "{", "[]", "null"])
    def test_a_damaged_file_counts_as_none(self, state_dir: Path, damage: str) -> None:
        manifest = manifests.Manifest("runner")
        manifest.write(manifest.merged(digest="1"))
        Path(manifest.path).write_text(damage)
        assert manifest.read() is None
        assert manifest.merged(digest="2")["digest"] == "2"

    def test_the_last_manifest_takes_the_folders_with_it(self, state_dir: Path) -> None:
        for role in ("a", "b"):
            manifests.Manifest(role).write({"role": role})
        manifests.Manifest("a").remove()
        assert state_dir.exists()
        manifests.Manifest("b").remove()
        assert not state_dir.exists()

    def test_removing_the_state_folder_spares_the_other_roles_manifests(self, state_dir: Path) -> None:
        manifests.Manifest("openmpi").write({"role": "openmpi"})
        (state_dir / "runs" / "1").mkdir(parents=True)
        (state_dir / "gpus.json").write_text("{}")
        assert manifests.remove_path(f"{state_dir}/")
        assert [path.name for path in state_dir.iterdir()] == ["provisioned"]


@pytest.mark.parametrize(
    ("entry", "left"),
    [
        ("file", []),
        ("link", ["target"]),
        ("empty", []),
        ("full", ["full/theirs"]),
        ("full/", []),
        ("missing", []),
        ("missing/", []),
    ],
)
def test_removal_takes_only_what_is_ours(tmp_path: Path, entry: str, left: list[str]) -> None:
    kind = entry.rstrip("/")
    if kind == "file":
        (tmp_path / "file").write_text("")
    elif kind == "link":
        (tmp_path / "target").write_text("")
        (tmp_path / "link").symlink_to(tmp_path / "target")
    elif kind != "missing":
        (tmp_path / kind).mkdir()
        if kind == "full":
            (tmp_path / "full" / "theirs").write_text("")
    manifests.remove_path(f"{tmp_path}/{entry}")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == left


def test_verify_entries_record_what_is_on_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("x")
    file.chmod(0o640)
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert manifests.verify_entry({"path": str(file)}) == {"path": str(file), "sha256": digest, "mode": "0640"}
    assert manifests.verify_entry({"path": str(file), "mode": "0600"}) == {"path": str(file), "mode": "0600"}
    assert manifests.verify_entry({"package": "gcc"}) == {"package": "gcc"}


SIMULATED = """\
Inst gcc-12 (12.2.0-14 Debian:12.15 [amd64])
Inst perl-base [5.36.0-7] (5.36.0-8 Debian:12.15 [amd64]) []
Inst libc6-dev:amd64 (2.36 Debian [amd64])
Remv old-thing [1.0]
Purg other [2]
Conf gcc-12 (12.2.0-14 Debian:12.15 [amd64])
"""


def test_a_simulation_tells_new_from_upgraded_from_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        params = {"lock_timeout": 1}  # noqa: RUF012 (a stand-in for AnsibleModule, used once)

        def run_command(self, *_: Any, **__: Any) -> tuple[int, str, str]:
            return 0, SIMULATED, ""

    assert apt.Apt(Module()).simulate("install", "gcc") == (
        ["gcc-12", "libc6-dev"],
        ["perl-base"],
        ["old-thing", "other"],
    )


@pytest.mark.parametrize(
    "name", ["nvidia-driver-570", "libnccl2", "linux-image-6.8.0", "cuda-toolkit-12-8", "libibverbs1"]
)
def test_the_gpu_stack_is_protected(name: str) -> None:
    assert apt.PROTECTED.match(name)


@pytest.mark.parametrize("name", ["perl-base", "libc6", "linux-libc-dev", "gcc-12"])
def test_the_rest_is_not(name: str) -> None:
    assert not apt.PROTECTED.match(name)


@pytest.mark.parametrize(
    "message",
    [
        "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 77 (unattended-upgr)",
        "E: Unable to lock directory /var/lib/apt/lists/",
        "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
    ],
)
def test_a_lock_is_told_from_other_failures(message: str) -> None:
    assert apt.LOCKED.search(message)


def node(name: str, address: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "address": address, "addresses": [address], "user": "ubuntu", "port": 22,
        "host_keys": ["ssh-ed25519 HOST"], "public_key": f"ssh-ed25519 KEY {name}", **more,
    }  # fmt: skip


class TestNodes:
    def test_fresh_wins_over_known_over_remembered_and_strangers_are_forgotten(self) -> None:
        merged = nodes.merge_nodes(
            [node("a", "10.0.0.1"), node("b", "10.0.0.2")],
            [node("a", "10.0.0.9")],
            [node("c", "10.0.0.3"), node("b", "10.0.0.8"), node("gone", "10.0.0.4")],
            ["c", "b", "a"],
        )
        assert [(one["name"], one["address"]) for one in merged] == [
            ("c", "10.0.0.3"),
            ("b", "10.0.0.2"),
            ("a", "10.0.0.9"),
        ]

    def test_a_node_without_a_key_is_left_out(self) -> None:
        assert nodes.merge_nodes([], [node("a", "10.0.0.1", public_key="")], [], ["a"]) == []

    def test_an_authorized_key_is_bound_to_addresses_and_runner(self) -> None:
        line = nodes.authorized_key(node("a", "10.0.0.1", addresses=["10.0.0.1", "10.1.0.1"]))
        assert line == (
            'restrict,pty,from="10.0.0.1,10.1.0.1",'
            'command="/usr/bin/env python3 -I -S /opt/lambdactl/runner.pyz node-shell" ssh-ed25519 KEY a'
        )

    @pytest.mark.parametrize(("port", "names"), [(22, "a,10.0.0.1"), (2222, "[a]:2222,[10.0.0.1]:2222")])
    def test_known_hosts(self, port: int, names: str) -> None:
        assert nodes.known_hosts(node("a", "10.0.0.1", port=port)) == [f"{names} ssh-ed25519 HOST"]

    def test_an_address_as_name_is_not_listed_twice(self) -> None:
        assert nodes.patterns(node("10.0.0.1", "10.0.0.1")) == "10.0.0.1"


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [("a", 8, ["b", "c"]), ("b", 8, ["c", "a"]), ("c", 1, ["a"]), ("elsewhere", 2, ["a", "b"]), ("a", 0, [])],
)
def test_each_node_checks_the_next_ones(name: str, limit: int, expected: list[str]) -> None:
    peers = [node(one, "10.0.0.1") for one in "abc"]
    assert [peer["name"] for peer in check.following(name, peers, limit)] == expected
