"""Runs on the sandbox by the command line: real systemd, real sshd behind a jump host, real Open MPI, real Ansible."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.sandbox import Sandbox
from tests.integration.conftest import Cli, Outcome

pytestmark = pytest.mark.sandbox

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TASK = "type: task\nname: {name}\nnodes: {nodes}\n{more}commands:\n  - |\n{script}\n"


class Lab:
    """The provisioned sandbox with its command line; every task file lands in a folder of its own."""

    def __init__(self, sandbox: Sandbox, cli: Cli, folder: Path) -> None:
        self.sandbox = sandbox
        self.cli = cli
        self.folder = folder

    def task(self, script: str, *, name: str = "job", nodes: int = 2, more: str = "") -> Path:
        path = self.folder / f"{name}.dstack.yml"
        body = "\n".join(f"    {line}" for line in script.splitlines())
        path.write_text(TASK.format(name=name, nodes=nodes, more=more, script=body))
        return path

    def apply(self, path: Path, *options: str, **keywords: Any) -> Outcome:
        return self.cli("apply", "-f", path, "--fleet", self.sandbox.fleet_file, "-y", *options, **keywords)

    def run_json(self, name: str) -> dict[str, Any]:
        done = self.cli("run", "get", name, "--json", "--fleet", self.sandbox.fleet_file)
        assert done.rc == 0, done.err
        return json.loads(done.out)

    def processes(self, pattern: str) -> list[str]:
        """Command lines on any worker that match."""
        found = []
        for node in self.sandbox.workers:
            listed = self.sandbox.exec(node.name, ["ps", "-eo", "args"]).stdout.splitlines()
            found += [f"{node.name}: {line}" for line in listed if re.search(pattern, line)]
        return found

    def until(self, condition: Callable[[], Any], *, patience: float = 30) -> Any:
        """Wait for a condition; its last value is returned, and must be true."""
        deadline = time.monotonic() + patience
        while not (value := condition()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert value
        return value


@pytest.fixture
def lab(provisioned: Sandbox, cli: Cli, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(provisioned, cli, tmp_path)
    yield lab
    listed = json.loads(cli("ps", "--json", "--fleet", provisioned.fleet_file).out)
    for run in listed["runs"]:
        if run["state"] not in ("done", "failed", "stopped"):
            cli("stop", run["run_id"], "-x", "-y", "--fleet", provisioned.fleet_file)


def test_the_sandbox_example_runs_open_mpi_between_the_nodes(lab: Lab) -> None:
    done = lab.apply(EXAMPLES / "sandbox-allreduce.dstack.yml")
    assert done.rc == 0, done.err
    rows = [line for line in done.out.splitlines() if re.match(r"\s+\d+\s+\d+\s+float", line)]
    assert len(rows) == 23
    assert "# Avg bus bandwidth" in done.out
    assert "worker-0" in done.out
    assert "worker-1" in done.out
    assert lab.processes("all_reduce_cpu|orted|sleep infinity|lambdactl/runner.pyz") == []


def test_every_rank_has_the_environment_and_the_hostfile(lab: Lab) -> None:
    script = 'env | grep ^DSTACK_ | sort; echo "nodes: $DSTACK_NODES_IPS"; cat $DSTACK_MPI_HOSTFILE; id -un; pwd'
    done = lab.apply(lab.task(script), "--all")
    assert done.rc == 0, done.err
    addresses = [node.address for node in lab.sandbox.workers]
    for rank in (0, 1):
        lines = [line[3:] for line in done.out.splitlines() if line.startswith(f"{rank}: ")]
        values = dict(line.split("=", 1) for line in lines if line.startswith("DSTACK_"))
        assert values["DSTACK_NODE_RANK"] == str(rank)
        assert values["DSTACK_NODES_NUM"] == "2"
        assert values["DSTACK_NODE_IP"] == addresses[rank]
        assert values["DSTACK_MASTER_NODE_IP"] == addresses[0]
        assert values["DSTACK_GPUS_NUM"] == values["DSTACK_GPUS_PER_NODE"] == "0"
        assert values["DSTACK_RUN_NAME"] == "job"
        assert {"DSTACK_RUN_ID", "DSTACK_JOB_ID", "DSTACK_REPO_ID", "DSTACK_REPO_DIR", "DSTACK_WORKING_DIR"} <= set(
            values
        )
        assert lines[-4:] == [*addresses, "ubuntu", "/home/ubuntu"]


def test_commands_are_never_templated(lab: Lab) -> None:
    done = lab.apply(lab.task("echo '{{ 7*7 }} {% if %} ${{ x }} $${{ run.args }}'", nodes=1))
    assert done.out == "{{ 7*7 }} {% if %} ${{ x }} ${{ run.args }}\n"


def test_the_exit_code_is_the_first_failing_ranks(lab: Lab) -> None:
    done = lab.apply(lab.task("if [ $DSTACK_NODE_RANK = 1 ]; then exit 7; fi; sleep 1000"))
    assert done.rc == 7
    assert "rank 1 on worker-1: the commands exited with code 7" in done.err
    assert lab.processes("sleep 1000") == []


def test_workers_are_stopped_when_the_master_is_done(lab: Lab) -> None:
    script = "if [ $DSTACK_NODE_RANK = 0 ]; then echo ready; else echo $$ > /tmp/worker-pid; sleep infinity; fi"
    done = lab.apply(lab.task(script, more="startup_order: workers-first\nstop_criteria: master-done\n"))
    assert (done.rc, done.out) == (0, "ready\n")
    status = lab.run_json("job")
    ends = {rank["rank"]: rank["finished_at"] for rank in status["ranks"]}
    assert ends[1] - ends[0] < 5, "the goal of the design, far above what is usual"
    assert lab.processes("sleep infinity") == []


def test_what_mpirun_started_elsewhere_dies_with_the_run(lab: Lab) -> None:
    mpirun = "mpirun --hostfile $DSTACK_MPI_HOSTFILE -n 2 -N 1 sleep 4321"
    script = f"if [ $DSTACK_NODE_RANK = 0 ]; then {mpirun}; else sleep infinity; fi"
    lab.apply(lab.task(script), "-d")
    lab.until(lambda: len(lab.processes("^sleep 4321")) == 2)
    done = lab.cli("stop", "job", "-x", "-y", "--fleet", lab.sandbox.fleet_file)
    assert done.rc == 0, done.err
    assert lab.processes("sleep|orted") == []


def test_detach_ps_logs_attach_stop(lab: Lab) -> None:
    fleet = ("--fleet", lab.sandbox.fleet_file)
    started = lab.apply(
        lab.task("echo begun; i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done", name="long"), "-d"
    )
    assert (started.rc, started.out) == (0, "")
    listed = json.loads(lab.cli("ps", "--json", *fleet).out)["runs"]
    assert [(run["name"], run["nodes"]) for run in listed] == [("long", 2)]
    assert re.search(r"^long +\S+ +2 +running", lab.cli("ps", *fleet).out, re.MULTILINE)
    lab.until(lambda: "5\n" in lab.cli("logs", "long", *fleet).out)
    assert lab.cli("logs", "long", *fleet).out.startswith("begun\n0\n1\n")
    assert lab.cli("logs", "long", "--rank", "1", *fleet).out.startswith("begun\n0\n")
    both = lab.cli("logs", "long", "--all", *fleet).out
    assert {line.partition(": ")[0] for line in both.splitlines()} == {"0", "1"}
    assert not lab.cli("logs", "long", "--since", "0s", *fleet).out.startswith("begun")
    refused = lab.cli("logs", "long", "--rank", "2", *fleet)
    assert (refused.rc, refused.err) == (2, "lambdactl: long has ranks 0 to 1, not 2.\n")
    again = lab.apply(lab.task("true", name="long"))
    assert again.rc == 3
    assert "a run named long is running on worker-0, worker-1" in again.err
    other = lab.apply(lab.task("true", name="other"))
    assert other.rc == 3
    assert "worker-0 is in use by run long of" in other.err
    attached = lab.cli.start("attach", "long", *fleet)
    assert lab.cli("stop", "long", "-y", *fleet).rc == 0
    out, err = attached.communicate(timeout=60)
    assert attached.returncode == 130, err
    assert out.startswith("begun\n0\n1\n")
    assert "long was stopped" in err
    assert "stopped" in lab.cli("ps", "-a", *fleet).out


def test_another_machine_needs_only_the_fleet_file(lab: Lab, tmp_path: Path) -> None:
    lab.apply(lab.task("echo hello; sleep 2; exit 3", name="elsewhere"), "-d")
    stranger = {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    done = lab.cli("attach", "elsewhere", "--fleet", lab.sandbox.fleet_file, env=stranger)
    assert (done.rc, done.out) == (3, "hello\n")


def test_max_duration_ends_the_run(lab: Lab) -> None:
    done = lab.apply(lab.task("sleep 1000", more="max_duration: 2s\n"))
    assert done.rc == 124
    assert "max" in done.err
    assert lab.processes("sleep 1000") == []


def test_env_name_and_working_dir(lab: Lab) -> None:
    path = lab.task('echo "$A-$B"; pwd', nodes=1, more="working_dir: /var/tmp\nenv:\n  - A=1\n  - B\n")
    done = lab.apply(path, "-n", "renamed", "-e", 'A=it\'s "2"', env={"B": "from me"})
    assert (done.rc, done.out) == (0, 'it\'s "2"-from me\n/var/tmp\n')
    assert lab.run_json("renamed")["state"] == "done"
    missing = lab.apply(path)
    assert missing.rc == 2
    assert "B" in missing.err


def test_ctrl_c_without_a_terminal_stops_the_run(lab: Lab) -> None:
    path = lab.task("trap 'echo asked; exit 5' INT; echo up; while true; do sleep 0.1; done", name="interrupted")
    process = lab.cli.start("apply", "-f", path, "--fleet", lab.sandbox.fleet_file, "-y")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "asked" in out
    assert process.returncode == 130, err
    assert lab.processes("while true") == []


def test_ctrl_c_while_it_is_submitted_leaves_nothing(lab: Lab) -> None:
    path = lab.task("sleep 7654", name="early")
    process = lab.cli.start("apply", "-f", path, "--fleet", lab.sandbox.fleet_file, "-y")
    assert process.stderr is not None
    for line in process.stderr:  # the plan is shown, the playbook begins
        if line.startswith("1 "):
            break
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    assert process.wait(timeout=120) == 130, err
    assert "early was not started" in err
    lab.until(lambda: not lab.processes("sleep 7654|runner.pyz rank"))
    assert lab.apply(lab.task("true", name="next")).rc == 0, "no lease is left either"


def test_the_run_outlives_its_controller(lab: Lab) -> None:
    path = lab.task("echo up; sleep 3; echo still here", name="orphan")
    process = lab.cli.start("apply", "-f", path, "--fleet", lab.sandbox.fleet_file, "-y")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate()
    done = lab.cli("attach", "orphan", "--fleet", lab.sandbox.fleet_file)
    assert (done.rc, done.out) == (0, "up\nstill here\n")


def test_ssh_goes_through_the_jump_host(lab: Lab) -> None:
    fleet = ("--fleet", lab.sandbox.fleet_file)
    assert lab.cli("ssh", *fleet, "worker-1", "hostname").out == "worker-1\n"
    assert lab.cli("ssh", *fleet, "1", "exit 9").rc == 9
    wrong = lab.cli("ssh", *fleet, "worker-9", "true")
    assert wrong.rc == 2
    assert "did you mean worker-" in wrong.err


def test_secrets_stay_out_of_sight(lab: Lab) -> None:
    path = lab.task("sleep 5", name="secret", more="env:\n  - TOKEN\n")
    lab.apply(path, "-d", env={"TOKEN": "canary-77"})
    seen = lab.processes("canary-77")
    assert seen == [], "a secret is in somebody's argument list"
    for command in (
        ("run", "get", "secret", "--json"),
        ("ps", "--json", "-a"),
        ("fleet", "get", str(lab.sandbox.fleet_file), "--json"),
    ):
        fleet = () if command[0] == "fleet" else ("--fleet", lab.sandbox.fleet_file)
        assert "canary-77" not in lab.cli(*command, *fleet).out
    readable = lab.sandbox.exec("worker-0", "grep -rl canary-77 /var/lib/lambdactl 2>/dev/null", user="nobody").stdout
    assert readable == ""
