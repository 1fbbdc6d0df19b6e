"""Bad days on the sandbox: what breaks, the one line that says so, the exit code, and what is left behind (nothing)."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from tests.integration.conftest import STACK, Cli, Outcome, _up
from tests.integration.test_runs import Lab

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(900)]

NODE_TIMEOUT = ("--node-timeout", "6s")


@pytest.fixture(scope="module")
def broken(engine: None, cli: Cli) -> Iterator[Sandbox]:
    """A provisioned sandbox that these tests may break; each repairs it."""
    cluster = _up(workers=2, packages=STACK)
    try:
        done = cli("apply", "-f", cluster.fleet_file, "-y", timeout=600)
        assert done.rc == 0, done.err
        yield cluster
    finally:
        sandboxes.down(cluster.name)


@pytest.fixture
def lab(broken: Sandbox, cli: Cli, tmp_path: Path) -> Iterator[Lab]:
    yield Lab(broken, cli, tmp_path)
    sandboxes.up(broken.name)
    listed = json.loads(cli("ps", "--json", "--fleet", broken.fleet_file).out)
    for run in listed["runs"]:
        if run["state"] not in ("done", "failed", "stopped"):
            cli("stop", run["run_id"], "-x", "-y", "--fleet", broken.fleet_file)


def fleet_with(lab: Lab, **changes: str) -> Path:
    """A copy of the fleet file with some words replaced; the fleet keeps its name, so its host keys, too."""
    text = lab.sandbox.fleet_file.read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    path = lab.folder / "changed.dstack.yml"
    path.write_text(text)
    return path


def one_line(done: Outcome, pattern: str) -> str:
    """The line of stderr or stdout that matches; there is no traceback anywhere."""
    assert "Traceback" not in done.err + done.out
    found = re.search(pattern, done.err + done.out)
    assert found, done.err + done.out
    return found.group()


def peak_memory(pid: int) -> int:
    """The most memory that a running process ever held, in KB; 0 when it has ended.

    Of this very process: the rusage of waited-for children is the maximum over all earlier ones.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) if found else 0


def nothing_left(lab: Lab, pattern: str) -> None:
    lab.until(lambda: not lab.processes(f"{pattern}|runner.pyz (rank|agent)"), patience=60)


def test_jump_host_down(lab: Lab) -> None:
    lab.sandbox.stop("jump")
    done = lab.cli("apply", "-f", lab.sandbox.fleet_file, "-y")
    assert done.rc == 4
    one_line(done, r"[Jj]ump host 127\.0\.0\.1.*")
    task = lab.apply(lab.task("true"))
    assert task.rc == 4
    one_line(task, r"[Jj]ump host 127\.0\.0\.1.*")


def test_one_host_down_does_not_hide_the_other(lab: Lab) -> None:
    lab.sandbox.stop("worker-1")
    done = lab.cli("apply", "-f", lab.sandbox.fleet_file, "-y")
    assert done.rc == 4
    assert re.search(r"^worker-0 .* ready", done.out, re.MULTILINE)
    assert re.search(r"^worker-1 .* unreachable .*\w", done.out, re.MULTILINE)
    assert lab.apply(lab.task("echo fine", nodes=1)).out == "fine\n"
    short = lab.apply(lab.task("true"))
    assert short.rc == 3
    one_line(short, "asks for 2 nodes, but 1 of 2 in .* worker-1 does not take part: .*")


def test_wrong_key(lab: Lab) -> None:
    key = lab.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    path = fleet_with(lab, **{str(lab.sandbox.identity_file): str(key)})
    done = lab.cli("apply", "-f", path, "-y")
    assert done.rc == 4
    assert str(key) in one_line(done, r".*[Jj]ump host 127\.0\.0\.1.*")


def test_changed_host_key_is_refused_and_the_remedy_works(lab: Lab) -> None:
    remake = "rm /etc/ssh/ssh_host_*; ssh-keygen -A; systemctl restart ssh"
    lab.sandbox.exec("worker-1", remake, check=True)
    done = lab.cli("apply", "-f", lab.sandbox.fleet_file, "-y")
    assert done.rc == 4
    assert re.search(r"^worker-0 .* ready", done.out, re.MULTILINE)
    remedy = one_line(done, r"ssh-keygen -R \S+ -f \S+")
    subprocess.run(shlex.split(remedy), check=True, capture_output=True)
    again = lab.cli("apply", "-f", lab.sandbox.fleet_file, "-y")
    assert again.rc == 0, again.err
    assert lab.apply(lab.task("ssh -o BatchMode=yes $DSTACK_MASTER_NODE_IP true && echo trusted"), "--all").rc == 0


def test_two_hosts_of_one_name(lab: Lab) -> None:
    done = lab.cli("apply", "-f", fleet_with(lab, **{"worker-1": "worker-0"}), "-y")
    assert done.rc == 2
    one_line(done, r"changed.dstack.yml:\d+: .*worker-0.*line \d+")


def test_a_run_that_does_not_fit(lab: Lab) -> None:
    nodes = lab.apply(lab.task("true", nodes=3))
    assert nodes.rc == 3
    one_line(nodes, "asks for 3 nodes, but the fleet .* has 2")
    gpus = lab.apply(lab.task("true", more="resources:\n  gpu: nvidia:B200:8\n"))
    assert gpus.rc == 3
    one_line(gpus, "worker-0 .*GPU.*; worker-1 .*GPU")


def test_a_log_of_1_gb(lab: Lab) -> None:
    path = lab.task("head -c 1000000000 /dev/zero | tr '\\0' 'x' | fold -w 99", nodes=1, name="big")
    done = lab.apply(path, "-d")
    assert done.rc == 0, done.err
    copies = lab.folder / "copies"
    process = lab.cli.start("attach", "big", "--fleet", lab.sandbox.fleet_file, "--log-dir", copies)
    assert process.stdout is not None
    screen, total, peak = hashlib.sha256(), 0, 0
    while chunk := process.stdout.buffer.read1(1 << 20):  # type: ignore[attr-defined]  # a pipe's buffered reader has it
        screen.update(chunk)
        total += len(chunk)
        peak = max(peak, peak_memory(process.pid))
    assert process.wait(timeout=120) == 0
    assert total == 1_010_101_010 or total == 1_010_101_011
    with (copies / "rank-0.log").open("rb") as copy:
        assert hashlib.file_digest(copy, "sha256").digest() == screen.digest()
    assert 0 < peak < 400_000, "kilobytes: the log goes through, it is not collected"
    (copies / "rank-0.log").unlink()


def test_the_jump_host_fails_while_a_log_is_followed(lab: Lab) -> None:
    path = lab.task("i=0; while [ $i -lt 120 ]; do echo $i; i=$((i+1)); sleep 0.1; done", nodes=1, name="patient")
    process = lab.cli.start("apply", "-f", path, "--fleet", lab.sandbox.fleet_file, "-y")
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    lab.sandbox.kill("jump")
    time.sleep(3)
    lab.sandbox.start("jump")
    out = process.stdout.read()
    assert process.wait(timeout=120) == 0
    assert out == "".join(f"{n}\n" for n in range(1, 120))


def test_the_controller_is_killed_while_it_provisions(lab: Lab) -> None:
    process = lab.cli.start("apply", "-f", lab.sandbox.fleet_file, "-y", "--force")
    assert process.stderr is not None
    for line in process.stderr:
        if "openmpi" in line and "worker" in line and ": " in line and "runner" not in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    mine = str(lab.sandbox.fleet_file)

    def workers() -> list[str]:
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if "ansible-playbook" in line and mine in line]

    lab.until(lambda: not workers(), patience=60)
    done = lab.cli("apply", "-f", lab.sandbox.fleet_file, "-y", timeout=600)
    assert done.rc == 0, done.err
    assert lab.cli("apply", "-f", lab.sandbox.fleet_file, "-y").err.endswith("nothing to change.\n")


@pytest.mark.parametrize("how", ["kill", "pause", "restart"])
def test_a_worker_is_lost_during_a_run(lab: Lab, how: str) -> None:
    script = "echo up; sleep 1000"
    process = lab.cli.start("apply", "-f", lab.task(script), "--fleet", lab.sandbox.fleet_file, "-y", *NODE_TIMEOUT)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(1)
    getattr(lab.sandbox, how)("worker-1")
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert re.search(r"job failed: .*worker-1", err), err
    sandboxes.up(lab.sandbox.name)
    nothing_left(lab, "sleep 1000")
    assert lab.run_json("job")["state"] == "failed"
    assert lab.apply(lab.task("echo again", name="after"), "--all").rc == 0


def test_rank_0_is_lost_during_a_run(lab: Lab) -> None:
    script = "echo up; sleep 1000"
    process = lab.cli.start("apply", "-f", lab.task(script), "--fleet", lab.sandbox.fleet_file, "-y", *NODE_TIMEOUT)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(1)
    lab.sandbox.kill("worker-0")
    _out, err = process.communicate(timeout=180)
    assert process.returncode == 5, err
    lab.until(lambda: not [line for line in lab.processes("sleep 1000") if line.startswith("worker-1")], patience=60)
    sandboxes.up(lab.sandbox.name)
    nothing_left(lab, "sleep 1000")
    assert lab.apply(lab.task("echo again", name="after"), "--all").rc == 0
