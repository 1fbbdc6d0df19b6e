"""Dev environments on the sandbox, with OpenSSH's client as an IDE uses it: through the alias, behind the jump host."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.sandbox import Sandbox
from tests.integration.conftest import Cli, Outcome

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/dev-environment.dstack.yml"
USERS = "# my own\nHost elsewhere\n  User me\n"


class Desk:
    """A machine with a home of its own: its ssh_config, the command line and an SSH client."""

    def __init__(self, sandbox: Sandbox, cli: Cli, home: Path) -> None:
        self.sandbox = sandbox
        self.cli = cli
        self.home = home
        self.config = home / ".ssh/config"
        self.config.parent.mkdir(mode=0o700, parents=True)
        self.config.write_text(USERS)
        self.config.chmod(0o600)
        self.env = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")}

    def write(self, name: str, more: str = "") -> Path:
        path = self.home / f"{name}.dstack.yml"
        path.write_text(f"type: dev-environment\nname: {name}\n{more}")
        return path

    def __call__(self, *argv: str | Path) -> Outcome:
        return self.cli(*argv, "--fleet", self.sandbox.fleet_file, env=self.env)

    def apply(self, path: Path, *options: str) -> Outcome:
        return self("apply", "-f", path, "-y", *options)

    def get(self, run: str) -> dict[str, Any]:
        done = self("run", "get", run, "--json")
        assert done.rc == 0, done.err
        return json.loads(done.out)

    def ssh(self, *argv: str, stdin: str = "", program: str = "ssh") -> subprocess.CompletedProcess[str]:
        """OpenSSH finds the home in passwd, not in $HOME: so it is told which configuration is its user's."""
        argv = (program, "-F", str(self.config), *argv)
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=120)

    def hold(self, *argv: str) -> subprocess.Popen[str]:
        """A connection that stays; returns once it stands (PermitLocalCommand tells)."""
        told = ("-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo stands")
        held = subprocess.Popen(
            ["ssh", "-F", str(self.config), *told, "-N", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert held.stdout is not None
        assert held.stdout.readline() == "stands\n"
        return held

    def processes(self, pattern: str) -> str:
        return self.sandbox.exec("worker-0", ["pgrep", "-af", pattern]).stdout

    def until(self, condition: Callable[[], Any], patience: float = 90) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.3)


@pytest.fixture
def desk(provisioned: Sandbox, cli: Cli, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(provisioned, cli, tmp_path / "home")
    yield desk
    for run in json.loads(desk("ps", "--json").out)["runs"]:
        if run["state"] not in ("done", "failed", "stopped"):
            desk("stop", run["run_id"], "-x", "-y")


def close(held: subprocess.Popen[str]) -> None:
    held.terminate()
    held.wait(30)
    assert held.stdout is not None
    held.stdout.close()


def test_the_example_is_up_and_an_ide_can_work_in_it(desk: Desk, tmp_path: Path) -> None:
    done = desk.apply(EXAMPLE, "-d", "-e", 'MINE=it\'s "me"')
    assert done.rc == 0, done.err
    assert done.out.startswith("Python 3.")
    assert "VS Code: vscode://vscode-remote/ssh-remote+devbox/home/ubuntu\nSSH: ssh devbox\n" in done.out
    assert desk.config.read_text() == f"Include {desk.home}/.ssh/lambdactl/config\n{USERS}"

    # What an IDE does: one connection that others share, a script on standard input, a server that stays behind.
    desk.until(lambda: desk.ssh("devbox", "true").returncode == 0)
    script = 'echo "$DSTACK_RUN_NAME|$DSTACK_NODES_NUM|$MINE|$PWD|$(id -un)"; grep -c lambdactl- /proc/self/cgroup'
    assert (
        desk.ssh("devbox", "bash", "-s", stdin=script).stdout.splitlines()[0]
        == 'devbox|1|it\'s "me"|/home/ubuntu|ubuntu'
    )
    control = str(tmp_path / "c")
    master = desk.hold("-M", "-S", control, "devbox")
    server = "nohup python3 -u -m http.server --bind 127.0.0.1 8765 >/dev/null 2>&1 & echo started"
    assert desk.ssh("-S", control, "devbox", "sh", stdin=server).stdout == "started\n"
    assert desk.ssh("-S", control, "-tt", "devbox", "tty").stdout.startswith("/dev/pts/")
    assert "lambdactl-" in desk.ssh("-S", control, "devbox", "cat /proc/$PPID/cgroup").stdout
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    desk.ssh("-S", control, "-O", "forward", "-L", f"{port}:127.0.0.1:8765", "devbox")
    desk.until(lambda: _get(port).startswith("HTTP/1.0 200"))

    # SFTP and scp, with something of size.
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(bytes(range(256)) * 8192)
    assert desk.ssh("-b", "-", "devbox", stdin=f"put {sent} here\n", program="sftp").returncode == 0
    assert desk.ssh("devbox:here", str(back), program="scp").returncode == 0
    assert back.read_bytes() == sent.read_bytes()
    desk.until(lambda: desk.get("devbox")["dev"]["sessions"] == 1)

    # The laptop sleeps: its connection is gone without a word. The server is still there, and so is the alias.
    master.send_signal(signal.SIGKILL)
    close(master)
    assert "8765" in desk.processes("http.server")
    assert desk.ssh("devbox", "echo again").stdout == "again\n"

    # The same file again: not a second run, and the limit can be changed in place.
    text = EXAMPLE.read_text().replace("inactivity_duration: 2h", "inactivity_duration: 3h")
    (tmp_path / "again.yml").write_text(text)
    again = desk.apply(tmp_path / "again.yml", "-d")
    assert (again.rc, "inactivity_duration is 3h00m now" in again.err) == (0, True), again.err
    assert desk.get("devbox")["dev"]["inactivity"] == 3 * 3600
    (tmp_path / "other.yml").write_text(text.replace("python3 --version", "sleep 0"))
    other = desk.apply(tmp_path / "other.yml", "-d")
    assert (other.rc, "only 'inactivity_duration' can be changed" in other.err) == (3, True), other.err

    # The end: nothing is left, neither there nor here.
    held = desk.hold("devbox")
    assert desk("stop", "devbox", "-y").rc == 0
    held.wait(60)
    close(held)
    assert desk.processes("http.server|sshd -i|tail -f /dev/null") == ""
    assert desk.config.read_text() == USERS
    assert "devbox" not in (desk.home / ".ssh/lambdactl/config").read_text()


def _get(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return client.recv(64).decode()
    except OSError:
        return ""


def test_a_session_keeps_it_alive_and_its_end_does_not(desk: Desk) -> None:
    assert desk.apply(desk.write("short", "inactivity_duration: 1h\n"), "-d").rc == 0
    held = desk.hold("short")
    assert desk.apply(desk.write("short", "inactivity_duration: 3s\n"), "-d").rc == 0
    time.sleep(12)  # longer than the limit, and than the ten seconds before which a session does not count
    shown = desk.get("short")
    assert (shown["state"], shown["dev"]["sessions"], shown["dev"]["idle_since"]) == ("running", 1, None)
    close(held)
    desk.until(lambda: desk.get("short")["state"] == "stopped")
    shown = desk.get("short")
    assert (shown["reason"], shown["exit_code"]) == ("inactivity", 0)
    assert shown["message"] == "nobody was connected for 3 s (inactivity_duration)"
    # It ended without us; the next look sweeps the alias, and with the last one the line.
    assert "Host short" in (desk.home / ".ssh/lambdactl/config").read_text()
    assert "inactivity_duration" in desk("ps", "-a").out
    assert desk.config.read_text() == USERS


def test_attach_restores_it_on_another_machine_and_counts_as_being_there(
    desk: Desk, provisioned: Sandbox, cli: Cli, tmp_path: Path
) -> None:
    path = desk.write("moved", "ide: zed\nworking_dir: /tmp/a b\ninit: ['echo made $PWD']\ninactivity_duration: 1h\n")
    first = cli.start("apply", "-f", path, "--fleet", provisioned.fleet_file, "-y", env=desk.env)
    assert first.stdout is not None
    lines = [first.stdout.readline() for _ in range(3)]
    assert lines == ["made /tmp/a b\n", "Zed: zed://ssh/moved/tmp/a%20b\n", "SSH: ssh moved\n"]
    first.kill()  # the controller is gone; the environment needs none
    first.communicate()
    other = Desk(provisioned, cli, tmp_path / "other")
    attached = cli.start("attach", "moved", "--fleet", provisioned.fleet_file, "-y", env=other.env)
    assert attached.stdout is not None
    assert sorted(attached.stdout.readline() for _ in range(3)) == sorted(lines)
    assert other.ssh("moved", "pwd").stdout == "/tmp/a b\n"
    desk.until(lambda: other.get("moved")["dev"]["sessions"] >= 1)
    attached.send_signal(signal.SIGINT)  # without a terminal: detach from what another command started
    _, err = attached.communicate(timeout=60)
    assert (attached.returncode, "detached" in err) == (0, True), err
    assert other("ssh-config", "--remove").rc == 0
    assert other.config.read_text() == USERS
    assert desk.get("moved")["state"] == "running"


def test_an_init_that_fails_is_the_exit_code(desk: Desk) -> None:
    done = desk.apply(desk.write("broken", "init: ['echo before', 'exit 9', 'echo after']\n"), "-d")
    assert (done.rc, done.out) == (9, "before\n"), done.err
    assert "broken failed" in done.err
    assert not (desk.home / ".ssh/lambdactl/config").exists()


def test_one_that_fails_is_tried_again(desk: Desk) -> None:
    first = "test -e /tmp/tried || { touch /tmp/tried; echo in vain; exit 4; }"
    desk.sandbox.exec("worker-0", "rm -f /tmp/tried")
    done = desk.apply(desk.write("again", f"retry: true\ninit: ['{first}', 'echo at last']\n"), "-d")
    assert done.rc == 0, done.err
    assert done.out.splitlines()[:2] == ["in vain", "at last"]
    assert "attempt 1 of again failed" in done.err
    assert "again is up on worker-0." in done.err
    assert desk.ssh("again", "echo inside").stdout == "inside\n"
    assert desk.config.read_text().startswith("Include ")
    assert desk.get("again")["attempt"] == 2


def test_plain_ansible_brings_one_up(desk: Desk) -> None:
    path = desk.write("played", "init: ['echo from init']\n")
    play = ["-i", str(desk.sandbox.fleet_file), "-e", f"task_file={path}"]
    done = desk.cli("playbook", "run", "run_task", "--", *play, env=desk.env)
    assert done.rc == 0, done.out + done.err
    assert "from init" in done.out
    assert "played is up on worker-0" in done.out
    assert desk.get("played")["dev"]["up_at"]
