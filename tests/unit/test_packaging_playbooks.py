"""The options of run_task.yml, what its worker shows, and `lambdactl playbook`: no node is needed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl import content
from lambdactl.errors import SpecError
from lambdactl.provision.interrupts import Screen, interruptions
from lambdactl.provision.task_options import env_items, task_options

LAMBDACTL = Path(sys.executable).with_name("lambdactl")
ROOT = Path(__file__).resolve().parents[2]


def pairs(value: Any) -> list[tuple[str, str | None]]:
    return [(item.name, item.value) for item in env_items(value)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ({}, []),
        ("A=1\n\n B = 2\n", [("A", "1"), ("B ", " 2")]),
        ("A=1 2\nTOKEN", [("A", "1 2"), ("TOKEN", None)]),
        (["A=x=y", "B"], [("A", "x=y"), ("B", None)]),
        ({"N": 8, "DEBUG": True, "S": "a b"}, [("N", "8"), ("DEBUG", "true"), ("S", "a b")]),
    ],
)
def test_the_environment_has_three_spellings(value: Any, expected: list[tuple[str, str | None]]) -> None:
    if any(" " in name for name, _ in expected):
        with pytest.raises(SpecError, match="run_env"):
            pairs(value)
        return
    assert pairs(value) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs the variable task_file"),
        ({"task_file": "t.yml", "on_interrupt": "kill"}, "run_on_interrupt 'kill' is not one of stop, detach"),
        ({"task_file": "t.yml", "run_name": "A B"}, "run_name"),
        ({"task_file": "t.yml", "max_duration": "soon"}, "run_max_duration"),
        ({"task_file": "t.yml", "node_timeout": "x"}, "run_node_timeout"),
        ({"task_file": "t.yml", "env": 7}, "run_env must be a mapping"),
        ({"task_file": "t.yml", "env": {"A": [1]}}, "run_env: the value of A"),
    ],
)
def test_a_wrong_variable_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        task_options(arguments, bool)
    assert "\n" not in str(raised.value)


def test_options_that_are_left_out_are_the_command_lines(tmp_path: Path) -> None:
    options = task_options({"task_file": "t.yml", "log_dir": tmp_path, "max_duration": "2h"}, bool)
    assert (options.wait, options.all_ranks, options.show_log, options.on_interrupt) == (True, False, True, "stop")
    assert (options.overrides.max_duration, options.overrides.node_timeout) == (7200, 120.0)
    assert options.log_dir == tmp_path


def test_every_option_of_the_action_is_a_variable_of_the_playbook_and_documented() -> None:
    (play,) = yaml.safe_load((ROOT / "playbooks/run_task.yml").read_text())
    (action,) = [task["lambdactl_run"] for task in play["tasks"] if "lambdactl_run" in task]
    page = (ROOT / "docs/ansible.md").read_text()
    for option, text in action.items():
        variable = text.split()[1]
        assert variable in (option, f"run_{option}")
        assert f"| `{variable}` |" in page


class TestScreen:
    def test_whole_lines_only(self) -> None:
        shown: list[str] = []
        screen = Screen(shown.append, bytes.upper)
        for piece in (b"a", b"b\nc", b"\nd"):
            screen.write(piece)
        assert shown == ["AB", "C"]
        screen.finish()
        assert shown == ["AB", "C", "D"]

    def test_a_signal_ends_a_write_that_nobody_reads(self) -> None:
        read, write = os.pipe()

        async def follow() -> str:
            screen = Screen(lambda text: os.write(write, text.encode()), bytes)
            with interruptions(screen) as queue:
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
                while screen.open:
                    screen.write(b"x" * 4096 + b"\n")
                return await queue.get()

        before = signal.getsignal(signal.SIGTERM)
        assert asyncio.run(follow()) == "signal"
        assert signal.getsignal(signal.SIGTERM) is before
        os.close(read)
        os.close(write)


class TestCommand:
    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(LAMBDACTL), "playbook", *words], capture_output=True, text=True, env={**os.environ, **env}, cwd="/"
        )

    def test_path(self) -> None:
        assert self.run("path").stdout == f"{content.path('playbooks')}\n"

    def test_list_has_a_sentence_for_each(self) -> None:
        rows = [line.split(None, 1) for line in self.run("list").stdout.splitlines()[1:]]
        assert [name for name, _ in rows] == sorted(file.stem for file in content.path("playbooks").glob("*.yml"))
        assert all(len(what) > 20 for _, what in rows)

    def test_a_typo_is_named(self) -> None:
        done = self.run("run", "provison")
        assert (done.returncode, done.stderr) == (
            2,
            "lambdactl: there is no playbook provison; did you mean provision?\n",
        )

    @pytest.mark.parametrize("own_config", [False, True])
    def test_run_finds_everything_from_any_folder(self, tmp_path: Path, own_config: bool) -> None:
        """Also with a configuration of the user's own, and with a PATH that has no ansible-playbook."""
        fleet = tmp_path / "f.dstack.yml"
        fleet.write_text("type: fleet\nname: fleet\nssh_config:\n  user: u\n  hosts: [h1, h2]\n")
        (tmp_path / "own.cfg").write_text("[defaults]\nforks = 3\n")
        env = {"PATH": "/usr/bin:/bin"} | ({"ANSIBLE_CONFIG": str(tmp_path / "own.cfg")} if own_config else {})
        done = self.run("run", "provision", "--", "-i", str(fleet), "--list-hosts", **env)
        assert done.returncode == 0, done.stderr
        assert sorted(re.findall(r"^ {6}(\w+)$", done.stdout, re.MULTILINE)) == ["h1", "h1", "h2", "h2"]
