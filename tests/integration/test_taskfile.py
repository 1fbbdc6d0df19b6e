"""The rest of the task file on the sandbox: Git, sshd behind the jump host, mount namespaces, Open MPI, all real."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.sandbox import Sandbox
from tests.integration.conftest import Cli, Outcome

pytestmark = pytest.mark.sandbox

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Desk:
    """A user's folder with task files, beside the provisioned sandbox."""

    def __init__(self, sandbox: Sandbox, cli: Cli, folder: Path) -> None:
        self.sandbox, self.cli, self.folder = sandbox, cli, folder

    def apply(self, path: Path, *options: str, **keywords: Any) -> Outcome:
        return self.cli("apply", "-f", path, "--fleet", self.sandbox.fleet_file, "-y", *options, **keywords)

    def task(self, text: str) -> Path:
        path = self.folder / "task.dstack.yml"
        path.write_text("type: task\n" + text)
        return path

    def on(self, node: str, command: str) -> str:
        return str(self.sandbox.exec(node, ["sh", "-c", command]).stdout)


@pytest.fixture
def desk(provisioned: Sandbox, cli: Cli, tmp_path: Path) -> Iterator[Desk]:
    yield Desk(provisioned, cli, tmp_path)
    listed = json.loads(cli("ps", "--json", "--fleet", provisioned.fleet_file).out)
    for run in listed["runs"]:
        if run["state"] not in ("done", "failed", "stopped"):
            cli("stop", run["run_id"], "-x", "-y", "--fleet", provisioned.fleet_file)


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_the_project_example_runs_and_what_is_unchanged_is_not_sent_again(desk: Desk) -> None:
    project = desk.folder / "project"
    shutil.copytree(EXAMPLES / "project", project)
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "one")
    done = desk.apply(project / "project.dstack.yml", "--all")
    assert done.rc == 0, done.err
    assert sorted(done.out.splitlines()) == ["0: hello from rank 0 of 2", "1: hello from rank 1 of 2"]
    assert re.search(r"^sent \d+\w+, \d+\w+ from node to node\.$", done.err, re.MULTILINE), done.err
    for rank, node in enumerate(desk.sandbox.workers):
        assert desk.on(node.name, "cat /srv/project/report.txt") == f"hello from rank {rank} of 2\n"
        assert desk.on(node.name, "ls -A /data") == "", "only the run sees the mount"
        assert desk.on(node.name, "stat -c '%U %a' ~ubuntu/.config/project.ini") == "ubuntu 644\n"
        assert "ubuntu" not in desk.on(node.name, "stat -c %U /var/lib/lambdactl/blobs/*")
    (project / "report.py").write_text("print('changed, not committed')\n")
    done = desk.apply(project / "project.dstack.yml")
    assert (done.rc, done.out) == (0, "changed, not committed\n")
    done = desk.apply(project / "project.dstack.yml")
    assert done.rc == 0
    assert "the nodes have every file already" in done.err


def test_mpirun_sees_the_volumes_of_every_node(desk: Desk) -> None:
    path = desk.task(
        "nodes: 2\nstartup_order: workers-first\nstop_criteria: master-done\n"
        "volumes: ['/srv/mpi:/mnt/mpi']\ncommands:\n"
        "  - hostname > /mnt/mpi/name\n"
        "  - if [ $DSTACK_NODE_RANK = 1 ]; then sleep infinity; fi\n"
        "  - mpirun --hostfile $DSTACK_MPI_HOSTFILE -n 2 -N 1 sh -c 'echo $(hostname) $(cat /mnt/mpi/name) $(id -un)'\n"
    )
    done = desk.apply(path)
    assert done.rc == 0, done.err
    assert sorted(done.out.splitlines()) == ["worker-0 worker-0 ubuntu", "worker-1 worker-1 ubuntu"]


def test_a_port_of_rank_0_is_here_while_attached(desk: Desk) -> None:
    serve = "cd $(mktemp -d) && echo served > f && exec python3 -m http.server 8765"
    path = desk.task(f"name: web\nports: ['*:8765']\ncommands: ['{serve}']\n")
    assert desk.apply(path, "-d").rc == 0
    attached = desk.cli.start("attach", "web", "--fleet", desk.sandbox.fleet_file)
    assert attached.stderr is not None
    match = re.search(r"(http://127\.0\.0\.1:\d+) is port 8765 of worker-0", attached.stderr.readline())
    assert match
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"{match[1]}/f", timeout=10) as answer:
                assert answer.read() == b"served\n"
                break
        except OSError:
            continue
    else:
        pytest.fail("nothing was served")
    taken = desk.cli("attach", "web", "--fleet", desk.sandbox.fleet_file, "-p", f"{match[1].rpartition(':')[2]}:8765")
    assert taken.rc == 2
    assert "is taken" in taken.err
    attached.terminate()
    attached.communicate(timeout=60)
    assert desk.cli("stop", "web", "-y", "--fleet", desk.sandbox.fleet_file).rc == 0


def test_the_groups_example_and_arguments_and_secrets(desk: Desk) -> None:
    done = desk.apply(EXAMPLES / "sandbox-groups.dstack.yml")
    assert (done.rc, done.out) == (0, "hello from rank 1\n\n"), done.err
    canary = "canary-4711"
    assert desk.cli("secret", "set", "token", stdin=canary).rc == 0
    path = desk.task(
        "name: said\nenv: ['TOKEN=x-${{ secrets.token }}']\ntags: {team: red}\n"
        "commands: ['echo ${{ run.args }}; echo ${#TOKEN}']\n"
    )
    done = desk.cli("apply", "-f", path, "--fleet", desk.sandbox.fleet_file, "-y", "--", "two  words", "$HOME")
    assert (done.rc, done.out) == (0, "two  words $HOME\n13\n"), done.err
    assert desk.cli("secret", "delete", "token").rc == 0
    shown = desk.cli("run", "get", "said", "--json", "--fleet", desk.sandbox.fleet_file).out
    assert json.loads(shown)["tags"] == {"team": "red"}
    assert canary not in shown + done.err
    kept = desk.on("worker-0", f"grep -rl {canary} /var/lib/lambdactl | xargs stat -c '%U %a'")
    assert set(kept.splitlines()) == {"root 600"}, "job.json alone holds a run's environment"


def test_a_node_starts_a_scheduled_run_by_itself(desk: Desk) -> None:
    fleet = ("--fleet", desk.sandbox.fleet_file)
    done = desk.apply(EXAMPLES / "nightly.dstack.yml")
    assert done.rc == 0, done.err
    assert re.search(r"nightly is started first at \d{4}-\d\d-\d\d (02:30|12:00) UTC", done.err)
    assert desk.cli("stop", "nightly", "-y", *fleet).rc == 0
    # The same every minute, until the timer has fired once.
    text = (EXAMPLES / "nightly.dstack.yml").read_text().replace('"30 2 * * *"', '"* * * * *"')
    done = desk.apply(desk.task(text.replace("type: task\n", "")))
    assert done.rc == 0, done.err
    assert "lambdactl-schedule-nightly.timer" in desk.on("worker-0", "systemctl list-timers --no-pager")
    deadline = time.monotonic() + 240
    while "was started at" not in desk.cli("ps", "--json", "-a", *fleet).out:
        assert time.monotonic() < deadline
        time.sleep(2)
    followed = desk.cli("logs", "nightly", "-f", "--all", *fleet)
    assert sorted(followed.out.splitlines()) == ["0: rank 0 at work", "1: rank 1 at work"]
    states = {run["state"]: run for run in json.loads(desk.cli("ps", "--json", "-a", *fleet).out)["runs"]}
    assert "was started at" in states["scheduled"]["message"]
    again = desk.apply(EXAMPLES / "nightly.dstack.yml")
    assert again.rc == 3
    assert "a run named nightly is scheduled on worker-0" in again.err
    stopped = desk.cli("stop", "nightly", "-y", *fleet)
    assert stopped.rc == 0
    assert "the schedule of nightly is removed" in stopped.err
    left = "ls -A /etc/systemd/system /var/lib/lambdactl/schedules | grep nightly; systemctl list-timers 'lambdactl*'"
    assert "nightly" not in desk.on("worker-0", left)


def test_the_examples_of_instances_secrets_retry_and_profiles(desk: Desk) -> None:
    fleet = ("--fleet", desk.sandbox.fleet_file, "-y")
    done = desk.apply(EXAMPLES / "sandbox-pinned.dstack.yml")
    assert (done.rc, done.out) == (0, "on worker-1\n"), done.err
    missing = desk.apply(EXAMPLES / "sandbox-secrets.dstack.yml")
    assert missing.rc == 2
    assert "hub_token" in missing.err
    assert desk.cli("secret", "set", "hub_token", stdin="canary-47").rc == 0
    file = EXAMPLES / "sandbox-secrets.dstack.yml"
    done = desk.cli("apply", "-f", file, *fleet, "--", "--epochs", "3", "two words")
    assert desk.cli("secret", "delete", "hub_token").rc == 0
    said = ["a token of 9 characters", "argument: --epochs", "argument: 3", "argument: two words"]
    assert (done.rc, done.out.splitlines()) == (0, said), done.err
    done = desk.apply(EXAMPLES / "sandbox-retry.dstack.yml")
    assert (done.rc, done.out.splitlines()) == (0, ["step 1, then a crash", "step 2, from the checkpoint"]), done.err
    done = desk.apply(EXAMPLES / "profiles/task.dstack.yml")
    assert (done.rc, done.out) == (0, "profiled\n"), done.err
    assert re.search(r"Max duration +10m", done.err)
    named = desk.apply(EXAMPLES / "profiles/task.dstack.yml", "--profile", "overnight")
    assert re.search(r"Max duration +12h", named.err), named.err
    runs = json.loads(desk.cli("ps", "--json", "-a", *fleet[:2]).out)["runs"]
    assert [run["tags"] for run in runs if run["name"] == "profiled"].count({"queue": "night"}) == 1


def test_a_python_of_the_hosts_own_is_a_virtual_environment_or_one_sentence(desk: Desk) -> None:
    """Debian's Python 3.11 has no venv by itself; the sandbox' workers are Debian 12."""
    path = desk.task("name: own\npython: '3.11'\ninstances: [worker-0]\ncommands: [python -V, command -v python pip]\n")
    refused = desk.apply(path)
    assert refused.rc == 3
    assert "worker-0 has Python 3.11 without its module venv, and no uv" in refused.err
    install = "DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3.11-venv"
    desk.on("worker-0", f"(apt-get -qq update && {install}) >/dev/null")  # the image has no lists of packages
    done = desk.apply(path)
    assert done.rc == 0, done.err
    version, *programs = done.out.splitlines()
    assert version.startswith("Python 3.11.")
    assert all("/lambdactl/venv-" in program for program in programs)
    assert desk.on("worker-0", "ls /home/ubuntu/.cache/lambdactl") == ""


def test_what_cannot_be_delivered_is_one_sentence_and_reserves_nothing(desk: Desk) -> None:
    done = desk.apply(desk.task("files: [absent]\ncommands: ['true']\n"))
    assert done.rc == 2
    assert "task.dstack.yml:2: 'files' names absent, which is not a file or folder on this machine" in done.err
    done = desk.apply(desk.task("volumes: ['models:/models']\ncommands: ['true']\n"))
    assert done.rc == 2
    assert "network volume models" in done.err
    (desk.folder / "up").mkdir()
    (desk.folder / "up" / "f").write_text("x")
    done = desk.apply(desk.task("files: ['up:/proc/nowhere']\ncommands: ['true']\n"))
    assert done.rc == 1
    assert re.search(r"rank 0 on worker-0: .*/proc/nowhere", done.err)
    assert "Traceback" not in done.err
