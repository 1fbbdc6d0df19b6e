"""What holds the package, the collection and the pages together, read from the files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import lambdactl

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
GALAXY: dict[str, Any] = yaml.safe_load((ROOT / "galaxy.yml").read_text())


def test_the_collection_has_the_packages_version_and_license() -> None:
    assert GALAXY["version"] == lambdactl.__version__
    assert GALAXY["license"] == [PROJECT["project"]["license"]]


def test_the_collection_leaves_out_what_users_do_not_run() -> None:
    kept = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "galaxy.yml", "meta", "plugins",
            "playbooks", "roles", "inventory_plugins", "ansible.cfg", "lambdactl"}  # fmt: skip
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    tops = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    assert tops - set(GALAXY["build_ignore"]) - kept == set()


@pytest.mark.parametrize(
    ("kind", "folder"), [("inventory", "inventory_plugins"), ("action", "playbooks/action_plugins")]
)
def test_the_collection_has_a_door_to_each_of_the_checkouts_plugins(kind: str, folder: str) -> None:
    plugins = {path.name: path for path in (ROOT / folder).glob("*.py")}
    doors = {path.name: path for path in (ROOT / "plugins" / kind).glob("*.py")}
    assert doors.keys() == plugins.keys()
    for name, door in doors.items():
        module = f"ansible_collections.lambdactl.lambdactl.{folder.replace('/', '.')}.{Path(name).stem}"
        assert f"from {module} import " in door.read_text()


def test_the_collections_inventories_are_documented_in_the_same_words() -> None:
    for plugin in (ROOT / "inventory_plugins").glob("*.py"):
        beside: dict[str, Any] = yaml.safe_load((ROOT / "plugins/inventory" / f"{plugin.stem}.yml").read_text())
        words = dict(
            re.findall(r'^(DOCUMENTATION|EXAMPLES) = r"""\n(.*?)"""', plugin.read_text(), re.MULTILINE | re.DOTALL)
        )
        assert beside["DOCUMENTATION"] == yaml.safe_load(words["DOCUMENTATION"])
        assert beside["EXAMPLES"].strip() == words["EXAMPLES"].strip()


def test_one_range_of_ansible_core_everywhere() -> None:
    (core,) = [Requirement(text) for text in PROJECT["project"]["dependencies"] if text.startswith("ansible-core")]
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["requires_ansible"]
    assert {part.rstrip("0").rstrip(".") for part in runtime.split(",")} == {str(part) for part in core.specifier}


def test_no_dependency_is_past_its_end_of_life() -> None:
    """pytest-ansible says in its README that it ends in December 2026."""
    names = {Requirement(text).name for text in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert not names & {"pytest-ansible", "mkdocs"}


@pytest.mark.parametrize("words", ["lambdactl stop ", "lambdactl apply --fleet ", "lambdactl playbook run "])
def test_completion_imports_nothing_heavy(words: str, tmp_path: Path) -> None:
    """Modules are counted, because time depends on the machine."""
    code = (
        "import atexit, sys\n"
        "heavy = ('ansible', 'asyncssh', 'ansible_runner', 'kubernetes', 'rich.live', 'matplotlib', 'jinja2')\n"
        "atexit.register(lambda: print('HEAVY', [name for name in heavy if name in sys.modules], file=sys.stderr))\n"
        "from lambdactl.cli import main\nsys.argv = ['lambdactl']\nmain()\n"
    )
    environment = {"_LAMBDACTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), **environment},
    )  # fmt: skip
    assert "HEAVY []" in done.stderr, done.stderr
    assert ("provision" in done.stdout) == ("playbook" in words)
