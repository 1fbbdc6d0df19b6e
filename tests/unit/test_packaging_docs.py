"""The generated pages are up to date, and all pages build without a warning (a broken link is one)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lambdactl.cli.reference import pages

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["reference-commands.md", "reference-roles.md"])
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == pages()[name], "run scripts/docs"


def test_every_command_and_role_is_in_its_reference() -> None:
    commands, roles = pages().values()
    assert "## lambdactl playbook run" in commands
    assert "\n    lambdactl stop [OPTIONS] RUN\n" in commands
    for role in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        assert f"\n## {role.parts[-3]}\n" in roles


def test_every_command_is_in_the_readme() -> None:
    table = (ROOT / "README.md").read_text().partition("## Every command")[2].partition("\n## ")[0]
    (first, *_) = pages().values()
    commands = {line.split()[2] for line in first.splitlines() if line.startswith("## lambdactl ")}
    assert len(commands) > 15
    assert [name for name in sorted(commands) if not re.search(rf"`{name}[ `]", table)] == []


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-n", "--fail-on-warning", "--keep-going", "--quiet", "-b", "dummy",
         "-d", tmp_path / "trees", ROOT / "docs", tmp_path / "site"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
