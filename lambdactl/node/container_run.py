"""`runner.pyz container-prepare RUN TERMINAL` and `container-run RUN`: the two helpers of a rank in a container.

The supervisor starts both in the rank's control group. The first gets the image and makes the container, before the
startup gate, and says how far it is in JSON lines: {"pull": {...}}, {"note": text}, then {"ready": true} or
{"error": text}. The second stands for the commands: it starts the container, hands on signals, and ends with its exit
code. What both know is in `<run>/container.json`, by which `remove` finds what must go, whoever was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from . import (
    cgroup,
    container_argv,
    container_contents,
    container_dirs,
    container_engine,
    container_env,
    container_place,
    container_pull,
    paths,
    spec,
)
from .container import container_name, needed
from .errors import NodeError
from .processes import start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .container_engine import Engine

REMOVE_TIMEOUT = 60.0
RETURN_TIMEOUT = 60.0  # for an engine that is being restarted
POLL = 0.1
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
NEVER_STARTED = "0001-01-01"


def _record_path(run: str) -> str:
    return paths.run_dir(run) + "/container.json"


def record(run: str) -> dict[str, Any]:
    """What is known of the run's container on this node; {} when there is none."""
    value = paths.read_json(_record_path(run))
    return value if isinstance(value, dict) else {}


def _note(run: str, **changes: Any) -> dict[str, Any]:
    value = {**record(run), **changes}
    paths.write_json(_record_path(run), value)
    return value


def private_folder(run: str) -> str:
    """The run's folder for what only root and its container may read."""
    return paths.run_dir(run) + "/container"


def engine_of(known: dict[str, Any]) -> Engine:
    """The engine that a record names, without asking it."""
    return container_engine.Engine(str(known["engine"]), str(known["path"]), {})


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


# Preparing


def _forget_login(run: str) -> None:
    """The registry's login has served: nothing of it stays on the node."""
    shutil.rmtree(private_folder(run) + "/login", ignore_errors=True)
    path = paths.run_dir(run) + "/job.json"
    raw = paths.read_json(path)
    if isinstance(raw, dict) and isinstance(raw.get("container"), dict) and raw["container"].pop("registry_auth", None):
        paths.write_json(path, raw)


def _create(job: spec.Job, terminal: str) -> None:
    container = needed(job)
    folder = private_folder(job.run_id)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    engine = container_engine.choose(container.engine, container_engine.finish_query(container_engine.start_query()))
    client_env = container_pull.client_environment(job)
    login = container_pull.write_login(container, folder + "/login")
    try:
        image = container_pull.ensure(
            engine,
            container,
            {**client_env, **login},
            report=lambda amounts: _say(pull=amounts),
            note=lambda text: _say(note=text),
        )
    finally:
        _forget_login(job.run_id)
    place = container_place.make(job, engine, folder, terminal)
    image_dir = str((image.get("Config") or {}).get("WorkingDir") or "")
    variables, file = container_env.split(
        container_env.environment(job, container, gpus=bool(place.gpus), image_dir=image_dir)
    )
    place.variables = list(variables)
    if file:
        place.env_file = folder + "/env"
        paths.write_atomic(place.env_file, file.encode(), 0o400)
    name = container_name(job.run_id, job.rank)
    place.working_dir = container_dirs.told_working_dir(job, container, image_dir)
    _note(job.run_id, directory=container_dirs.working_dir(job, container, image_dir))
    _note(job.run_id, engine=engine.name, path=engine.path, name=name, slice=_slice(place.cgroup_parent))
    argv = container_argv.create(engine, job, container, place)
    done = subprocess.run(argv, env={**variables, **client_env}, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise NodeError("start-failed", f"the container cannot be made: {_last(done.stderr)}")
    container_contents.place(job, container, image, container_contents.ContainerFiles(engine, name, client_env))


def _slice(parent: str | None) -> str | None:
    return parent if parent is not None and parent.endswith(".slice") else None


def _last(text: bytes) -> str:
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    words = lines[-1] if lines else "no reason given"
    if words.startswith("See '") and len(lines) > 1:
        words = lines[-2]
    return words.replace("Error response from daemon: ", "").replace("Error: ", "")[:400]


def prepare(args: list[str]) -> int:
    """Get the image and make the container, saying so on standard output."""
    if len(args) != 2:
        raise NodeError("bad-request", "usage: runner.pyz container-prepare RUN TERMINAL")
    try:
        _create(spec.load(args[0]), args[1])
    except NodeError as error:
        _say(error=error.message)
        return 1
    except OSError as error:
        _say(error=f"the container cannot be prepared: {error.strerror or error} ({error.filename or 'no file'})")
        return 1
    _say(ready=True)
    return 0


# Running


class _Runner:
    """The container from its start to its end."""

    def __init__(self, run: str) -> None:
        self.run = run
        known = record(run)
        self.engine, self.name = engine_of(known), str(known["name"])
        self.env = container_pull.client_environment(spec.load(run))
        self._first: int | None = None
        self._waiting: list[int] = []
        for number in FORWARDED:
            signal.signal(number, self._forward)

    def _forward(self, number: int, _frame: object) -> None:
        """A stop signal goes to the process group of the container's first process, as on a host."""
        if self._first is None:
            self._waiting.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._first, number)

    def state(self) -> dict[str, Any]:
        """The engine's word on the container; {} when it knows none, or does not answer."""
        argv = container_argv.inspect(self.engine, self.name)
        done = subprocess.run(argv, env=self.env, capture_output=True, stdin=subprocess.DEVNULL)
        try:
            value = json.loads(done.stdout) if done.returncode == 0 else {}
        except ValueError:
            value = {}
        return value if isinstance(value, dict) else {}

    def run_to_end(self) -> int:
        """Start the container and stay; its exit code."""
        # A session of its own: signals for the rank's process group must not end the client.
        client = subprocess.Popen(
            container_argv.start(self.engine, self.name),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE if self._is_silent() else None,
            start_new_session=True,
        )
        while client.poll() is None and self._first is None:
            self._look()
            time.sleep(POLL)
        words = client.stderr.read() if client.stderr is not None else b""
        client.wait()
        return self._end(words)

    def _is_silent(self) -> bool:
        """Whether the commands' output goes around the client, so that what it writes are its own errors."""
        job = spec.load(self.run)
        return container_argv.runs_shell(job, needed(job))

    def _look(self) -> None:
        pid = int(self.state().get("Pid") or 0)
        if not pid:
            return
        _note(self.run, pid=pid, pid_started=start_time(pid), started=True)
        self._first = pid
        for number in self._waiting:
            self._forward(number, None)

    def _end(self, words: bytes) -> int:
        until = time.monotonic() + RETURN_TIMEOUT
        value = self.state()
        while (not value or value.get("Running")) and time.monotonic() < until:
            if not value and self._is_gone():
                break
            time.sleep(1.0)
            value = self.state()
        code = int(value.get("ExitCode") or 0) if value else 137
        if not value and self._first is not None:
            _note(self.run, outcome=_lost())
        elif str(value.get("StartedAt") or NEVER_STARTED).startswith(NEVER_STARTED):
            _note(self.run, outcome=_not_started(str(value.get("Error") or ""), words))
            code = code or 127
        elif value.get("OOMKilled") and code:
            _note(self.run, oom=True)
        remove(self.run)
        return min(code, 255)

    def _is_gone(self) -> bool:
        """Whether the engine answers, and has no such container: somebody has removed it."""
        argv = [*container_argv.client(self.engine), "ps", "--quiet"]
        return subprocess.run(argv, env=self.env, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def _lost() -> dict[str, Any]:
    text = "the container was removed by somebody else, or the engine lost it"
    return {"state": "failed", "reason": "signalled", "exit_code": 137, "message": text}


def _not_started(error: str, words: bytes) -> dict[str, Any]:
    text = error or _last(words)
    for found in ("OCI runtime create failed:", "unable to start container process:", "runc create failed:"):
        text = text.rpartition(found)[2]
    text = " ".join(text.split()).rpartition(": unknown")[0] or " ".join(text.split())
    message = f"the container could not be started: {text[-300:]}"
    return {"state": "failed", "reason": "start-failed", "exit_code": None, "message": message}


def run(args: list[str]) -> int:
    """Be the rank's commands: start the container, and end as it ends."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz container-run RUN")
    return _Runner(paths.run_id(args[0])).run_to_end()


# Removing


def kill_first(run: str) -> None:
    """SIGKILL to the container's first process, and with it to all others."""
    known = record(run)
    pid = known.get("pid")
    if isinstance(pid, int) and known.get("pid_started") and start_time(pid) == known["pid_started"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove(run: str) -> bool:
    """Leave no container of the run behind on this node, and none of its private files; True when that is so."""
    known = record(run)
    shutil.rmtree(private_folder(run), ignore_errors=True)
    if "engine" not in known or known.get("removed"):
        return True
    kill_first(run)
    argv = container_argv.remove(engine_of(known), str(known["name"]))
    try:
        done = subprocess.run(
            argv,
            env={"PATH": os.environ.get("PATH", ""), "HOME": "/root", "LC_ALL": "C"},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=REMOVE_TIMEOUT,
        )
        gone = done.returncode == 0 or b"o such container" in done.stderr or b"no container with" in done.stderr
    except (OSError, subprocess.TimeoutExpired):
        gone = False
    units = [paths.unit_name(run)]
    if known.get("slice"):
        units.append(str(known["slice"]))
        subprocess.run(["systemctl", "stop", "--no-block", units[1]], capture_output=True, check=False)
    cgroup.remove_empty(*units)
    if gone:
        _note(run, removed=True)
    return gone
