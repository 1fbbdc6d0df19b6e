"""Starting a rank's main process so that it outlives whoever asked for it: a systemd service, else a guarded daemon."""

from __future__ import annotations

import os
import select
import shutil
import subprocess

from . import paths, repair, share
from .errors import NodeError
from .spec import Job

READY_TIMEOUT = 30.0


def properties(job: Job, runner: list[str]) -> dict[str, str]:
    """The unit's properties; a property that is set several times has its values on lines of their own.

    KillMode=mixed: whoever stops the unit lets the supervisor do it in order; once the supervisor is gone, everything
    left in the group is killed at once. OOMPolicy=continue: the supervisor reports an out-of-memory kill itself.
    """
    memory = job.memory_max()
    # A container has a device list of its own, made by its engine, which must not be larger than its unit's.
    gpus = None if job.container is not None else job.gpus or []
    return {
        "KillMode": "mixed",
        "TimeoutStopSec": str(int(job.stop_grace) + 15),
        "ExecStopPost": " ".join([*runner, "post", job.run_id]),
        "OOMPolicy": "continue",
        "Delegate": "yes",
        "TasksMax": "infinity",
        "LimitMEMLOCK": "infinity",
        "LimitNOFILE": "1048576",
        "LimitSTACK": "8388608:infinity",
        "LimitCORE": "0",
        **({"MemoryMax": str(memory)} if memory else {}),
        **share.unit_properties(job.share, gpus),
    }


def systemd_argv(job: Job, runner: list[str]) -> list[str]:
    """The systemd-run command line that starts a rank and returns once it is supervised."""
    argv = ["systemd-run", "--quiet", "--collect", f"--unit={paths.unit_name(job.run_id)}", "--service-type=notify"]
    argv.append(f"--description=lambdactl: rank {job.rank} of {job.run_name}")
    argv += [
        f"--property={name}={part}" for name, value in properties(job, runner).items() for part in value.split("\n")
    ]
    return [*argv, *runner, "rank", job.run_id]


def _start_service(job: Job, runner: list[str]) -> None:
    result = subprocess.run(systemd_argv(job, runner), capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        words = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NodeError("start-failed", f"systemd did not start the rank: {words[-1] if words else 'no reason given'}")


def _start_daemon(job: Job, runner: list[str]) -> None:
    reader, writer = os.pipe()
    errors = os.open(paths.run_dir(job.run_id) + "/runner.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        subprocess.Popen(
            [*runner, "guard", job.run_id],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            cwd="/",
            start_new_session=True,
            pass_fds=(writer,),
            env={**os.environ, "LAMBDACTL_READY_FD": str(writer)},
        )
    finally:
        os.close(writer)
        os.close(errors)
    try:
        ready = select.select([reader], [], [], READY_TIMEOUT)[0] and os.read(reader, 1)
    finally:
        os.close(reader)
    if not ready:
        words = paths.read_text(paths.run_dir(job.run_id) + "/runner.err").strip().splitlines()
        raise NodeError("start-failed", f"the rank's supervisor did not start: {words[-1] if words else 'no answer'}")


def _keep_runner(run: str) -> None:
    target = paths.run_dir(run) + "/runner.pyz"
    try:
        os.link(paths.self_path(), target)
    except OSError:
        shutil.copyfile(paths.self_path(), target)


def start(job: Job) -> None:
    """Start a rank whose folder is prepared and whose start.lock is held. Raises NodeError (start-failed)."""
    _keep_runner(job.run_id)
    runner = repair.runner_argv(job.run_id)
    if paths.has_systemd():
        _start_service(job, runner)
    else:
        _start_daemon(job, runner)
