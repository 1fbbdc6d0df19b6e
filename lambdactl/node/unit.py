"""Starting a rank's main process so that it outlives whoever asked for it: a systemd service, else a guarded daemon."""

from __future__ import annotations

import os
import select

from . import paths, repair, share
from .errors import NodeError
from .spec import Job

READY_TIMEOUT = 30.0
READY = 3  # the descriptor at which a guard has the pipe that says that the rank is supervised


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
    import subprocess

    result = subprocess.run(systemd_argv(job, runner), capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        words = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NodeError("start-failed", f"systemd did not start the rank: {words[-1] if words else 'no reason given'}")


def _start_daemon(job: Job) -> None:
    """The guard is a fork of this process, which has loaded most of what it needs; starting Python would cost more."""
    reader, writer = os.pipe()
    try:
        between = os.fork()
        if between == 0:  # between us and the guard, so that it is nobody's zombie when it has ended
            if os.fork() == 0:
                _guard(job.run_id, writer)
            os._exit(0)
        os.waitpid(between, 0)
    finally:
        os.close(writer)
    try:
        ready = select.select([reader], [], [], READY_TIMEOUT)[0] and os.read(reader, 1)
    finally:
        os.close(reader)
    if not ready:
        words = paths.read_text(paths.run_dir(job.run_id) + "/runner.err").strip().splitlines()
        raise NodeError("start-failed", f"the rank's supervisor did not start: {words[-1] if words else 'no answer'}")


def _guard(run: str, ready: int) -> None:
    """Be the guard, with nothing of the process that this was forked from; never returns."""
    try:
        errors = os.open(paths.run_dir(run) + "/runner.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDWR)
        for number, descriptor in enumerate((null, errors, errors, ready)):
            os.dup2(descriptor, number)
        os.closerange(READY + 1, max(map(int, os.listdir("/proc/self/fd"))) + 1)
        os.setsid()
        os.chdir("/")
        os.environ["LAMBDACTL_READY_FD"] = str(READY)
        from . import guard

        guard.main([run])
    except BaseException as error:  # anything at all must end this process, never return into the caller's code
        os.write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(0)


def _keep_runner(run: str) -> None:
    target = paths.run_dir(run) + "/runner.pyz"
    try:
        os.link(paths.self_path(), target)
    except OSError:
        import shutil

        shutil.copyfile(paths.self_path(), target)


def start(job: Job) -> None:
    """Start a rank whose folder is prepared and whose start.lock is held. Raises NodeError (start-failed)."""
    _keep_runner(job.run_id)
    if paths.has_systemd():
        _start_service(job, repair.runner_argv(job.run_id))
    else:
        _start_daemon(job)
