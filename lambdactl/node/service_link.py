"""The supervisor's link to one host: a session of the runner's `serve` there, kept open, in a thread of its own.

On the ingress host itself the session is a child process, on others an SSH session with the fleet's node-to-node key,
which may do there what rank 0's coordinator may: start the runner. Whatever is asked goes through the same checks and
leases as a controller's requests.
"""

from __future__ import annotations

import json
import os
import queue
import select
import shlex
import subprocess
import threading
import time

from . import paths, repair
from .peer import SSH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .service_doc import Host

POLL = 1.0
PATIENCE = 15.0  # seconds for one answer
RECONNECT_MAX = 5.0
LAST_WORDS = 300


def serve_command(host: Host, *, local: bool) -> list[str]:
    """How to start `serve` on a host."""
    replacement = os.environ.get("LAMBDACTL_PEER_SERVE") if paths.ROOT else None
    if replacement:
        return [word.replace("{name}", host.name) for word in shlex.split(replacement)]
    if local:
        return [repair.python(), "-I", "-S", paths.RUNNER, "serve"]
    sudo = [] if host.ssh_user == "root" else ["sudo", "-n"]
    remote = [*sudo, "python3", "-I", "-S", paths.RUNNER, "serve"]
    return [*SSH.split(), "-p", str(host.ssh_port), "-l", host.ssh_user, host.ip, *remote]


class LinkDown(Exception):
    """The session has ended or does not answer."""


class Session:
    """One `serve` process: a line of JSON in, a line of JSON out."""

    def __init__(self, command: list[str]) -> None:
        env = {**os.environ, "LC_ALL": "C"}
        env.pop("LC_LAMBDACTL_RUN", None)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd="/"
            )
        except OSError as error:
            raise LinkDown(f"{command[0]}: {error.strerror}") from None
        self._input = b""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer. Raises LinkDown."""
        assert self._process.stdin is not None  # noqa: S101 (both are pipes, see above)
        try:
            self._process.stdin.write(json.dumps({"id": 1, **request}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise LinkDown(self._words()) from None
        until = time.monotonic() + PATIENCE
        while True:
            line, newline, rest = self._input.partition(b"\n")
            if newline:
                self._input = rest
                answer = _parse(line)
                if answer is not None:
                    return answer
            else:
                self._read(until)

    def _read(self, until: float) -> None:
        assert self._process.stdout is not None  # noqa: S101 (a pipe)
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            raise LinkDown(f"no answer for {PATIENCE:g} s")
        data = os.read(descriptor, 1 << 16)
        if not data:
            raise LinkDown(self._words())
        self._input += data

    def _words(self) -> str:
        """What the process said before it ended."""
        assert self._process.stderr is not None  # noqa: S101 (a pipe)
        descriptor = self._process.stderr.fileno()
        text = b""
        while select.select([descriptor], [], [], 0.2)[0]:
            data = os.read(descriptor, 1 << 16)
            if not data:
                break
            text += data
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return lines[-1][-LAST_WORDS:] if lines else "the session ended"

    def close(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue


def _parse(line: bytes) -> dict[str, Any] | None:
    """An answer, or None for a login banner's line."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and "ok" in answer else None


class Link:
    """Keeps the session, asks once a second for the runs that are watched, and does what it is told in between.

    Puts into the inbox: ("heard", host, {run: RankState | None}), ("down", host, why), ("answer", host, tag, answers)
    where an answer is the protocol's reply; ("answer", host, tag, None) when the host could not be asked to the end.
    """

    def __init__(self, host: Host, inbox: queue.Queue[tuple[Any, ...]], *, local: bool) -> None:
        self.host = host
        self.local = local
        self.last_heard = time.monotonic()
        self.up = True
        self.reached = False  # whether the present or last session ever answered
        self.message = ""
        self._command = serve_command(host, local=local)
        self._inbox = inbox
        self._work: queue.Queue[tuple[Any, list[dict[str, Any]]] | None] = queue.Queue()
        self._watched: tuple[str, ...] = ()
        self._session: Session | None = None
        self._closed = False
        threading.Thread(target=self._run, daemon=True).start()

    def watch(self, runs: list[str]) -> None:
        """The runs whose states are wanted from now on."""
        self._watched = tuple(runs)

    def ask(self, tag: Any, requests: list[dict[str, Any]]) -> None:
        """Do these requests one after the other, up to the first that is refused."""
        self._work.put((tag, requests))

    def close(self) -> None:
        """End the link."""
        self._closed = True
        self._work.put(None)

    def _run(self) -> None:
        pause = 0.2
        while not self._closed:
            try:
                self._turn()
                pause = 0.2
            except LinkDown as error:
                if self._session is not None:
                    self._session.close()
                    self._session = None
                self._inbox.put(("down", self.host.name, str(error)))
                self._drop_work()
                time.sleep(pause)
                pause = min(pause * 2, RECONNECT_MAX)
        if self._session is not None:
            self._session.close()

    def _drop_work(self) -> None:
        """What was asked of a host that is down is answered at once: it is for the plan to choose another host."""
        while True:
            try:
                work = self._work.get_nowait()
            except queue.Empty:
                return
            if work is not None:
                self._inbox.put(("answer", self.host.name, work[0], None))

    def _turn(self) -> None:
        if self._session is None:
            self.reached = False
            self._session = Session(self._command)
            self._poll(self._session)
            self.reached = True
        try:
            work = self._work.get(timeout=POLL)
        except queue.Empty:
            self._poll(self._session)
            return
        if work is not None:
            self._do(self._session, *work)

    def _do(self, session: Session, tag: Any, requests: list[dict[str, Any]]) -> None:
        answers = []
        try:
            for request in requests:
                answers.append(session.ask(request))
                if not answers[-1].get("ok"):
                    break
        except LinkDown:
            self._inbox.put(("answer", self.host.name, tag, None))
            raise
        self._inbox.put(("answer", self.host.name, tag, answers))
        self._poll(session)

    def _poll(self, session: Session) -> None:
        states: dict[str, Any] = {}
        for run in self._watched or ("",):
            answer = session.ask({"op": "status", "run": run} if run else {"op": "release", "run_id": NOBODY})
            ranks = (answer.get("result") or {}).get("ranks") if run else None
            if run and answer.get("ok"):
                states[run] = ranks[0] if ranks else None
        self._inbox.put(("heard", self.host.name, states))


NOBODY = (
    "00000000-0000-0000-0000-000000000000"  # no run's id: giving its lease back does nothing, and shows a live host
)
