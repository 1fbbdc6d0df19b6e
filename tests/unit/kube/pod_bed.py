"""Ranks of a run on Kubernetes as plain processes: the real entrypoint, in the shell that a test chooses.

Stands for the kubelet's part only: the folders under /lambdactl, the environment, a terminal, SIGTERM.
"""

from __future__ import annotations

import base64
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lambdactl import spec
from lambdactl.backends.kubernetes.keys import make_key
from lambdactl.backends.kubernetes.model import KubeRun
from lambdactl.backends.kubernetes.payload import config_map, secrets

RUN_ID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
OWNER = {"name": "demo", "uid": "1"}
PATIENCE = 60.0
# A terminal of its own for the shell, as a container's first process has it.
_CONTROLLING = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def kube_run(text: str = "", *, keys: bool | None = None, **changes: object) -> KubeRun:
    """A run of a task file's text (without its `type`)."""
    task = spec.loads(f"type: task\n{text}", kind="task")
    wants = task.nodes > 1 if keys is None else keys
    values: dict[str, object] = {
        "run_id": RUN_ID, "run_name": task.name or "demo", "task": task, "image": task.image or "debian:12",
        "owner": "ada@laptop", "fleet": "lambda-fleet", "submitted_at": 1_700_000_000.0,
        "login": make_key("login") if wants else None, "host": make_key("host") if wants else None,
    }  # fmt: skip
    return KubeRun(**(values | changes))  # type: ignore[arg-type]  # fields of any kind, by name


class Pod:
    """One rank; `log` is what it has written."""

    def __init__(
        self, run: KubeRun, rank: int, ip: str, *, shell: Sequence[str] = ("sh",), terminal: bool = True,
        environ: Mapping[str, str] | None = None, wrapper: Sequence[str] = (),
        before: Mapping[str, str | Path] | None = None,
    ) -> None:  # fmt: skip
        self.base = Path(tempfile.mkdtemp(prefix="pod-"))
        self.rank, self.ip = rank, ip
        self.log = b""
        for folder in ("bin", "pod", "keys", "run", "home"):
            (self.base / folder).mkdir()
        for name, text in config_map(run, OWNER)["data"].items():
            (self.base / "bin" / name).write_text(text)
        for name, what in (before or {}).items():
            if isinstance(what, Path):
                (self.base / name).symlink_to(what)
            else:
                (self.base / name).write_text(what)
        env = {"PATH": os.environ["PATH"], "HOME": str(self.base / "home"), "LAMBDACTL_DIR": str(self.base)}
        env |= {"LAMBDACTL_RANK": str(rank), "LAMBDACTL_NODE_IP": ip}
        env |= {"LAMBDACTL_MESSAGE_FILE": str(self.base / "message")}
        for secret in secrets(run, OWNER):
            values = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
            if secret["metadata"]["name"].endswith("-env"):
                env |= values
            elif secret["metadata"]["name"].endswith("-ssh"):
                for name, text in values.items():
                    (self.base / "keys" / name).write_text(text)
        argv = [*wrapper, *shell, str(self.base / "bin" / "entrypoint")]
        self.argv, self.env = argv, env | dict(environ or {})
        self._start(self.argv, self.env, terminal=terminal)

    def _start(self, argv: list[str], env: dict[str, str], *, terminal: bool) -> None:
        if terminal:
            ours, theirs = pty.openpty()
            argv = [sys.executable, "-c", _CONTROLLING, *argv]
            self.process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd="/")
            os.close(theirs)
        else:
            ours, theirs = os.pipe()
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env, cwd="/", start_new_session=True
            )
            os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, descriptor: int) -> None:
        while True:
            try:
                data = os.read(descriptor, 65536)
            except OSError:
                data = b""
            if not data:
                os.close(descriptor)
                return
            self.log += data

    def annotate(self, name: str, value: str) -> None:
        """What the kubelet does when an annotation of the pod changes."""
        new = self.base / f"{name}.new"
        new.write_text(value)
        new.replace(self.base / "pod" / name)

    def go(self, ips: Sequence[str]) -> None:
        """What the controller does when all ranks have addresses."""
        self.annotate("peers", "".join(f"{ip}\n" for ip in ips))
        self.annotate("go", "1")

    def terminate(self) -> None:
        """What the kubelet does when the pod is deleted."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The container's exit code."""
        code = self.process.wait(timeout=PATIENCE)
        self._reader.join(timeout=5)
        return 128 - code if code < 0 else code

    def text(self) -> str:
        """The log with the line ends of a container runtime's terminal."""
        return self.log.decode().replace("\r\n", "\n")

    def until(self, text: str) -> None:
        """Wait until the log has this."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.text():
            assert time.monotonic() < deadline, f"no {text!r} in: {self.text()}"
            time.sleep(0.02)

    def until_file(self, name: str) -> None:
        """Wait until there is a file below run/."""
        deadline = time.monotonic() + PATIENCE
        while not (self.base / "run" / name).exists():
            assert time.monotonic() < deadline, f"no {name}: {self.text()}"
            time.sleep(0.02)

    def file(self, name: str) -> str:
        """A file below run/."""
        return (self.base / "run" / name).read_text()

    def kill(self) -> None:
        """Leave nothing behind, whatever the test did."""
        mark = str(self.base).encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # sshd writes its title over its environment; its command line then has the folder.
                if mark in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue
        self.process.wait()
