"""Runs at set times: a systemd timer on rank 0's node, which needs no controller.

`/var/lib/lambdactl/schedules/<name>.json` (0600) holds the jobs of all ranks as a controller would start them. When the
timer is due, `runner.pyz scheduled NAME` does a controller's part from here: it reserves all nodes or none and starts
the ranks, by `serve` on this node and, over node-to-node SSH, on its peers: as the coordinator starts its agents.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid

from . import blobs, paths, peer, repair, state
from .cron import Cron, next_of
from .errors import NodeError, as_object
from .launch import find_user
from .spec import Job, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

UNITS = "/etc/systemd/system"
TTL = 60.0
ANSWER_TIMEOUT = 120.0  # seconds for a node to answer one request


def folder() -> str:
    """Where schedules are kept."""
    return paths.SCHEDULES


def _file(name: str) -> str:
    return f"{folder()}/{_checked(name)}.json"


def _checked(name: object) -> str:
    if isinstance(name, str) and paths.is_run_name(name):
        return name
    raise NodeError("bad-request", f"schedule: {str(name)[:60]!r} is no run's name")


def _unit(name: str) -> str:
    return f"lambdactl-schedule-{name}"


def _systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", "--quiet", *words], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        text = " ".join(done.stderr.decode("utf-8", "replace").split())[-300:]
        raise NodeError("start-failed", f"systemctl {words[0]} failed: {text or done.returncode}")


def add(request: dict[str, Any]) -> dict[str, Any]:
    """The op `schedule`: {"name", "cron": [text...], "owner", "reserve": {node: request}, "jobs": [JobSpec by rank]}.

    The answer is {"next": seconds since 1970, or null}.
    """
    name, crons = _checked(request.get("name")), [Cron(text) for text in request.get("cron") or [None]]
    jobs = request.get("jobs")
    if not isinstance(jobs, list) or not jobs:
        raise NodeError("bad-request", "schedule: jobs is a list with a job for each rank")
    for job in jobs:
        Job(job)
    if not paths.has_systemd() and not paths.ROOT:
        raise NodeError("start-failed", "a schedule needs systemd on rank 0's node")
    os.makedirs(folder(), mode=0o700, exist_ok=True)
    kept = {key: request.get(key) for key in ("name", "cron", "owner", "reserve", "jobs")}
    paths.write_json(_file(name), {**kept, "id": str(uuid.uuid4()), "created_at": time.time(), "last": None})
    if paths.has_systemd():
        try:
            _write_units(name, crons)
        except BaseException:
            remove({"name": name})
            raise
    return {"next": next_of(crons, time.time())}


def _write_units(name: str, crons: list[Cron]) -> None:
    program = f"{repair.python()} -I -S {paths.RUNNER} scheduled {name}"
    service = f"[Unit]\nDescription=lambdactl: start {name}\n[Service]\nType=oneshot\nExecStart={program}\n"
    events = "".join(f"OnCalendar={event}\n" for cron in crons for event in cron.on_calendar())
    timer = f"[Unit]\nDescription=lambdactl: when {name} is started\n[Timer]\n{events}AccuracySec=1s\n"
    timer += "[Install]\nWantedBy=timers.target\n"
    paths.write_atomic(f"{UNITS}/{_unit(name)}.service", service.encode(), 0o644)
    paths.write_atomic(f"{UNITS}/{_unit(name)}.timer", timer.encode(), 0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", f"{_unit(name)}.timer")
    _systemctl("restart", f"{_unit(name)}.timer")


def remove(request: dict[str, Any]) -> dict[str, Any]:
    """The op `unschedule`: {"name": name or null for all} -> {"removed": [names]}; what it has started goes on."""
    wanted = names() if request.get("name") is None else [_checked(request["name"])]
    found = [name for name in wanted if os.path.exists(_file(name))]
    for name in found:
        if paths.has_systemd():
            with contextlib.suppress(NodeError):  # it may be half made
                _systemctl("disable", "--now", f"{_unit(name)}.timer")
            for kind in ("service", "timer"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{UNITS}/{_unit(name)}.{kind}")
        os.unlink(_file(name))
    if found and paths.has_systemd():
        _systemctl("daemon-reload")
    return {"removed": found}


def names() -> list[str]:
    """The schedules of this node."""
    try:
        return sorted(name[:-5] for name in os.listdir(folder()) if name.endswith(".json"))
    except FileNotFoundError:
        return []


def jobs() -> list[dict[str, Any]]:
    """The jobs of all schedules, for whoever must keep what they need."""
    found = [paths.read_json(_file(name)) for name in names()]
    return [job for value in found if isinstance(value, dict) for job in value.get("jobs") or []]


def shown(key: str | None = None) -> list[dict[str, Any]]:
    """Schedules as RankStates, with the state `scheduled`; of one name or id, or all."""
    found = []
    for name in names():
        value = paths.read_json(_file(name))
        if not isinstance(value, dict) or key not in (None, name, value.get("id")):
            continue
        due = next_of([Cron(text) for text in value["cron"]], time.time())
        blank = dict.fromkeys(("exit_code", "reason", "pid", "started_at", "ready_at", "finished_at"))
        place = {"rank": 0, "nodes_num": len(value["jobs"]), "node": None}
        text = _sentence(due, value.get("last"))
        gang = {**blank, "state": "scheduled", "message": text, "first_failed_rank": None}
        rank = {"run_id": value["id"], "run_name": name, **place, **blank, "state": "scheduled", "message": text}
        rank.update(log_size=0, log_start=0, log_dropped=0, owner=value.get("owner"), submitted_at=value["created_at"])
        found.append(
            {**rank, "tags": value["jobs"][0].get("tags") or {}, "next_at": due, "cron": value["cron"], "gang": gang}
        )
    return found


def _sentence(due: float | None, last: Any) -> str:
    text = "is never due" if due is None else f"next at {_utc(due)}"
    if isinstance(last, dict):
        text += f"; {'was started' if last.get('run_id') else 'was missed'} at {_utc(last['at'])}"
        text += f": {last['message']}" if last.get("message") else ""
    return text


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


class _Session:
    """`serve` on one node, for a few requests."""

    def __init__(self, node: Node, *, here: bool) -> None:
        self.node = node
        environment = {**os.environ, "LC_ALL": "C"}
        if os.geteuid() == 0 and not paths.ROOT:
            environment["HOME"] = find_user("root").home
        pipe = subprocess.PIPE
        argv = [repair.python(), "-I", "-S", paths.self_path(), "serve"] if here else _peer_argv(node)
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.PIPE, env=environment)

    def send(self, request: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None  # noqa: S101 (a pipe)
            self._process.stdin.write(json.dumps({"id": 1, **request}).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The result; {"error": sentence} when it was refused or the node does not answer."""
        assert self._process.stdout is not None  # noqa: S101 (a pipe)
        for line in self._process.stdout:
            if line.startswith(b"{"):
                reply = as_object(json.loads(line))
                if reply.get("ok"):
                    return dict(reply.get("result") or {})
                return {"error": f"{self.node.name}: {(reply.get('error') or {}).get('message')}"}
        return {"error": f"{self.node.name} does not answer: {self._words()}"}

    def _words(self) -> str:
        assert self._process.stderr is not None  # noqa: S101 (a pipe)
        return " ".join(self._process.stderr.read(4096).decode("utf-8", "replace").split())[-300:] or "no reason given"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None  # noqa: S101 (a pipe)
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _peer_argv(node: Node) -> list[str]:
    replacement = os.environ.get("LAMBDACTL_PEER_COMMAND") if paths.ROOT else None
    if replacement:  # tests: the agent's command, with another verb
        return peer.replaced(replacement.replace("agent {run}", "serve"), "", node)
    return peer.ssh_command(node, ["serve"])


def _ask(sessions: list[_Session], requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for session, request in zip(sessions, requests):
        session.send(request)
    return [session.answer() for session in sessions]


def run(value: dict[str, Any]) -> dict[str, Any]:
    """Start a schedule's run now; {"at", "run_id" or None, "message"}, which is kept as its last one."""
    name, identifier, now = str(value["name"]), str(uuid.uuid4()), time.time()
    before = state.find(name)
    if before is not None and not state.is_settled(repair.repair(before) or {"state": "done"}):
        return {"at": now, "run_id": None, "message": "the run before had not ended"}
    places = Job(value["jobs"][0]).nodes
    sessions = [_Session(node, here=rank == 0) for rank, node in enumerate(places)]
    try:
        problem = _start(sessions, value, identifier, now)
    finally:
        for session in sessions:
            session.close()
    return {"at": now, "run_id": None if problem else identifier, "message": problem}


def _start(sessions: list[_Session], value: dict[str, Any], identifier: str, now: float) -> str | None:
    """None when all ranks are started, else why none is."""
    if problem := _bring(sessions, value["jobs"][0]):
        return problem
    order = {"op": "reserve", "run_id": identifier, "run_name": value["name"], "owner": value.get("owner"), "ttl": TTL}
    wanted = value.get("reserve") or {}
    reserved = _ask(sessions, [{"gpus": "all", **wanted.get(session.node.name, {}), **order} for session in sessions])
    problem = next((answer["error"] for answer in reserved if "error" in answer), None)
    if problem is None:
        own = {"run_id": identifier, "submitted_at": now}
        started = [{**job, **own, **answer} for job, answer in zip(value["jobs"], reserved)]
        answers = _ask(sessions, [{"op": "start", "job": job} for job in started])
        problem = next((answer["error"] for answer in answers if "error" in answer), None)
        if problem is not None:
            stop = {"op": "stop", "run": identifier, "abort": True, "reason": "start-failed", "grace": 0}
            _ask(sessions, [stop] * len(sessions))
    if problem is not None:
        _ask(sessions, [{"op": "release", "run_id": identifier}] * len(sessions))
    return problem


def _bring(sessions: list[_Session], job: dict[str, Any]) -> str | None:
    """Let the peers have what the jobs need, where they have lost it since; None, or what went wrong."""
    wanted = sorted(blobs.needed(job))
    if not wanted or len(sessions) == 1:
        return None
    try:
        sizes = [[sha256, os.stat(blobs.path(sha256)).st_size] for sha256 in wanted]
    except FileNotFoundError:
        return "the run's files are not in this node's store any more; apply the file again"
    answers = _ask(sessions, [{"op": "have", "blobs": sizes}] * len(sessions))
    for session, answer in zip(sessions[1:], answers[1:]):
        if "error" in answer:
            return str(answer["error"])
        if answer.get("missing"):
            order = {"to": session.node.raw, "blobs": answer["missing"]}
            argv = [repair.python(), "-I", "-S", paths.self_path(), "push"]
            done = subprocess.run(argv, input=json.dumps(order).encode() + b"\n", capture_output=True, check=False)
            if done.returncode != 0:
                return f"{session.node.name}: the run's files could not be sent there from rank 0"
    return None


def main(args: list[str]) -> int:
    """`runner.pyz scheduled NAME`: what the timer calls."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz scheduled NAME")
    value = paths.read_json(_file(args[0]))
    if not isinstance(value, dict):
        raise NodeError("not-found", f"no run named {args[0]} is scheduled on this node")
    last = run(value)
    if os.path.exists(_file(args[0])):  # nobody has removed it meanwhile
        paths.write_json(_file(args[0]), {**value, "last": last})
    sys.stdout.write(f"{args[0]}: {last['message'] or 'started as ' + str(last['run_id'])}\n")
    return 0 if last["run_id"] else 1
