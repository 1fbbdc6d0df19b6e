"""`runner.pyz serve`: JSON lines on standard input and output, one request after the other, until end of file."""

from __future__ import annotations

import os
import sys
import time

from . import blocks, lease, light, locks, paths, repair, state, tickets
from .errors import NodeError, as_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_REQUEST = 64 << 20
KEEP_RUNS = 50
DEFAULT_TTL = 60.0
DEFAULT_QUEUE_TTL = 30.0
OWNER_LENGTH = 200
# What a start needs, and what the rank's processes need where these are forks of this one. Whoever will ask for a start
# next says so ("next": "start" of `status`): it is loaded when the answer is on its way, while the controller plans.
FOR_START = ("blobs", "compiled", "contents", "env", "gpus", "service_port", "share", "spec", "topology", "unit")
FOR_FORKS = ("guard", "rank")
LATER: list[Callable[[], None]] = []


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    from .probe import probe

    roles, without = request.get("roles", {}), request.get("without", [])
    if not isinstance(roles, dict):
        raise NodeError("bad-request", "probe: roles is an object of digests")
    return probe(roles, frozenset(map(str, without)) if isinstance(without, list) else frozenset())


def _examine(request: dict[str, Any]) -> dict[str, Any]:
    from .doctor import examine

    return examine(deep=request.get("deep") is True)


def _reserve(request: dict[str, Any]) -> dict[str, Any]:
    gpus, ttl = request.get("gpus", "all"), request.get("ttl", DEFAULT_TTL)
    if gpus != "all" and (type(gpus) is not int or gpus < 0):
        raise NodeError("bad-request", f'reserve: gpus is {str(gpus)[:40]!r}, allowed is "all" or a number')
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= 86400:
        raise NodeError("bad-request", f"reserve: ttl is {str(ttl)[:40]!r}, allowed is 1 to 86400 seconds")
    run, name = paths.run_id(request.get("run_id")), paths.run_key(request.get("run_name"))
    wanted = blocks.parse(request["blocks"], request.get("of")) if request.get("blocks") is not None else gpus
    priority, limit = request.get("priority", 0), request.get("limit")
    if type(priority) is not int or not (limit is None or (type(limit) in (int, float) and limit >= 0)):
        raise NodeError("bad-request", "reserve: priority is a number from 0 to 100, limit is seconds or null")
    _repair_all()
    from . import share, topology
    from .gpus import count

    owner, total = str(request.get("owner") or "")[:OWNER_LENGTH], count()
    if isinstance(wanted, tuple):
        blocks.check(len(topology.cpus()), total, wanted[1])
    mine = lease.reserve(run, name, owner, wanted, float(ttl), total, priority=priority, limit=limit)
    return {"gpus": mine["gpus"], "share": share.of_lease(mine)}


def _queue(request: dict[str, Any]) -> dict[str, Any]:
    """Put a waiting run into the queue or renew its place; the answer is all that the waiting controller decides by."""
    ttl = request.get("ttl", DEFAULT_QUEUE_TTL)
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= 3600:
        raise NodeError("bad-request", f"queue: ttl is {str(ttl)[:40]!r}, allowed is 1 to 3600 seconds")
    ticket = tickets.parse(request, float(ttl))
    _repair_all()
    with locks.held(lease.lock()):
        mine = tickets.put(ticket)
        return {"ticket": mine, "queue": tickets.current(), "leases": lease.in_force(), "time": time.time()}


def _dequeue(request: dict[str, Any]) -> dict[str, Any]:
    run = paths.run_id(request.get("run_id"))
    with locks.held(lease.lock()):
        tickets.remove(run)
    return {}


def _as_leased(raw: dict[str, Any]) -> dict[str, Any]:
    """The job with what this node's lease has given it: a plan only says how many blocks it wants."""
    from . import share

    if raw.get("share") is None:
        return raw
    mine = lease.read(paths.run_id(raw.get("run_id")))
    if mine is None or not mine.get("of"):
        return {**raw, "share": None}
    return {**raw, "gpus": mine["gpus"], "share": share.of_lease(mine)}


def _load_for_start() -> None:
    for name in FOR_START + (() if paths.has_systemd() else FOR_FORKS):
        __import__(f"{__package__}.{name}")


def _start(request: dict[str, Any]) -> dict[str, Any]:
    from . import blobs, compiled, contents, env, service_port, unit
    from .spec import Job

    compiled.renew()

    job = Job(_as_leased(as_object(request.get("job"))))
    for manifest in contents.manifests(job):
        contents.read_manifest(manifest)
    folder = paths.run_dir(job.run_id)
    if os.path.isdir(folder) and state.read(job.run_id) is not None:
        return repair.public(repair.repair(job.run_id) or {}, job.run_id)  # asked twice, as after a lost connection
    if lease.read(job.run_id) is None:
        raise NodeError(
            "no-reservation", f"run {job.run_name} holds no reservation on this node: it expired or was released"
        )
    os.makedirs(folder, mode=0o755, exist_ok=True)
    os.chmod(folder, 0o755)  # noqa: S103 (the job's user reads the hostfile; secrets are 0600)
    try:
        with locks.held(folder + "/start.lock"):
            if job.service_port is not None:
                service_port.check(job.service_port, job.node.ip)
            paths.write_json(folder + "/job.json", job.raw)
            env.write_hostfile(job)
            state.create(job)
            lease.mark_started(job.run_id)
            unit.start(job)
    except BaseException:
        _remove(folder)
        lease.release(job.run_id)
        raise
    _collect(KEEP_RUNS)
    blobs.collect()
    return repair.public(state.read(job.run_id) or {}, job.run_id)


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _release(request: dict[str, Any]) -> dict[str, Any]:
    lease.release(paths.run_id(request.get("run_id")), only_unstarted=True)
    return {}


def _ranks(ranks: list[dict[str, Any]], key: str | None = None) -> dict[str, Any]:
    """An answer of `status`; with the whole queue, when the run with this name or id (None: any run) is in it."""
    queue = lease.queue()
    told = queue and (key is None or any(key in (item["run_id"], item["run_name"]) for item in queue))
    return {"ranks": ranks, "queue": queue} if told else {"ranks": ranks}


def _repair_all() -> list[dict[str, Any]]:
    found = [(run, repair.repair(run)) for run in state.run_ids()]
    return [repair.public(value, run) for run, value in found if value is not None]


def _scheduled(key: str | None = None) -> list[dict[str, Any]]:
    """What `status` says of the node's schedules; most nodes have none, and need not load what makes them run."""
    if not os.path.isdir(paths.SCHEDULES):
        return []
    from . import schedule

    return schedule.shown(key)


def _status(request: dict[str, Any]) -> dict[str, Any]:
    if request.get("next") == "start":
        LATER.append(_load_for_start)
    key = request.get("run")
    if key is not None:
        run = state.find(key)
        value = repair.repair(run) if run is not None else None
        if run is not None and value is not None:
            return _ranks([repair.public(value, run)], key)
        waiting = [item for item in lease.current() if key in (item["run_id"], item["run_name"])]
        return _ranks([state.reserved(item) for item in waiting] or _scheduled(key), key)
    ranks = _repair_all()
    known = {value["run_id"] for value in ranks}
    ranks += [state.reserved(item) for item in lease.current() if item["run_id"] not in known]
    return _ranks(ranks + _scheduled())


def _stop(request: dict[str, Any]) -> dict[str, Any]:
    key = paths.run_key(request.get("run"))
    grace = request.get("grace")
    if grace is not None and (isinstance(grace, bool) or not isinstance(grace, (int, float)) or grace < 0):
        raise NodeError("bad-request", f"stop: grace is {str(grace)[:40]!r}, allowed is a number of seconds")
    with locks.held(lease.lock()):
        tickets.cancel(key, str(request.get("message") or request.get("reason") or "on request"))
    run = state.find(key)
    if run is None:
        return {"ranks": []}
    order = {"op": "stop", "abort": bool(request.get("abort")), "grace": grace, "message": request.get("message")}
    from . import control

    value = repair.repair(run)
    if value is not None and not state.is_settled(value):
        control.call(run, {**order, "reason": str(request.get("reason") or "stopped-by-user")})
    return _status({"run": run})


def _update(request: dict[str, Any]) -> dict[str, Any]:
    run = state.find(paths.run_key(request.get("run")))
    if run is None:
        return {"ranks": []}
    from . import control

    if control.call(run, {"op": "change", "inactivity": request.get("inactivity")}) is None:
        raise NodeError("not-found", f"run {request.get('run')} has ended on this node")
    return _status({"run": run})


def _forget(request: dict[str, Any]) -> dict[str, Any]:
    run = state.find(paths.run_key(request.get("run")))
    if run is not None:
        value = repair.repair(run)
        if state.is_alive(run) and not (value is not None and state.is_settled(value) and _has_gone(run)):
            raise NodeError("active", f"run {value and value.get('run_name')} is active on this node: stop it first")
        _remove(paths.run_dir(run))
    return {}


def _has_gone(run: str, patience: float = 10.0) -> bool:
    """Whether the supervisor of an ended run goes within `patience` seconds: it tells of the end before it does."""
    deadline = time.monotonic() + patience
    while state.is_alive(run):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _collect(keep: int) -> list[str]:
    """Remove the oldest finished runs beyond `keep`."""
    values = [value for value in (state.read(run) for run in state.run_ids()) if value is not None]
    done = [value for value in values if state.is_settled(value) and not state.is_alive(str(value["run_id"]))]
    surplus = sorted(done, key=state.age_key)[: max(0, len(done) - keep)]
    for value in surplus:
        _remove(paths.run_dir(str(value["run_id"])))
    return [str(value["run_id"]) for value in surplus]


def _gc(request: dict[str, Any]) -> dict[str, Any]:
    keep = request.get("keep", KEEP_RUNS)
    if type(keep) is not int or keep < 0:
        raise NodeError("bad-request", f"gc: keep is {str(keep)[:40]!r}, allowed is a number of runs")
    from . import blobs

    _repair_all()
    removed = _collect(keep)
    blobs.collect()
    return {"removed": removed}


def _have(request: dict[str, Any]) -> dict[str, Any]:
    from . import blobs

    return blobs.have(request)


def _schedule(request: dict[str, Any]) -> dict[str, Any]:
    from . import schedule

    return schedule.add(request)


def _unschedule(request: dict[str, Any]) -> dict[str, Any]:
    from . import schedule

    return schedule.remove(request)


OPERATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "probe": _probe,
    "examine": _examine,
    "reserve": _reserve,
    "start": _start,
    "release": _release,
    "queue": _queue,
    "dequeue": _dequeue,
    "status": _status,
    "stop": _stop,
    "update": _update,
    "forget": _forget,
    "gc": _gc,
    "have": _have,
    "schedule": _schedule,
    "unschedule": _unschedule,
}


def _operation(name: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    operation = OPERATIONS.get(name) if isinstance(name, str) else None
    if isinstance(name, str) and name.startswith("service-"):
        from .service_ops import OPERATIONS as FOR_SERVICES

        operation = FOR_SERVICES.get(name)
    if operation is None:
        raise NodeError("bad-request", f"unknown op {str(name)[:40]!r}, allowed is {', '.join(OPERATIONS)}")
    return operation


def answer(line: bytes) -> dict[str, Any]:
    """The answer to one request line; whatever the line holds, there is one."""
    number = None
    try:
        request = as_object(light.loads(line))
        number = request.get("id")
        return {"id": number, "ok": True, "result": _operation(request.get("op"))(request)}
    except NodeError as error:
        code, message = error.code, error.message
    except (ValueError, RecursionError):
        code, message = "bad-request", "the request is not JSON"
    except OSError as error:
        code, message = "internal", f"{error.strerror or error} ({error.filename or 'no file'})"
    return {"id": number, "ok": False, "error": {"code": code, "message": message}}


def main(args: list[str]) -> int:
    """Serve until standard input ends."""
    if args:
        raise NodeError("bad-request", "usage: runner.pyz serve")
    paths.make_state_dirs()
    lines = sys.stdin.buffer
    while True:
        line = lines.readline(MAX_REQUEST)
        if not line:
            return 0
        if line.strip():
            sys.stdout.buffer.write(light.compact(answer(line)).encode() + b"\n")
            sys.stdout.buffer.flush()
            while LATER:
                LATER.pop()()


def print_status(args: list[str]) -> int:
    """For people on the node: one line a run."""
    paths.make_state_dirs()
    ranks = _status({"run": args[0] if args else None})["ranks"]
    for value in ranks:
        since = time.strftime(
            "%Y-%m-%d %H:%M:%S", time.localtime(value.get("started_at") or value.get("submitted_at") or 0)
        )
        words = [
            value["run_name"],
            value["run_id"],
            f"rank {value['rank']}",
            value["state"],
            value["reason"] or "-",
            since,
        ]
        sys.stdout.write("  ".join(words) + "\n")
    return 0
