"""The playbooks run_task and stop_run by plain ansible-playbook on the sandbox, and what is left after a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl.sandbox import Sandbox
from tests.integration.conftest import ROOT, Cli, Outcome
from tests.integration.test_install import build_wheel
from tests.integration.test_runs import Lab

pytestmark = pytest.mark.sandbox

PROGRAM = Path(sys.executable).with_name("ansible-playbook")
QUIET = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_DEPRECATION_WARNINGS": "0"}


class Plays(Lab):
    """The provisioned sandbox with plain ansible-playbook."""

    def argv(self, name: str, *options: str | Path) -> list[str]:
        return [str(PROGRAM), "-i", str(self.sandbox.fleet_file), f"playbooks/{name}.yml", *map(str, options)]

    def play(self, name: str, *options: str | Path) -> Outcome:
        done = subprocess.run(
            self.argv(name, *options),
            cwd=ROOT, env={**os.environ, **QUIET}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=300,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(self, name: str, *options: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(name, *options),
            cwd=ROOT, env={**os.environ, **QUIET}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip


@pytest.fixture
def plays(provisioned: Sandbox, cli: Cli, tmp_path: Path) -> Iterator[Plays]:
    plays = Plays(provisioned, cli, tmp_path)
    yield plays
    for run in json.loads(cli("ps", "--json", "--fleet", provisioned.fleet_file).out)["runs"]:
        cli("stop", run["run_id"], "-x", "-y", "--fleet", provisioned.fleet_file)


def test_a_run_is_started_followed_fetched_and_its_exit_code_is_honoured(plays: Plays) -> None:
    script = 'echo "rank $DSTACK_NODE_RANK {{ 7*7 }} $A $TOKEN"; exit $((DSTACK_NODE_RANK * 7))'
    task = plays.task(script, name="fails", more="env:\n  - A=1\n")
    logs = plays.folder / "logs"
    os.environ["TOKEN"] = "canary-91"
    try:
        done = plays.play(
            "run_task",
            "-e",
            f"task_file={task}",
            "-e",
            f"run_log_dir={logs}",
            "-e",
            '{"run_env": ["A=2", "TOKEN"]}',
            "-v",
        )
    finally:
        del os.environ["TOKEN"]
    assert done.rc == 2, done.out
    assert "fails failed with exit code 7: rank 1 on worker-1: the commands exited with code 7" in done.out
    assert re.search(r"^rank 0 \{\{ 7\*7 \}\} 2 canary-91$", done.out, re.MULTILINE), (
        "the log is shown as it is written"
    )
    assert done.out.count("canary-91") == 1, "the environment is in no result"
    for rank in (0, 1):
        assert (logs / f"rank-{rank}.log").read_text() == f"rank {rank} {{{{ 7*7 }}}} 2 canary-91\n"
    run = json.loads((logs / "run.json").read_text())
    assert (run["name"], run["state"], run["exit_code"], run["first_failed_rank"]) == ("fails", "failed", 7, 1)


def test_a_run_that_is_not_waited_for_is_stopped_by_the_other_playbook(plays: Plays) -> None:
    task = plays.task("sleep 987", name="long")
    planned = plays.play("run_task", "-e", f"task_file={task}", "--check")
    assert planned.rc == 0, planned.out
    assert plays.processes("sleep 987") == []
    started = plays.play("run_task", "-e", f"task_file={task}", "-e", "run_name=renamed", "-e", "run_wait=false")
    assert started.rc == 0, started.out
    again = plays.play("run_task", "-e", f"task_file={task}", "-e", "run_name=renamed")
    assert again.rc == 2
    assert "a run named renamed is" in again.out
    stopped = plays.play("stop_run", "-e", "run_name=renamed", "-e", "run_abort=true")
    assert stopped.rc == 0, stopped.out
    assert "changed=1" in stopped.out
    assert plays.processes("sleep 987") == []
    assert "changed=0" in plays.play("stop_run", "-e", "run_name=renamed").out


def test_a_run_stays_within_the_limit(plays: Plays) -> None:
    one = plays.play("run_task", "-e", f"task_file={plays.task('hostname', nodes=1)}", "--limit", "worker-1")
    assert one.rc == 0, one.out
    assert "\nworker-1\n" in one.out
    two = plays.play("run_task", "-e", f"task_file={plays.task('true')}", "--limit", "worker-1")
    assert two.rc == 2
    assert "worker-0 is not among the hosts of this play" in two.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_leaves_no_worker_and_no_remote_process(plays: Plays, number: signal.Signals) -> None:
    task = plays.task("echo up; while true; do echo chatter; sleep 0.01; done", name="chatty")
    process = plays.start("run_task", "-e", f"task_file={task}")
    assert process.stdout is not None
    assert any(line == "up\n" for line in process.stdout)
    process.send_signal(number)
    # A worker that were left would keep the pipe open, and this would not end.
    process.communicate(timeout=60)
    assert process.returncode != 0
    plays.until(lambda: not plays.processes("while true|runner.pyz (rank|agent)"), patience=60)
    assert plays.run_json("chatty")["state"] == "stopped"
    plays.until(lambda: not workers_of(task))


def test_a_killed_controller_leaves_the_run_and_no_worker(plays: Plays) -> None:
    task = plays.task("echo up; sleep 4; echo still here", name="orphan")
    process = plays.start("run_task", "-e", f"task_file={task}")
    assert process.stdout is not None
    assert any(line == "up\n" for line in process.stdout)
    process.kill()
    process.wait()
    plays.until(lambda: not workers_of(task))
    done = plays.cli("attach", "orphan", "--fleet", plays.sandbox.fleet_file)
    assert (done.rc, done.out) == (0, "up\nstill here\n")


def workers_of(task: Path) -> list[str]:
    """Processes of an ansible-playbook that was given this task file, its workers included."""
    listed = subprocess.run(["ps", "-eo", "stat=,args="], capture_output=True, text=True).stdout.splitlines()
    return [line for line in listed if f"task_file={task}" in line and not line.startswith("Z")]


def test_the_command_line_runs_playbooks_without_ansible_playbook_on_the_path(plays: Plays) -> None:
    done = plays.cli(
        "playbook", "run", "facts", "--", "-i", plays.sandbox.fleet_file, "--limit", "worker-0",
        env={"PATH": "/usr/bin:/bin"}, cwd=plays.folder,
    )  # fmt: skip
    assert done.rc == 0, done.err
    assert '"hostname": "worker-0"' in done.out


def test_an_installed_wheel_reads_the_facts(plays: Plays) -> None:
    """Playbook, plugins and package all from the wheel, in a folder that has nothing of the checkout."""
    site = plays.folder / "site"
    wheel = build_wheel(plays.folder)
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True)
    script = "import sys; from lambdactl.cli import main; sys.argv[0] = 'lambdactl'; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "playbook", "run", "facts", "--", "-i", str(plays.sandbox.fleet_file), "-v"],
        cwd=plays.folder, env={**os.environ, **QUIET, "PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(site / "lambdactl/_content/ansible.cfg") in done.stdout
    assert '"hostname": "worker-1"' in done.stdout
