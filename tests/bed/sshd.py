"""One sshd process with its own configuration, host keys and log, run without a service manager."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
_CONNECTION = re.compile(r"^Connection from \S+ port (\d+) on (\S+) port \d+")
_ACCEPTED = re.compile(r"^Accepted \S+ for \S+ from \S+ port (\d+)")
_FORWARD = re.compile(r"server_request_direct_tcpip: originator .* target (\S+) port \d+")

# What a distribution ships, except where a process without PAM and without a service manager needs otherwise.
COMMON = {
    "UsePAM": "no",
    "UseDNS": "no",
    "PermitRootLogin": "prohibit-password",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
    "StrictModes": "no",
    "PidFile": "none",
    "LogLevel": "VERBOSE",
    "PrintMotd": "no",
    "PrintLastLog": "no",
}


def free_port(address: str) -> int:
    """Return a TCP port that is free on this address now."""
    with socket.socket() as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Generate a key pair at this path, replacing what is there."""
    path.unlink(missing_ok=True)
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", f"bed-{path.name}", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return path


class Sshd:
    """An sshd listening on one address and port; stop() leaves no process of its sessions behind."""

    def __init__(self, directory: Path, name: str, address: str, *, authorized_keys: Path, listen: str = "") -> None:
        self.name = name
        self.address = address
        self.port = free_port(listen or address)
        self.log = directory / f"{name}.log"
        self.config = directory / f"{name}.conf"
        self.host_key = make_key(directory / f"{name}_ed25519")
        self.options: dict[str, str] = dict(COMMON)
        self.options |= {
            "ListenAddress": listen or address,
            "Port": str(self.port),
            "HostKey": str(self.host_key),
            "AuthorizedKeysFile": str(authorized_keys),
        }
        self.matches: dict[str, dict[str, str]] = {}  # options of connections that a criterion of `Match` holds for
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until the port answers."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation folder
        blocks = [self.options, *({"Match": criterion, **options} for criterion, options in self.matches.items())]
        self.config.write_text("".join(f"{key} {value}\n" for block in blocks for key, value in block.items()))
        with self.log.open("ab") as log:
            begin = log.tell()  # what an earlier start of this server wrote says nothing about this one
            argv = [SSHD, "-D", "-e", "-f", str(self.config)]
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(400):
            said = self.log.read_bytes()[begin:]
            if self._process.poll() is not None:
                raise RuntimeError(f"sshd {self.name} ended at once: {said.decode(errors='replace')}")
            if b"Server listening" in said:
                return
            time.sleep(0.01)
        raise RuntimeError(f"sshd {self.name} does not answer: {self.log.read_text()}")

    @property
    def pid(self) -> int:
        """The listener's process id; it must be started."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Stop the listener and every session below it."""
        if self._process is None:
            return
        kill_all(descendants(self._process.pid))
        self._process.kill()
        self._process.wait()
        self._process = None

    def sessions(self) -> list[int]:
        """Processes that serve open connections."""
        return [] if self._process is None else descendants(self._process.pid)

    def drop_sessions(self) -> None:
        """Cut every open connection, as a dead link does; the listener stays."""
        kill_all(self.sessions())

    def restart_with_new_host_key(self, kind: str = "ed25519") -> None:
        """Come back with another identity on the same port, as a reinstalled machine does."""
        self.stop()
        make_key(self.host_key, kind=kind)
        self.log.write_text("")
        self.start()

    def connections(self) -> int:
        """How many TCP connections this sshd has accepted."""
        return sum(1 for line in self._lines() if _CONNECTION.match(line))

    def logins(self) -> Counter[str]:
        """Successful logins by the server address that the client reached."""
        reached: dict[str, list[str]] = {}  # one source port serves several destinations, also at the same time
        found: Counter[str] = Counter()
        for line in self._lines():
            if match := _CONNECTION.match(line):
                reached.setdefault(match[1], []).append(match[2])
            elif match := _ACCEPTED.match(line):
                found[reached[match[1]].pop(0)] += 1
        return found

    def forwards(self) -> Counter[str]:
        """Connections that clients asked for, by target address; only logged at DEBUG1."""
        return Counter(match[1] for line in self._lines() if (match := _FORWARD.search(line)))

    def _lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()


def descendants(root: int) -> list[int]:
    """Process ids below this one, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def kill_all(pids: list[int]) -> None:
    """SIGKILL these processes; those that are gone already do not matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
