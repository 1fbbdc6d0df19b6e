"""A dev environment inside of its rank's supervisor: whether it is up, who is connected, and when it is left alone."""

from __future__ import annotations

import os
import signal
import time

from . import landing
from .dev import seconds
from .errors import NodeError
from .idle import Idleness
from .processes import start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .control import Peer
    from .launch import User
    from .loop import Loop, Timer
    from .spec import Job

# Printed by the script when `init` has ended: an escape sequence that no terminal shows. The script may run in a
# container, where a byte on its output is the one way to tell.
UP = b"\x1b]1337;lambdactl-up\x07"
LOOK = 5.0  # seconds between two looks at the sessions
FAREWELL = 0.1  # seconds between two looks at what was asked to end
OPERATIONS = ("session", "change")


class DevEnvironment:
    """What a supervisor adds for a dev environment.

    `publish(value)` stores the `dev` part of the RankState, `left_alone(text)` ends the run, `adopt(pid)` makes a
    process part of the job.
    """

    operations = OPERATIONS

    def __init__(
        self,
        job: Job,
        loop: Loop,
        *,
        publish: Callable[[dict[str, Any]], None],
        left_alone: Callable[[str], None],
        adopt: Callable[[int], object],
    ) -> None:
        if job.dev is None:
            raise ValueError("the job is no dev environment")
        self._job = job
        self._loop = loop
        self._publish = publish
        self._left_alone = left_alone
        self._adopt = adopt
        self._user: User | None = None
        self._pids: dict[int, str] = {}
        self._timer: Timer | None = None
        self._leaving: Timer | None = None
        self._tail = b""
        self._idle = Idleness(job.dev.inactivity, time.monotonic())
        self._value = {**job.dev.shown, "inactivity": job.dev.inactivity, "up_at": None, "sessions": 0}
        publish(dict(self._value))

    def prepare(self, user: User, environment: dict[str, str], directory: str) -> None:
        """Make all that sessions need, before the commands start. Raises NodeError (start-failed)."""
        container = self._job.container is not None
        host_key = landing.prepare(self._job.run_id, user, environment, directory, container=container)
        self._user = user
        self._say(user=user.name, directory=directory, host_key=host_key, idle_since=None)

    def prepare_container(self, user: User) -> None:
        """The same for a job in a container, which is made already."""
        self.prepare(user, {}, landing.inside(self._job))

    def _say(self, **changes: Any) -> None:
        before = dict(self._value)
        self._value.update(changes)
        if self._value != before:
            self._publish(dict(self._value))

    def feed(self, data: bytes) -> bytes:
        """Watch the output for the sign that `init` has ended; the sign itself does not get into the log."""
        if self._value["up_at"] is not None:
            return data
        if UP not in self._tail + data:
            self._tail = (self._tail + data)[-len(UP) :]
            return data
        self._idle.restart(time.monotonic())  # counted from here: `init` may take longer than the limit
        self._say(up_at=time.time(), idle_since=None if self._idle.sessions else time.time())
        self._look()
        return data.replace(UP, b"")

    def handle(self, request: dict[str, Any], peer: Peer, state: str) -> dict[str, Any]:
        """Answer one of OPERATIONS. Raises NodeError."""
        if peer.uid not in (0, os.geteuid()):
            raise NodeError("bad-request", f"only root may ask for {request['op']!r}")
        if request["op"] == "change":
            return self._change(seconds(request.get("inactivity")))
        if self._user is None or state != "running":
            raise NodeError("not-found", f"{self._job.run_name} is {state}, so nobody can connect")
        if request.get("key") is not None:
            landing.authorize(self._job.run_id, request["key"], self._user)
        self._adopt(peer.pid)
        self._pids[peer.pid] = start_time(peer.pid)
        self._idle.opened(peer.pid, time.monotonic())
        self._say(sessions=self._idle.sessions, idle_since=None)
        self._look()
        return {"user": self._job.user}

    def _change(self, limit: float | None) -> dict[str, Any]:
        """Set another inactivity limit; the time that has passed without a session counts."""
        self._idle.limit = limit
        self._say(inactivity=limit)
        self._look()
        return {"inactivity": limit}

    def _look(self) -> None:
        """Look at the sessions now, and again in a moment."""
        if self._timer is not None:
            self._timer.cancel()
        now = time.monotonic()
        alive = {pid for pid, started in self._pids.items() if started and start_time(pid) == started}
        self._pids = {pid: self._pids[pid] for pid in alive}
        self._idle.look(alive, now)
        if self._idle.sessions != self._value["sessions"]:
            idle = None if self._idle.sessions else round(time.time() - self._idle.idle(now), 1)
            self._say(sessions=self._idle.sessions, idle_since=idle)
        if self._value["up_at"] is not None and self._idle.is_over(now):
            self._left_alone(f"nobody was connected for {self._idle.limit:g} s (inactivity_duration)")
            return
        limit = self._idle.limit
        pause = LOOK if limit is None else max(0.2, min(LOOK, limit / 20))
        self._timer = self._loop.later(pause, self._look)

    def farewell(self, commands: int, pids: Callable[[], list[int]], then: Callable[[], None]) -> None:
        """Ask what sessions have started to end, and go on once it has; the end of the grace time kills what is left.

        SIGTERM, because shells start what runs in the background with SIGINT ignored. The servers of the sessions come
        last: a terminal that goes away would tell its programs first.
        """
        others = [pid for pid in pids() if _group(pid) not in (None, commands)]
        for pid in sorted(others, key=lambda pid: pid in self._pids):
            _terminate(pid)
        self._wait_for(set(others), pids, then)

    def _wait_for(self, others: set[int], pids: Callable[[], list[int]], then: Callable[[], None]) -> None:
        if others.isdisjoint(pids()):
            then()
        else:
            self._leaving = self._loop.later(FAREWELL, lambda: self._wait_for(others, pids, then))

    def close(self) -> None:
        """Look no more: the rank has ended."""
        for timer in (self._timer, self._leaving):
            if timer is not None:
                timer.cancel()


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
