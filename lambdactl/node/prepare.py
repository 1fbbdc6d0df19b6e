"""What a rank needs before its commands may start: files, a repository, volumes.

`runner.pyz prepare RUN` does it, beside the supervisor, so that a stop is obeyed meanwhile. No rank of the run starts
its commands before every rank is prepared. Another kind of preparation is one more function in `STEPS`.
"""

from __future__ import annotations

import os
import sys

from . import contents, light, repair, spec, volumes
from .errors import NodeError
from .launch import find_user, spawn
from .light import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .loop import Loop
    from .spec import Job

LAST_WORDS = 2000


def _volumes(job: Job, say: Callable[[str], None]) -> None:
    volumes.make_sources(job)
    volumes.enter_own(job)  # what follows may land on a volume


def _contents(job: Job, say: Callable[[str], None]) -> None:
    contents.place(job, say)


# (whether the job needs it, what does it); in this order.
STEPS: tuple[tuple[Callable[[Job], bool], Callable[[Job, Callable[[str], None]], None]], ...] = (
    (lambda job: bool(job.volumes), _volumes),
    # With a container its own maker does it (container_contents.py): its folders are not the node's.
    (lambda job: bool(job.files or job.repo) and job.container is None, _contents),
)


def needed(job: Job) -> bool:
    """Whether there is anything to prepare."""
    return any(wanted(job) for wanted, _ in STEPS)


def main(args: list[str]) -> int:
    """Prepare one rank; JSON lines on standard output: {"message": text} meanwhile, {"problem": text} at the end."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz prepare RUN")
    job = spec.load(args[0])

    def say(text: str) -> None:
        sys.stdout.write(light.dumps({"message": text}) + "\n")
        sys.stdout.flush()

    try:
        for wanted, step in STEPS:
            if wanted(job):
                step(job, say)
    except NodeError as error:
        problem = error.message
    except OSError as error:
        problem = f"{error.strerror or error} ({error.filename or 'no file'})"
    else:
        return 0
    sys.stdout.write(light.dumps({"problem": problem}) + "\n")
    return 1


class Preparation:
    """The preparing process as the supervisor sees it.

    Calls `on_message(text)` at each step, and once `on_end(problem)`: None when all is ready.
    """

    def __init__(
        self, loop: Loop, job: Job, *, on_message: Callable[[str], None], on_end: Callable[[str | None], None]
    ) -> None:
        self._loop = loop
        self._on_message = on_message
        self._on_end = on_end
        self._buffer = b""
        self._problem: str | None = None
        self.done = False
        self._output, theirs = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        argv = [*repair.runner_argv(job.run_id), "prepare", job.run_id]
        try:
            self.pid = spawn(argv, find_user(str(os.geteuid())), dict(os.environ), (null, theirs, theirs))
        finally:
            os.close(theirs)
            os.close(null)
        os.set_blocking(self._output, False)
        loop.watch(self._output, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._output, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.forget(self._output)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        try:
            message = light.loads(line)
            if "problem" in message:
                self._problem = str(message["problem"])
            elif not self.done:
                self._on_message(str(message.get("message")))
        except (ValueError, TypeError, AttributeError):  # a traceback, or what a program of the step printed
            self._problem = line.decode("utf-8", "replace")[-LAST_WORDS:] or self._problem

    def reaped(self, status: int) -> None:
        """The process has ended and was waited for."""
        if self.done:
            return
        self._read()
        self.close()
        self._on_end(None if status == 0 else self._problem or f"the preparation ended with wait status {status}")

    def close(self) -> None:
        """End it, without a word to anybody."""
        if not self.done:
            self.done = True
            self._loop.forget(self._output)
            os.close(self._output)
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
