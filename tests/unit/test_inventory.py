"""The inventory plugin, through the real ansible-inventory and ansible-doc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl.fleet.model import Fleet
from lambdactl.fleet.ssh import host_vars

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests/data/fleet/lambda-fleet.dstack.yml"
WORKERS = ["worker-gpu-8x-b200-rplfm-ll9nr", "worker-gpu-8x-b200-rplfm-qrcs9"]

LATER = "{{ lookup('ansible.builtin.env', 'HOME') }}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith(("ANSIBLE_", "LAMBDACTL_"))]:
        monkeypatch.delenv(name)
    return home


def run(program: str, *args: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name(program)), *map(str, args)]
    return subprocess.run(
        argv, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )


def inventory(*args: str | Path, **environment: str) -> dict[str, Any]:
    done = run("ansible-inventory", "--list", "--export", *args, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "__ansible_unsafe" not in done.stdout
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def hostvars(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = data["_meta"]["hostvars"]
    return found


def copy(tmp_path: Path, name: str = "lambda-fleet.dstack.yml", config: str | None = None) -> Path:
    """The reference fleet beside an optional configuration file; the path of the inventory source."""
    shutil.copy(REFERENCE, tmp_path / name)
    if config is None:
        return tmp_path / name
    (tmp_path / "site.lambda_fleet.yml").write_text(f"plugin: lambda_fleet\nfleet: {name}\n{config}")
    return tmp_path / "site.lambda_fleet.yml"


def test_reference_page() -> None:
    data = inventory("-i", REFERENCE)
    assert data["lambda_fleet"] == {"hosts": WORKERS}
    assert set(data) == {"_meta", "all", "lambda_fleet"}
    fleet = Fleet.load(REFERENCE)
    expected = {host.name: host_vars(fleet, host) for host in fleet.hosts}
    for variables in expected.values():  # HOME is not the passwd entry's in tests, so it is looked up later
        arguments = variables["ansible_ssh_common_args"]
        variables["ansible_ssh_common_args"] = arguments.replace(os.environ["HOME"], LATER)
    assert hostvars(data) == expected


def test_graph() -> None:
    done = run("ansible-inventory", "-i", REFERENCE, "--graph")
    assert done.stdout.splitlines() == [
        "@all:",
        "  |--@ungrouped:",
        "  |--@lambda_fleet:",
        *(f"  |  |--{worker}" for worker in WORKERS),
    ]


@pytest.mark.parametrize("name", ["a.dstack.yaml", "a.fleet.yml", "a.fleet.yaml", ".dstack.yml", "anything.yml"])
def test_accepted_names(tmp_path: Path, name: str) -> None:
    assert list(hostvars(inventory("-i", copy(tmp_path, name)))) == WORKERS


def test_from_any_folder_with_the_plugin_named(tmp_path: Path) -> None:
    """As an installed wheel serves it: no ansible.cfg in sight."""
    done = run(
        "ansible-inventory", "--list", "-i", copy(tmp_path), cwd=tmp_path,
        ANSIBLE_INVENTORY_PLUGINS=str(ROOT / "inventory_plugins"), ANSIBLE_INVENTORY_ENABLED="lambda_fleet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(hostvars(json.loads(done.stdout))) == WORKERS


def test_from_a_checkout_without_the_package_installed(tmp_path: Path) -> None:
    """As AWX has it: only ansible-core and PyYAML, and the checkout as it is."""
    for name in ("lambdactl/spec", "lambdactl/fleet", "inventory_plugins"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("ansible.cfg", "lambdactl/__init__.py", "lambdactl/errors.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    # An editable install is a .pth file, which is read only from site folders, not from PYTHONPATH.
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(yaml.__file__).parents[1].iterdir():
        if "lambdactl" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    main = "import sys; from ansible.cli.inventory import main; sys.argv[0] = 'ansible-inventory'; main()"
    base = [sys.executable, "-S", "-c"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    probe = subprocess.run([*base, "import lambdactl"], env=environment, cwd="/", capture_output=True, check=False)
    assert b"No module named 'lambdactl'" in probe.stderr
    done = subprocess.run(
        [*base, main, "-i", str(REFERENCE), "--list"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(hostvars(json.loads(done.stdout))) == WORKERS


def test_five_thousand_hosts(tmp_path: Path) -> None:
    hosts = [f"node-{number:04d}" for number in range(5000)]
    path = tmp_path / "big.dstack.yml"
    path.write_text(yaml.safe_dump({"type": "fleet", "name": "big", "ssh_config": {"user": "u", "hosts": hosts}}))
    data = inventory("-i", path)
    assert data["big"]["hosts"] == hosts
    assert hostvars(data)["node-4999"]["lambdactl_rank_order"] == 4999


def test_the_variables_survive_the_way_through_awx(tmp_path: Path) -> None:
    """AWX keeps the exported JSON, and gives it to a job as an executable file."""
    exported = inventory("-i", copy(tmp_path), LAMBDACTL_JUMP_KEY="/run/sync/key", LAMBDACTL_SSH_KEY="/run/sync/node")
    variables = hostvars(exported)[WORKERS[0]]
    assert '-i "$LAMBDACTL_JUMP_KEY"' in variables["ansible_ssh_common_args"]
    assert "/run/sync" not in json.dumps(exported)
    script = tmp_path / "hosts"
    script.write_text(f"#!/bin/sh\ncat <<'EOF'\n{json.dumps(exported)}\nEOF\n")
    script.chmod(0o755)
    done = run(
        "ansible", WORKERS[0], "-i", script, "-c", "local", "-m", "ansible.builtin.debug",
        "-a", "msg={{ ansible_ssh_private_key_file }}|{{ lambdactl_route.hops[0].identity_file }}",
        LAMBDACTL_SSH_KEY="/run/job/node",
    )  # fmt: skip
    assert "/run/job/node|$LAMBDACTL_JUMP_KEY" in done.stdout, done.stdout + done.stderr


def test_constructed(tmp_path: Path) -> None:
    config = """
strict: true
compose:
  is_master: lambdactl_rank_order == 0
groups:
  masters: is_master
keyed_groups:
  - {key: "lambdactl_route.hops[0].hostname", prefix: behind}
"""
    data = inventory("-i", copy(tmp_path, config=config))
    assert data["masters"]["hosts"] == WORKERS[:1]
    assert data["behind_192_222_55_54"]["hosts"] == WORKERS
    assert [variables["is_master"] for variables in hostvars(data).values()] == [True, False]


def test_options_replace_keys_and_policy(tmp_path: Path) -> None:
    config = "identity_file: none\njump_identity_file: $LAMBDACTL_JUMP_KEY\nhost_key_policy: 'yes'\n"
    variables = hostvars(inventory("-i", copy(tmp_path, config=config)))[WORKERS[0]]
    assert "ansible_ssh_private_key_file" not in variables
    assert variables["lambdactl_route"]["hops"][0]["identity_file"] == "$LAMBDACTL_JUMP_KEY"
    assert variables["ansible_ssh_common_args"].count("StrictHostKeyChecking=yes") == 2


def test_cache_is_used_only_while_the_fleet_file_is_the_same(tmp_path: Path) -> None:
    cache = {
        "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(tmp_path / "cache"),
    }
    source = copy(tmp_path, config="cache: true\n")
    first = inventory("-i", source, **cache)
    (entry,) = (tmp_path / "cache").iterdir()
    stored = json.loads(entry.read_text())
    payload = stored.get("__payload__", stored)
    assert WORKERS[0] in (payload if isinstance(payload, str) else json.dumps(payload))
    assert inventory("-i", source, **cache) == first
    fleet = tmp_path / "lambda-fleet.dstack.yml"
    fleet.write_text(fleet.read_text().replace("qrcs9", "other"))
    assert list(hostvars(inventory("-i", source, **cache)))[1].endswith("other")


MISTAKES = [
    ("x.dstack.yml", "type: task\nname: tt\ncommands: [ls]\n", "x.dstack.yml:1: ", "task"),
    ("task.yml", "# a\ntype: task\nname: tt\ncommands: [ls]\n", "task.yml:2: ", "task"),
    ("x.dstack.yml", "type: fleet\nname: ff\nssh_config:\n  usr: u\n  hosts: [a]\n", "x.dstack.yml:4: ", "user"),
    ("x.dstack.yml", "type: fleet\nname: ff\nssh_config:\n  hosts: [a]\n", "x.dstack.yml:4: ", "user"),
    ("x.dstack.yml", "type: fleet\nssh_config:\n  user: u\n  hosts:\n    - a\n    - a\n", "x.dstack.yml:6: ", "twice"),
    ("x.dstack.yml", "type: fleet\nssh_config: [\n", "x.dstack.yml:3: ", "YAML"),
    ("x.dstack.yml", "- a\n", "x.dstack.yml:1: ", ""),
    ("x.dstack.yml", "", "x.dstack.yml", "empty"),
    ("x.dstack.yml", "type: fleet\nname: ff\nnodes: 0..\n", "x.dstack.yml", "Kubernetes"),
    ("x.lambda_fleet.yml", "plugin: lambda_fleet\nkeyed_group: []\n", "x.lambda_fleet.yml:2: ", "'keyed_groups'"),
    ("x.lambda_fleet.yml", "plugin: lambda_fleet\n", "x.lambda_fleet.yml:1: ", "'fleet'"),
    ("x.lambda_fleet.yml", "fleet: f.yml\n", "x.lambda_fleet.yml:1: ", "'plugin'"),
    ("x.lambda_fleet.yml", "- plugin\n", "x.lambda_fleet.yml:1: ", "mapping"),
    ("x.lambda_fleet.yml", "plugin: [\n", "x.lambda_fleet.yml:2: ", "YAML"),
    ("x.lambda_fleet.yml", "plugin: lambda_fleet\nfleet: missing.yml\n", "missing.yml", "No such file"),
    ("x.lambda_fleet.yml", "plugin: lambda_fleet\nfleet: f.yml\nhost_key_policy: maybe\n", "", "accept-new"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "where", "what"), MISTAKES)
def test_mistakes_are_one_error_and_no_hosts(tmp_path: Path, name: str, text: str, where: str, what: str) -> None:
    (tmp_path / name).write_text(text)
    done = run("ansible-inventory", "-i", tmp_path / name, "--list", COLUMNS="400")
    assert done.returncode != 0
    assert done.stdout == ""
    said = " ".join(done.stderr.split()) + " "  # ansible-core 2.18 folds long lines, whatever COLUMNS says
    assert where in said
    assert what in said
    assert "Traceback" not in said
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) <= 10, done.stderr


def test_ordinary_yaml_inventories_still_work(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all:\n  hosts:\n    one: {x: 1}\n")
    (tmp_path / "made.yml").write_text(
        "plugin: ansible.builtin.generator\nhosts: {name: 'gen-{{ n }}'}\nlayers: {n: [1, 2]}\n"
    )
    assert hostvars(inventory("-i", tmp_path / "hosts.yml"))["one"]["x"] == 1
    done = run("ansible-inventory", "-i", tmp_path / "made.yml", "--graph")
    assert "gen-1" in done.stdout, done.stderr


def test_several_fleets_and_a_plain_inventory_side_by_side(tmp_path: Path) -> None:
    other = tmp_path / "other.dstack.yml"
    other.write_text(REFERENCE.read_text().replace("name: lambda-fleet", "name: other").replace("worker", "second"))
    (tmp_path / "hosts.yml").write_text("all:\n  hosts:\n    one:\n")
    data = inventory("-i", REFERENCE, "-i", other, "-i", tmp_path / "hosts.yml")
    folders = {variables.get("ansible_control_path_dir") for variables in hostvars(data).values()}
    assert len(folders) == 2
    assert {"lambda_fleet", "other"} <= set(data)


@pytest.mark.parametrize("plugin", ["lambda_fleet", "plain_yaml"])
def test_documentation_renders(plugin: str) -> None:
    done = run("ansible-doc", "-t", "inventory", plugin)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "EXAMPLES" in done.stdout
    listed = json.loads(run("ansible-doc", "-t", "inventory", "--json", plugin).stdout)[plugin]["doc"]
    assert listed["short_description"]


def test_every_example_is_an_inventory(tmp_path: Path) -> None:
    done = run("ansible-doc", "-t", "inventory", "--json", "lambda_fleet")
    documents = json.loads(done.stdout)["lambda_fleet"]["examples"].split("\n---\n")
    assert len(documents) >= 4
    (tmp_path / "lambda-fleet.dstack.yml").write_text(documents[0])
    for number, document in enumerate(documents):
        path = tmp_path / ("lambda-fleet.dstack.yml" if number == 0 else f"{number}.lambda_fleet.yml")
        path.write_text(document)
        assert list(hostvars(inventory("-i", path))) == WORKERS
