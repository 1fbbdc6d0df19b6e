"""Profiles, and resources given on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lambdactl import spec
from lambdactl.cli import apply, attach, logs, ssh
from lambdactl.cli.apply import Options
from lambdactl.cli.apply_task import _overrides
from lambdactl.cli.run_options import effective
from lambdactl.errors import SpecError

TASK = "type: task\ncommands: ['true']\nmax_duration: 1h\nresources: {gpu: 'H100:8'}\n"
PROFILES = """
profiles:
  - name: long
    max_duration: 2d
    stop_criteria: master-done
    tags: {team: red}
  - name: usual
    default: true
    startup_order: workers-first
"""


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yml").write_text(TASK)
    (tmp_path / ".dstack").mkdir()
    (tmp_path / ".dstack/profiles.yml").write_text(PROFILES)
    return tmp_path


def loaded(folder: Path, text: str = TASK) -> spec.TaskSpec:
    (folder / "task.yml").write_text(text)
    found = spec.load(folder / "task.yml")
    assert isinstance(found, spec.TaskSpec)
    return found


def test_a_profile_holds_where_the_file_says_nothing(folder: Path) -> None:
    task = loaded(folder)
    usual = effective(task, Options())
    assert (usual.startup_order, usual.stop_criteria, usual.max_duration) == ("workers-first", "all-done", 3600)
    chosen = effective(task, Options(profile="long"))
    assert (chosen.startup_order, chosen.stop_criteria, chosen.max_duration) == ("any", "master-done", 3600)
    assert chosen.tags == {"team": "red"}
    assert effective(loaded(folder, "type: task\ncommands: ['true']\n"), Options(profile="long")).max_duration == 172800
    assert effective(task, Options(no_profile=True)) == task


def test_profiles_that_cannot_be_had_are_one_sentence(folder: Path) -> None:
    task = loaded(folder)
    with pytest.raises(SpecError, match=r"profiles.yml: there is no profile nope; there are: long, usual\."):
        effective(task, Options(profile="nope"))
    (folder / ".dstack/profiles.yml").write_text("profiles:\n  - name: x\n    max_durations: 1h\n")
    with pytest.raises(SpecError, match=r"profiles.yml:3: .*max_durations.*max_duration"):
        effective(task, Options())
    (folder / ".dstack/profiles.yml").unlink()
    assert effective(task, Options()) == task
    with pytest.raises(SpecError, match=r"no \.dstack/profiles\.yml is here or at home"):
        effective(task, Options(profile="x"))


def test_resources_of_the_command_line(folder: Path) -> None:
    task = loaded(folder)
    found = effective(task, Options(cpu="4..8", gpu="B200:2", memory="16GB..", disk="50GB")).resources
    assert (found.cpu.count.min, found.cpu.count.max, found.gpu.name, found.gpu.count.min) == (4, 8, ("B200",), 2)
    assert (found.memory.min, found.disk.max) == (16, 50)
    assert found.explicit == {"cpu", "gpu", "memory", "disk"}
    with pytest.raises(SpecError, match="'--gpu' "):
        effective(task, Options(gpu="::"))
    groups = loaded(folder, "type: task\ngroups: [{nodes: 1, commands: ['true']}]\n")
    with pytest.raises(SpecError, match="--cpu cannot be used with 'groups'"):
        effective(groups, Options(cpu="4"))


@pytest.mark.parametrize("option", ["check", "force"])
def test_a_dry_run_of_a_task_is_no_run(folder: Path, option: str) -> None:
    with pytest.raises(SpecError, match=rf"^task\.yml: --{option} is for fleet files; .* is shown and asked first\.$"):
        apply.run("task.yml", Options(yes=True, check=option == "check", force=option == "force"))


def test_a_folder_of_logs_that_cannot_be_is_told_before_there_is_a_run(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"^the folder of logs task\.yml cannot be used \(File exists\); name another"):
        apply.run("task.yml", Options(yes=True, log_dir=Path("task.yml")))


@pytest.mark.parametrize("option", ["max_duration", "node_timeout", "pull_timeout"])
def test_a_length_of_time_is_named_as_it_was_given(folder: Path, option: str) -> None:
    with pytest.raises(SpecError, match=f"^'--{option.replace('_', '-')}' must be a number of seconds"):
        _overrides(Options(**{option: "5x"}))  # type: ignore[arg-type]  # each of them is a text


def test_one_rank_and_all_of_them_are_two_questions() -> None:
    with pytest.raises(SpecError, match=r"give one of the two options\.$"):
        logs.run("train", None, rank=1, all_ranks=True, since=None, follow=False, log_dir=None)
    with pytest.raises(SpecError, match=r"give one of the two options\.$"):
        attach.run("train", None, rank=1, all_ranks=True, since=None, log_dir=None)


def test_a_replica_of_what_is_no_service_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"^no service named train is known; --replica is for services, --rank for"):
        logs.run("train", None, rank=None, all_ranks=False, since=None, follow=False, log_dir=None, replica=1)


def test_a_command_for_a_host_may_follow_two_dashes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(ssh.os, "execvp", lambda _, argv: started.extend(argv))
    (folder / "fleet.yml").write_text("type: fleet\nname: lab\nssh_config: {user: u, hosts: [h0]}\n")
    ssh.run("h0", ["--", "ls", "-l", "a b"], "fleet.yml")
    assert started[-1] == "ls -l 'a b'"
