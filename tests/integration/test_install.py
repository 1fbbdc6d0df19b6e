"""Every way of installing lambdactl prints the same inventory and runs the facts playbook on a sandbox.

Real installations by uv, pipx and ansible-galaxy, with all dependencies, into folders of the test; packages come from
the index once and then from a cache in `.venv`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from tests.integration.conftest import ROOT, STACK, _up

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
FLEET = """\
type: fleet
name: install
ssh_config:
  user: ubuntu
  identity_file: ~/.ssh/key
  hosts: [n1, {hostname: 192.0.2.7, port: 2222}]
  proxy_jump: {hostname: jump.example.org, user: me, identity_file: ~/.ssh/jump}
"""


def run(*argv: str | Path, cwd: Path, **env: str) -> str:
    """Run a program to its end and return its output; a failure shows all of it."""
    done = subprocess.run(
        [*map(str, argv)], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """The checkout as a wheel."""
    run(BIN / "python", "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def cache() -> dict[str, str]:
    """Where uv keeps what it has downloaded, from one run of the tests to the next."""
    return {"UV_CACHE_DIR": str(ROOT / ".venv" / ".uv-cache"), "UV_LINK_MODE": "copy"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fleet") / "install.dstack.yml"
    file.write_text(FLEET)
    return file


@pytest.fixture(scope="module")
def expected(fleet: Path) -> dict[str, object]:
    """The inventory as the editable checkout prints it."""
    found = inventory(BIN, ROOT / "ansible.cfg", fleet)
    assert found["install"] == {"hosts": ["n1", "192.0.2.7"]}
    return found


@pytest.fixture(scope="module")
def cluster(engine: None) -> Iterator[Sandbox]:
    """One worker behind a jump host."""
    made = _up(workers=1, packages=STACK)
    yield made
    sandboxes.down(made.name)


def shows_facts(text: str) -> bool:
    """Whether the facts playbook reached the worker and showed what it found."""
    return '"hostname": "worker-0"' in text and "unreachable=0    failed=0" in text


def inventory(programs: Path, config: Path, source: Path) -> dict[str, object]:
    text = run(programs / "ansible-inventory", "-i", source, "--list", cwd=source.parent, ANSIBLE_CONFIG=str(config))
    found: dict[str, object] = json.loads(text)
    return found


def smoke(script: Path, programs: Path, fleet: Path, expected: dict[str, object], cluster: Sandbox) -> None:
    """The installed command works in any folder, with no ansible-playbook on PATH, and is not the checkout's."""
    playbooks = Path(run(script, "playbook", "path", cwd=fleet.parent).strip())
    assert ROOT not in playbooks.parents
    assert {part.name for part in playbooks.parent.iterdir()} >= {
        "ansible.cfg", "inventory_plugins", "playbooks", "roles", "sandbox",
    }  # fmt: skip
    facts = run(
        script, "playbook", "run", "facts", "--", "-i", cluster.fleet_file, cwd=fleet.parent, PATH="/usr/bin:/bin"
    )
    assert shows_facts(facts), facts
    assert inventory(programs, playbooks.parent / "ansible.cfg", fleet) == expected


def test_the_wheel_holds_the_content_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"lambdactl", next(top for top in tops if top.endswith(".dist-info"))}
    content = {name.split("/")[2] for name in names if name.startswith("lambdactl/_content/")}
    assert content == {"ansible.cfg", "inventory_plugins", "playbooks", "roles", "sandbox"}
    assert not [name for name in names if "__pycache__" in name or ".ruff_cache" in name]
    assert "lambdactl/nccl/data/catalogue.yaml" in names
    assert "lambdactl/py.typed" in names


def test_editable_checkout(fleet: Path, cluster: Sandbox) -> None:
    """What the other tests use; here in a folder of its own and with no ansible-playbook on PATH."""
    assert Path(run(BIN / "lambdactl", "playbook", "path", cwd=fleet.parent).strip()) == ROOT / "playbooks"
    facts = run(
        BIN / "lambdactl", "playbook", "run", "facts", "--", "-i", cluster.fleet_file,
        cwd=fleet.parent, PATH="/usr/bin:/bin",
    )  # fmt: skip
    assert shows_facts(facts), facts


@pytest.fixture(scope="module")
def installed(wheel: Path, cache: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment into which the wheel was installed by pip."""
    folder = tmp_path_factory.mktemp("pip")
    run(BIN / "uv", "venv", "--python", sys.executable, folder / "venv", cwd=folder, **cache)
    run(BIN / "uv", "pip", "install", "--python", folder / "venv/bin/python", wheel, cwd=folder, **cache)
    return folder / "venv/bin"


def test_pip_install(installed: Path, fleet: Path, expected: dict[str, object], cluster: Sandbox) -> None:
    smoke(installed / "lambdactl", installed, fleet, expected, cluster)


def test_every_playbook_of_an_installed_wheel(installed: Path, cluster: Sandbox, tmp_path: Path) -> None:
    """A cluster's life by plain playbooks, with nothing of the checkout; validate only says what it would do."""
    task = tmp_path / "t.dstack.yml"
    task.write_text("type: task\nname: whl\ncommands: ['echo from {{ 7*7 }}']\n")
    service = tmp_path / "s.dstack.yml"
    service.write_text("type: service\nname: web\nport: 8000\ncommands: [python3 -m http.server 8000]\n")
    steps = {
        "provision": [],
        "doctor": ["-e", "doctor_report_only=true"],
        "run_task": ["-e", f"task_file={task}"],
        "stop_run": ["-e", "run_name=whl"],
        "run_service": ["-e", f"service_file={service}", "--check"],
        "ingress": ["--check"],
        "validate": ["--check"],
        "teardown": [],
        "facts": [],
    }
    said = {}
    for name, options in steps.items():
        argv = [installed / "lambdactl", "playbook", "run", name, "--", "-i", cluster.fleet_file, *options]
        said[name] = run(*argv, cwd=tmp_path, PATH="/usr/bin:/bin")
        assert "failed=0" in said[name], said[name]
    assert "from {{ 7*7 }}" in said["run_task"]
    listed = run(installed / "lambdactl", "playbook", "list", cwd=tmp_path).splitlines()[1:]
    assert sorted(line.split()[0] for line in listed) == sorted(steps)
    assert cluster.exec("worker-0", "ls -d /opt/lambdactl /var/lib/lambdactl /etc/lambdactl").stdout == ""


def test_uv_tool_install(
    wheel: Path, cache: dict[str, str], fleet: Path, expected: dict[str, object], cluster: Sandbox, tmp_path: Path
) -> None:
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    run(BIN / "uv", "tool", "install", "--python", sys.executable, wheel, cwd=tmp_path, **cache, **places)
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["lambdactl"], (
        "as users have it: no ansible-playbook"
    )
    smoke(tmp_path / "bin/lambdactl", tmp_path / "tools/lambdactl/bin", fleet, expected, cluster)


def test_pipx_install(
    wheel: Path, cache: dict[str, str], fleet: Path, expected: dict[str, object], cluster: Sandbox, tmp_path: Path
) -> None:
    places = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin"), "PIPX_DEFAULT_BACKEND": "uv"}
    run(BIN / "pipx", "install", "--python", sys.executable, wheel, cwd=tmp_path, **cache, **places)
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["lambdactl"]
    smoke(tmp_path / "bin/lambdactl", tmp_path / "pipx/venvs/lambdactl/bin", fleet, expected, cluster)


def test_the_collection(
    cache: dict[str, str], fleet: Path, expected: dict[str, object], cluster: Sandbox, tmp_path: Path
) -> None:
    """By a Python that has no lambdactl: the collection holds what its plugins need."""
    run(BIN / "ansible-galaxy", "collection", "build", "--output-path", tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        tops = {name.split("/")[0] for name in packed.getnames()}
    assert not tops & {"tests", "docs", "molecule", "scripts", "awx", ".git", ".venv"}
    run(BIN / "ansible-galaxy", "collection", "install", archive, "-p", tmp_path / "collections", cwd=tmp_path)
    config = tmp_path / "ansible.cfg"
    config.write_text(
        f"[defaults]\ncollections_path = {tmp_path / 'collections'}\n"
        "[inventory]\nenable_plugins = lambdactl.lambdactl.lambda_fleet, ansible.builtin.auto\n"
        "any_unparsed_is_failed = True\n"
    )
    source = fleet.with_name("by_config.lambda_fleet.yml")
    source.write_text(f"plugin: lambdactl.lambdactl.lambda_fleet\nfleet: {fleet.name}\n")
    run(BIN / "uv", "venv", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path, **cache)
    core = f"ansible-core=={version('ansible-core')}"
    run(BIN / "uv", "pip", "install", "--python", tmp_path / "venv/bin/python", core, cwd=tmp_path, **cache)
    isolated = tmp_path / "venv/bin"
    assert inventory(isolated, config, source) == expected
    node = cluster.fleet_file.with_name("node.lambda_fleet.yml")
    node.write_text(f"plugin: lambdactl.lambdactl.lambda_fleet\nfleet: {cluster.fleet_file}\n")
    facts = run(
        isolated / "ansible-playbook", "-i", node, "lambdactl.lambdactl.facts", cwd=tmp_path, ANSIBLE_CONFIG=str(config)
    )
    assert shows_facts(facts), facts
    told = run(
        BIN / "ansible-doc",
        "-t",
        "inventory",
        "lambdactl.lambdactl.lambda_fleet",
        cwd=tmp_path,
        ANSIBLE_CONFIG=str(config),
    )
    assert "Hosts of an SSH fleet file" in told or "Reads a fleet file" in told
