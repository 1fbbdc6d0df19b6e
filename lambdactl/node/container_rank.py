"""A rank's container, as its supervisor sees it: prepared before the gate, then started in the commands' place."""

from __future__ import annotations

import json
import os

from . import container_run, repair
from .launch import find_user, open_terminal, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop
    from .spec import Job

POLL = 0.05
MAX_LINE = 1 << 20


class ContainerRank:
    """Calls back: `on_pull({"done", "total"})` in bytes, `on_note(text)`, `on_ready()` or `on_failed(text)`, once."""

    def __init__(
        self,
        loop: Loop,
        job: Job,
        adopt: Callable[[int], object],
        *,
        on_pull: Callable[[dict[str, int]], None],
        on_note: Callable[[str], None],
        on_ready: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._loop, self._job, self._adopt = loop, job, adopt
        self._on_pull, self._on_note = on_pull, on_note
        self._on_ready, self._on_failed = on_ready, on_failed
        self._ended = False
        self.terminal, self._theirs = open_terminal()  # the other end stays open: the container opens it by its path
        os.set_blocking(self.terminal, False)
        if os.geteuid() == 0:
            os.fchmod(self._theirs, 0o666)  # whatever user the image has
        self._pipe = -1
        self._input = self._words = b""
        self.preparing: int | None = None

    def _spawn(self, words: list[str], out: int) -> int:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        argv = [*repair.runner_argv(self._job.run_id), *words]
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        try:
            return spawn(argv, find_user(str(os.geteuid())), environment, (null, out, out), job=self._adopt)
        finally:
            os.close(null)

    def prepare(self) -> None:
        """Get the image and make the container. Raises NodeError (start-failed)."""
        self._pipe, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            self.preparing = self._spawn(["container-prepare", self._job.run_id, os.ttyname(self._theirs)], theirs)
        finally:
            os.close(theirs)
        os.set_blocking(self._pipe, False)
        self._loop.watch(self._pipe, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._pipe, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.forget(self._pipe)
            os.close(self._pipe)
            words = self._words.decode("utf-8", "replace").strip()[-300:]
            self._end(f"preparing the container was interrupted{': ' if words else ''}{words}")
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:  # its last words, when something broke
            self._words = line
            return
        if "pull" in message:
            self._on_pull(message["pull"])
        elif "note" in message:
            self._on_note(str(message["note"]))
        elif "error" in message:
            self._end(str(message["error"]))
        elif "ready" in message:
            self._end(None)

    def _end(self, problem: str | None) -> None:
        if not self._ended:
            self._ended = True
            if problem is None:
                self._on_ready()
            else:
                self._on_failed(problem)

    def start(self, on_started: Callable[[], None]) -> int:
        """Start the container; the process that stands for its commands. `on_started()` when they really run."""
        pid = self._spawn(["container-run", self._job.run_id], self._theirs)
        self._loop.later(POLL, lambda: self._wait_for_start(on_started))
        return pid

    def _wait_for_start(self, on_started: Callable[[], None]) -> None:
        known = container_run.record(self._job.run_id)
        if known.get("started"):
            on_started()
        elif "outcome" not in known and not known.get("removed"):
            self._loop.later(POLL, lambda: self._wait_for_start(on_started))

    def outcome(self) -> tuple[dict[str, Any] | None, bool]:
        """(the end as the container's helper knows it, or None; whether the kernel killed for lack of memory)."""
        known = container_run.record(self._job.run_id)
        found = known.get("outcome")
        return (found if isinstance(found, dict) else None), known.get("oom") is True

    def kill(self) -> None:
        """SIGKILL to everything in the container."""
        container_run.kill_first(self._job.run_id)
