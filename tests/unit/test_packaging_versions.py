"""The bounds of ansible-core, and every playbook's syntax on the one that runs these tests (see scripts/versions)."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from lambdactl.errors import LambdactlError
from lambdactl.provision.actions import play_fleet
from lambdactl.provision.bounds import BEFORE, OLDEST, check_core

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))


@pytest.mark.parametrize("good", ["2.18.0", "2.18.19", "2.21.5", "2.21.0rc1", version("ansible-core"), None])
def test_supported(good: str | None) -> None:
    check_core(good)


@pytest.mark.parametrize(("bad", "word"), [("2.17.9", "old"), ("2.9.27", "old"), ("2.22.0rc1", "new"), ("3.0", "new")])
def test_a_play_on_another_core_says_so_first(bad: str, word: str) -> None:
    with pytest.raises(LambdactlError) as raised:
        play_fleet({"ansible_version": {"full": bad}})
    assert str(raised.value) == (
        f"ansible-core {bad} is too {word}: lambdactl works with 2.18 and newer, before 2.22. "
        "Install another: pip install 'ansible-core>=2.18,<2.22'."
    )


def test_the_bounds_are_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest, before = (".".join(map(str, bound)) for bound in (OLDEST, BEFORE))
    assert f"ansible-core>={oldest},<{before}" in project["dependencies"]


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.stem)
def test_syntax(playbook: Path, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.dstack.yml"
    fleet.write_text("type: fleet\nname: fleet\nssh_config:\n  user: u\n  hosts: [h1, h2]\n")
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [str(program), "-i", str(fleet), str(playbook), "--syntax-check"],
        cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stderr
