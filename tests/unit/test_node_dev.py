"""A dev environment on a node: when it is left alone (fake clock), and real SSH sessions, as a client makes them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.node import landing
from lambdactl.node.dev import settings
from lambdactl.node.errors import NodeError
from lambdactl.node.idle import Idleness
from lambdactl.run.dev import IDLE, UP
from tests.unit.node_bed import Bed

pytestmark = pytest.mark.timeout(180)


def test_idle_time_counts_from_the_end_of_the_last_session() -> None:
    idle = Idleness(100, 0)
    idle.opened(1, 10)
    idle.look({1}, 60)
    assert (idle.sessions, idle.idle(60), idle.is_over(1000)) == (1, 0, False)
    idle.look(set(), 70)
    assert (idle.sessions, idle.idle(80)) == (0, 10)
    assert not idle.is_over(169)
    assert idle.is_over(170)


def test_a_session_of_less_than_ten_seconds_does_not_count() -> None:
    idle = Idleness(100, 0)
    for moment in (20, 50, 90):
        idle.opened(moment, moment)
        idle.look({moment}, moment + 5)
        idle.look(set(), moment + 9)
    assert idle.is_over(100)


def test_nobody_is_thrown_out_in_the_middle_of_a_young_session() -> None:
    idle = Idleness(100, 0)
    idle.opened(1, 99)
    idle.look({1}, 101)
    assert not idle.is_over(101)
    idle.look({1}, 110)
    idle.look(set(), 111)
    assert not idle.is_over(200)
    assert idle.is_over(211)


def test_several_sessions_and_a_limit_that_changes() -> None:
    idle = Idleness(None, 0)
    idle.opened(1, 0)
    idle.opened(2, 0)
    idle.look({2}, 50)
    assert (idle.sessions, idle.is_over(1e9)) == (1, False)
    idle.look(set(), 60)
    assert not idle.is_over(1e9)
    idle.limit = 30
    assert idle.is_over(90)
    idle.restart(90)
    assert not idle.is_over(119)


def test_the_sessions_own_variables_stand_above_the_runs() -> None:
    given = {"TERM": "xterm", "SSH_TTY": "/dev/pts/1", "LC_LAMBDACTL_RUN": "mine", "PATH": "/bin", "LANG": "C"}
    assert landing.session_environment(given, {"PATH": "/run/bin", "LANG": "de", "LC_LAMBDACTL_RUN": "r"}) == {
        "PATH": "/run/bin", "LANG": "C", "LC_LAMBDACTL_RUN": "r", "TERM": "xterm", "SSH_TTY": "/dev/pts/1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "printed"),
    [("echo $PWD $0", "/usr/lib sh\n"), ("pwd # and no more", "/usr/lib\n"), (None, "login\n")],
)
def test_a_session_in_a_container_begins_in_its_directory(command: str | None, printed: str, tmp_path: Path) -> None:
    shell = tmp_path / "bash"
    shell.write_text('#!/bin/sh\n[ "$1" = -l ] && echo login\n')
    shell.chmod(0o755)
    environment = {"DSTACK_WORKING_DIR": "~/lib", "HOME": "/usr", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    argv = ["sh", "-c", landing.in_container(command)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (printed, "")


def test_an_image_without_an_sftp_server_says_so() -> None:
    line = landing.in_container(landing.SFTP_SERVERS[0])
    for path in landing.SFTP_SERVERS:
        line = line.replace(path, "/nowhere")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (127, "this image has no sftp-server; install openssh-sftp-server in it\n")


class Client:
    """An SSH client with a configuration as the alias has it, but for the route."""

    def __init__(self, bed: Bed, run: str, folder: Path) -> None:
        self.folder = folder
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        key = " ".join((folder / "key.pub").read_text().split()[:2])
        dev = bed.nodes[0].rank(run)["dev"]
        (folder / "known_hosts").write_text(f"lambdactl-{run} {dev['host_key']}\n")
        session = " ".join(bed.nodes[0].argv("session", run, f"'{key}'"))
        root = bed.nodes[0].root
        (folder / "config").write_text(
            f"Host it\n  User {dev['user']}\n  HostKeyAlias lambdactl-{run}\n  StrictHostKeyChecking yes\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
            f"  IdentityFile {folder}/key\n  IdentitiesOnly yes\n  ControlPath {folder}/c\n"
            f"  ProxyCommand env LAMBDACTL_ROOT={root} {session}\n"
        )

    def __call__(self, *words: str, stdin: bytes = b"", program: str = "ssh") -> subprocess.CompletedProcess[bytes]:
        argv = [program, "-F", str(self.folder / "config"), *words]
        return subprocess.run(argv, input=stdin, capture_output=True, timeout=60)

    def master(self) -> None:
        """Open the connection that others share; it stays in the background."""
        argv = ["ssh", "-F", str(self.folder / "config"), "-M", "-f", "-N", "it"]
        subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    if shutil.which("sshd", path=landing.SERVER_PATH) is None:
        pytest.fail("these tests need OpenSSH's server: apt-get install openssh-server")
    bed = Bed(tmp_path_factory.mktemp("dev"), sys.executable, 1)
    yield bed
    bed.close()


def start(bed: Bed, init: str = "true", **dev: Any) -> str:
    script = f"{init}\n{UP}\n{IDLE}\n"
    run = bed.start(script, dev={"ide": None, "inactivity": None, **dev}, env={"MINE": "a b\nc"})
    bed.until(run, 0, lambda value: (value.get("dev") or {}).get("up_at"))
    return run


def end(bed: Bed, run: str) -> dict[str, Any]:
    bed.nodes[0].call("stop", run=run, abort=True)
    value = bed.finish(run)
    bed.no_leftovers(run)
    return value


def test_sessions_are_in_the_run_and_end_with_it(bed: Bed, tmp_path: Path) -> None:
    run = start(bed, "echo made by init")
    client = Client(bed, run, tmp_path)
    script = b'printf "%s|" "$DSTACK_RUN_NAME" "$MINE" "$PWD"; cat <<< "$0"\n'
    done = client("it", "bash", "-s", stdin=script)
    assert done.stdout == f"test|a b\nc|{bed.base}|bash\n".encode(), done.stderr
    (tmp_path / "sent").write_bytes(bytes(range(256)) * 1000)
    batch = f"put {tmp_path}/sent received\nls\n".encode()
    done = client("-b", "-", "it", stdin=batch, program="sftp")
    assert done.returncode == 0, done.stderr
    assert (bed.base / "received").read_bytes() == (tmp_path / "sent").read_bytes()
    client.master()
    session = subprocess.Popen(
        ["ssh", "-F", client.folder / "config", "it", "echo on; exec sleep 1000"], stdout=subprocess.PIPE
    )
    assert session.stdout is not None
    assert session.stdout.readline() == b"on\n"
    assert bed.nodes[0].rank(run)["dev"]["sessions"] == 1
    assert b"lambdactl-up" not in bed.nodes[0].log(run)
    end(bed, run)
    assert session.wait(30) == 255
    session.stdout.close()
    refused = client("-S", "none", "it", "true")
    assert refused.returncode == 255
    assert b"test does not run on this node any more" in refused.stderr


def test_a_stop_asks_what_sessions_have_started(bed: Bed, tmp_path: Path) -> None:
    run = start(bed)
    client = Client(bed, run, tmp_path)
    work = f"trap 'echo saved > {tmp_path}/saved; exit' TERM; echo on; while :; do sleep 0.1; done"
    session = subprocess.Popen(["ssh", "-F", client.folder / "config", "it", work], stdout=subprocess.PIPE)
    assert session.stdout is not None
    assert session.stdout.readline() == b"on\n"
    bed.nodes[0].call("stop", run=run)
    value = bed.finish(run)
    assert (value["state"], value["reason"]) == ("stopped", "stopped-by-user")
    assert (tmp_path / "saved").read_text() == "saved\n"
    session.wait(30)
    session.stdout.close()
    bed.no_leftovers(run)


def test_it_ends_when_it_is_left_alone_and_not_before(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(bed, inactivity=600)
    client = Client(bed, run, tmp_path)
    client.master()
    bed.nodes[0].call("update", run=run, inactivity=0.5)
    time.sleep(2)
    value = bed.nodes[0].rank(run)
    assert (value["state"], value["dev"]["inactivity"], value["dev"]["idle_since"]) == ("running", 0.5, None)
    client("-O", "exit", "it")
    value = bed.finish(run)
    assert (value["state"], value["reason"]) == ("stopped", "inactivity")
    assert value["message"] == "nobody was connected for 0.5 s (inactivity_duration)"
    assert value["gang"]["reason"] == "inactivity"
    bed.no_leftovers(run)


def test_a_failing_init_ends_it_with_its_exit_code(bed: Bed) -> None:
    run = bed.start(f"exit 7\n{UP}\n{IDLE}\n", dev={})
    value = bed.finish(run)
    assert (value["state"], value["exit_code"], value["dev"]["up_at"]) == ("failed", 7, None)


@pytest.mark.parametrize("dev", [[], {"inactivity": -1}, {"inactivity": True}, {"ide": 3}])
def test_what_is_no_dev_environment_is_refused(dev: object) -> None:
    with pytest.raises(NodeError, match=r"dev|inactivity"):
        settings(dev)


@pytest.mark.parametrize("key", ["ssh-ed25519 x", "ssh-rsa AAAA", f"ssh-ed25519 {'A' * 68}\nssh-ed25519 {'B' * 68}"])
def test_a_key_that_is_none_lets_nobody_in(bed: Bed, key: str) -> None:
    run = start(bed)
    done = bed.nodes[0].runner("session", run, key)
    assert done.returncode != 0
    assert b"no public key" in done.stderr
    end(bed, run)
