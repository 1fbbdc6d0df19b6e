"""The rules that every role keeps, read from the YAML: what ansible-lint's production profile does not look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl.provision.roles import OPTIONAL_ROLES, ROLES, role_inputs

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "roles").glob("*/tasks/*.yml")) + sorted((ROOT / "playbooks").glob("*.yml"))
OWN_MODULES = {path.stem for path in (ROOT / "roles").glob("*/library/*.py")} | {
    path.stem for path in (ROOT / "playbooks" / "action_plugins").glob("*.py")
}
KEYWORDS = {
    "name", "when", "become", "register", "vars", "until", "retries", "delay", "run_once", "notify", "check_mode",
    "diff", "changed_when", "failed_when", "delegate_to", "block", "rescue", "loop", "loop_control", "no_log",
}  # fmt: skip


def tasks_of(data: Any) -> list[dict[str, Any]]:
    """All tasks of a file, those of blocks and plays included."""
    found = []
    for item in data or ():
        found.append(item)
        for part in ("tasks", "block", "rescue", "handlers"):
            found += tasks_of(item.get(part))
    return found


TASKS = [
    pytest.param(task, id=f"{path.parent.parent.name}/{path.name}:{task.get('name')}")
    for path in FILES
    for task in tasks_of(yaml.safe_load(path.read_text()))
    if "hosts" not in task
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.parent.name}/{path.name}")
def test_a_task_file_fits_on_two_screens(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 120


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_named_as_a_sentence_and_calls_modules_by_their_full_name(task: dict[str, Any]) -> None:
    assert task["name"][0].isupper()
    for action in task.keys() - KEYWORDS:
        assert action in OWN_MODULES or action.count(".") >= 2, action


@pytest.mark.parametrize("task", TASKS)
def test_downloads_have_a_checksum_and_try_again(task: dict[str, Any]) -> None:
    if "ansible.builtin.get_url" in task:
        assert task["ansible.builtin.get_url"]["checksum"].startswith("sha256:")
        assert task["retries"] >= 3
    if "ansible.builtin.git" in task:
        assert task["ansible.builtin.git"]["version"]
        assert task["retries"] >= 3


def test_no_failure_is_ignored_and_no_injected_fact_is_used() -> None:
    for path in FILES:
        text = path.read_text()
        for forbidden in (
            "ignore_errors",
            "ignore_unreachable",
            "ansible_distribution",
            "ansible_os_family",
            "state: latest",
        ):
            assert forbidden not in text, f"{path}: {forbidden}"


@pytest.mark.parametrize("role", [*ROLES, *OPTIONAL_ROLES])
class TestRole:
    def load(self, role: str, name: str) -> Any:
        return yaml.safe_load((ROOT / "roles" / role / name).read_text())

    def test_argument_specs_are_the_defaults(self, role: str) -> None:
        options = self.load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        defaults = self.load(role, "defaults/main.yml")
        assert {name: option["default"] for name, option in options.items()} == defaults
        assert list(options) == list(defaults)
        assert options[f"{role}_state"]["choices"] == ["present", "absent"]
        assert all(option["description"] and option["type"] for option in options.values())

    def test_the_readme_lists_each_variable_with_its_default(self, role: str) -> None:
        readme = (ROOT / "roles" / role / "README.md").read_text()
        options = self.load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        rows = [f"| `{name}` | {shown(o['default'])} | {o['description']} |" for name, o in options.items()]
        listed = [line for line in readme.splitlines() if line.startswith(f"| `{role}_")]
        assert listed == rows

    def test_variables_have_the_roles_name_in_front(self, role: str) -> None:
        assert all(name.startswith(f"{role}_") for name in self.load(role, "defaults/main.yml"))

    def test_what_the_digest_covers_has_a_static_default(self, role: str) -> None:
        """A templated default would make the plan's digest differ from the role's own."""
        defaults = self.load(role, "defaults/main.yml")
        for name in role_inputs(role):
            assert "{{" not in str(defaults[name]), name

    def test_each_way_ends_with_the_manifest(self, role: str) -> None:
        for state in ("present", "absent"):
            tasks = self.load(role, f"tasks/{state}.yml")
            place = [number for number, task in enumerate(tasks) if "lambdactl_manifest" in task]
            assert place, state
            assert tasks[place[-1]]["lambdactl_manifest"]["role"] == role
            if state == "present":
                assert place[-1] == len(tasks) - 1

    def test_metadata(self, role: str) -> None:
        meta = self.load(role, "meta/main.yml")
        assert meta["galaxy_info"]["role_name"] == role
        assert meta["dependencies"] == [{"role": "manifest"}]


def shown(value: Any) -> str:
    """A default as the README's table shows it."""
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value) or "`[]`"
    text = str(value).lower() if isinstance(value, bool) else str(value) if value != "" else '""'
    return f"`{text}`".replace("|", "&#124;")


def test_releases_of_nccl_tests_are_pinned_to_full_commits() -> None:
    commits = yaml.safe_load((ROOT / "roles/nccl_tests/vars/main.yml").read_text())["__nccl_tests_commits"]
    defaults = yaml.safe_load((ROOT / "roles/nccl_tests/defaults/main.yml").read_text())
    assert defaults["nccl_tests_version"] in commits
    assert all(len(commit) == 40 and set(commit) <= set("0123456789abcdef") for commit in commits.values())
    assert list(commits) == sorted(commits)


def test_no_package_of_a_role_is_a_driver_a_kernel_or_cuda() -> None:
    for role in (*ROLES, *OPTIONAL_ROLES):
        defaults = yaml.safe_load((ROOT / "roles" / role / "defaults/main.yml").read_text())
        for name in defaults.get(f"{role}_packages", ()):
            assert not name.startswith(("nvidia", "cuda", "linux-image", "libnccl")), name


def test_every_role_has_a_molecule_scenario_that_looks_at_what_it_did() -> None:
    """Two small files a role: molecule/shared converges, repeats, checks, removes and compares for all of them."""
    roles = {path.parent.parent.name for path in (ROOT / "roles").glob("*/tasks/main.yml")}
    for role in sorted(roles):
        scenario = ROOT / "molecule" / role / "molecule.yml"
        assert scenario.is_file(), (
            f"write {scenario.relative_to(ROOT)} and verify.yml beside it, as the other roles have"
        )
        assert yaml.safe_load(scenario.read_text())["ansible"]["playbooks"]["verify"] == "verify.yml"
        assert scenario.with_name("verify.yml").is_file()
