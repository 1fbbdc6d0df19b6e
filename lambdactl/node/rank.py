"""`runner.pyz rank RUN`, the main process of a rank's unit: starts the job, keeps its log, stops it, records its end.

What the job needs is imported at start: the zipapp may be replaced while this runs.
"""

from __future__ import annotations

import os
import time

from . import control, env, lease, paths, places, share, spec, state, volumes
from .cgroup import JobGroup
from .control import ControlServer, Peer
from .coordinator import Coordinator
from .errors import NodeError
from .launch import User, find_user, known_uids, open_terminal, shell_argv, spawn
from .light import signal
from .logstore import LogWriter
from .loop import Loop, Timer
from .outcome import of_exit, of_stop
from .output import Output
from .prepare import Preparation
from .processes import ProcessTree
from .supervised import notify_ready, protect_from_oom, take_lock
from .utilization import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .container_rank import ContainerRank
    from .presence import DevEnvironment

SWEEP_INTERVAL, SWEEP_LIMIT, FIRST_CONTACT = 0.02, 10.0, 60.0
AGENT_GRACE = 5.0  # seconds that a worker waits for a coordinator whose connection has ended


class Supervisor:
    """One rank on this node, from waiting for its turn to its last words."""

    def __init__(self, job: spec.Job) -> None:
        self.job = job
        self.loop = Loop()
        self.log = LogWriter(paths.run_dir(job.run_id) + "/log", job.log_limit)
        self.processes: JobGroup | ProcessTree = JobGroup() if paths.has_systemd() else ProcessTree(self._helpers)
        self._take_in = share.adopting(job.share, self.processes.adopt)
        self.value = state.read(job.run_id) or state.create(job)
        self.coordinator: Coordinator | None = None
        self._preparation: Preparation | None = None
        self._watch: Watch | None = None
        self._pid: int | None = None
        self._status: int | None = None
        self._order: dict[str, Any] | None = None
        self._aborted = False
        self._timers: list[Timer] = []
        self._silence: Timer | None = None
        self._logins: dict[str, str] = {}
        self._sweep_until = 0.0
        self._oom_before = 0
        self.container = self._container() if job.container is not None else None
        self._uids = known_uids(job.user, job.node.ssh_user)
        self.control = ControlServer(
            self.loop, job.run_id, admits=self._uids.__contains__, handle=self._handle, on_agent=self._on_agent
        )
        self.dev = self._dev_environment()
        self._output = Output(
            self.loop,
            self.log,
            wake=lambda: self.control.wake(control.LOG_GREW),
            feed=lambda data: data if self.dev is None else self.dev.feed(data),
        )
        self.loop.on_signal(signal.SIGCHLD, self._reap)
        self.loop.on_signal(signal.SIGTERM, self._on_sigterm)

    def _dev_environment(self) -> DevEnvironment | None:
        if self.job.dev is None:
            return None
        from .presence import DevEnvironment

        return DevEnvironment(
            self.job,
            self.loop,
            publish=lambda value: self._update(dev=value),
            left_alone=lambda text: self._end("inactivity", text),
            adopt=self.processes.adopt,
        )

    def _container(self) -> ContainerRank:
        from .container_rank import ContainerRank

        return ContainerRank(
            self.loop,
            self.job,
            self.processes.adopt,
            on_pull=lambda amounts: self._update(pull=amounts),
            on_note=lambda text: self.log.write(f"lambdactl: {text}\n".encode()),
            on_ready=self._prepared,
            on_failed=self._start_failed,
        )

    def _helpers(self) -> set[int]:
        links = self.coordinator.links if self.coordinator is not None else []
        own = (self._preparation, self._watch)
        return {item.pid for item in (*links, *own) if item is not None and item.pid is not None}

    def run(self) -> None:
        """Serve until the rank, and on rank 0 the gang, has ended."""
        if self.job.prepares:
            self._preparation = Preparation(
                self.loop, self.job, on_message=lambda text: self._update(message=text), on_end=self._in_place
            )
        if self.job.rank == 0:
            self.coordinator = Coordinator(
                self.loop,
                self.job,
                on_start=self.start,
                on_stop=self.stop,
                on_gang=lambda summary: self._update(gang=summary),
                on_end=self.loop.stop,
            )
            self._publish()
        else:
            self._silence = self.loop.later(max(self.job.node_timeout, FIRST_CONTACT), self._coordinator_lost)
            if self.job.startup_order != "master-first" and not self.job.gated:
                self.start()
        if not self.job.prepares:
            self._prepare_container()
        self.loop.run()

    def _update(self, **changes: Any) -> None:
        self.value = state.update(self.job.run_id, **changes)
        self.control.wake(control.STATE_CHANGED)

    def _publish(self) -> None:
        if self.coordinator is not None:
            self.coordinator.observe_own(self.value)
        elif state.is_final(self.value):
            self.loop.stop()

    # Starting

    def _in_place(self, problem: str | None) -> None:
        if problem is not None:
            self._start_failed(problem)
            return
        self._update(prepared=True, message=None)
        self._prepare_container()
        self._publish()

    def _prepare_container(self) -> None:
        if self.container is not None:
            try:
                self.container.prepare()
            except NodeError as error:
                self._start_failed(error.message)

    def start(self) -> None:
        """Start the job's commands, once."""
        if self._pid is not None or self.value["state"] != "waiting" or self._order is not None:
            return
        try:
            self._launch(find_user(self.job.user))
        except (NodeError, OSError) as error:
            self._start_failed(error.message if isinstance(error, NodeError) else str(error))
            return
        if self.container is None:
            self._started()

    def _prepared(self) -> None:
        """The image is here and the container is made."""
        if self.value["state"] == "pulling":
            self._update(state="waiting")
            self._publish()

    def _start_failed(self, text: str) -> None:
        if not state.is_final(self.value):
            message = f"{text} (node {self.job.node.name})"
            self._finish({"state": "failed", "reason": "start-failed", "exit_code": None, "message": message})

    def _started(self) -> None:
        if self._order is not None or self._status is not None:
            return
        self._update(state="running", pid=self._pid, ready_at=time.time())
        if self.job.max_duration is not None:
            text = f"max_duration of {self.job.max_duration:g} s is over"
            self._timers.append(self.loop.later(self.job.max_duration, lambda: self._end("max-duration", text)))
        if self.job.utilization is not None:
            self._watch = Watch(self.loop, self.job.utilization, self.job.gpus, self._idles)
        self._publish()

    def _launch(self, user: User) -> None:
        if self.container is not None:
            if self.dev is not None:
                self.dev.prepare_container(user)
            self._pid = self.container.start(self._started)
            self._output.follow(self.container.terminal)
            return
        variables = env.environment(self.job, user)
        self._logins = env.for_logins(self.job, user, variables)
        self._oom_before = self.processes.oom_kills()
        terminal, theirs = open_terminal()
        os.set_blocking(terminal, False)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        directory = places.working_dir(self.job, user)
        if self.dev is not None:
            self.dev.prepare(user, variables, directory)
        try:
            self._pid = spawn(
                shell_argv(self.job.shell, self.job.script, paths.run_dir(self.job.run_id) + "/script", user),
                user,
                variables,
                (null, theirs, theirs),
                cwd=directory,
                job=self._take_in,
                setup=lambda: volumes.enter_own(self.job),
            )
        finally:
            for descriptor in (null, theirs):
                os.close(descriptor)
        self._output.follow(terminal)

    # The job's output and end

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._preparation is not None and pid == self._preparation.pid:
                self._preparation.reaped(status)
            if self._watch is not None and pid == self._watch.pid:
                self._watch.pid = None
            if pid == self._pid:
                self._status = status
                self._sweep_until = time.monotonic() + SWEEP_LIMIT
                self._sweep(status)
            for link in self.coordinator.links if self.coordinator is not None else ():
                if link.pid == pid:
                    link.reaped()

    def _sweep(self, status: int) -> None:
        """Kill what the job has left behind until nothing of it remains, then record the end."""
        self._kill()
        left = self.processes.pids()
        if left and time.monotonic() < self._sweep_until:
            self.loop.later(SWEEP_INTERVAL, lambda: self._sweep(status))
            return
        size = -1
        while size != self.log.size:  # a rank's last words are still in the terminal
            size = self.log.size
            self._output.read()
        known, oom = self.container.outcome() if self.container is not None else (None, False)
        if known is None and self.container is not None and self.value["ready_at"] is None:
            self._update(ready_at=time.time())  # it ended before it was seen to run
        oom = oom or self.processes.oom_kills() > self._oom_before
        outcome = (known or of_exit(status, oom=oom)) if self._order is None else of_stop(self._order, status)
        if left:
            outcome["message"] = (
                f"{outcome['message']}; {len(left)} processes cannot be killed (in an uninterruptible wait)"
            )
        self._finish(outcome)

    def _kill(self) -> None:
        self.processes.kill(signal.SIGKILL)
        if self.container is not None:
            self.container.kill()

    def _finish(self, outcome: dict[str, Any]) -> None:
        for helper in (self._preparation, self._watch, self.dev):
            if helper is not None:
                helper.close()
        for timer in self._timers:
            timer.cancel()
        if self._silence is not None:
            self._silence.cancel()
        self.log.close()
        sizes = {"log_size": self.log.size, "log_start": self.log.start, "log_dropped": self.log.dropped}
        self._update(**outcome, **sizes, finished_at=time.time())
        lease.release(self.job.run_id)
        self._publish()

    # Stopping

    def stop(self, order: dict[str, Any]) -> None:
        """Carry out a stop order: signal, grace, SIGKILL; or SIGKILL at once. A later abort hurries an earlier stop."""
        if state.is_final(self.value) or self._status is not None:
            return
        if self._order is not None and (self._aborted or not order.get("abort")):
            return
        first = self._order is None
        self._order = self._order or order
        self._aborted = bool(order.get("abort"))
        if self._pid is None:
            self._kill()  # an image may be on its way
            self._finish(of_stop(self._order, None))
            return
        if first:
            self._update(state="stopping", reason=order["reason"], message=order.get("message"))
        if self._aborted:
            self._kill()
            return
        grace = order.get("grace")
        self._timers.append(self.loop.later(self.job.stop_grace if grace is None else grace, self._kill))
        self._signal_job()
        self._publish()

    def _signal_job(self) -> None:
        if self.dev is not None and self._pid is not None and self.container is None:  # an engine ends its own
            self.dev.farewell(self._pid, self.processes.pids, self._signal_commands)
        else:
            self._signal_commands()

    def _signal_commands(self) -> None:
        if self._pid is not None and self._status is None:
            try:
                os.killpg(self._pid, self.job.stop_signal)
            except ProcessLookupError:
                return

    def _ask_stop(self, request: dict[str, Any]) -> None:
        reason, message = str(request.get("reason") or "stopped-by-user"), request.get("message")
        abort, grace = bool(request.get("abort")), request.get("grace")
        if self.coordinator is not None:
            self.coordinator.ask_stop(reason, message, abort=abort, grace=grace)
        else:
            self.stop({"reason": reason, "message": message, "abort": abort, "grace": grace})

    def _end(self, reason: str, text: str) -> None:
        self.stop({"reason": reason, "message": text, "abort": False, "grace": None})

    def _idles(self, text: str) -> None:
        self._ask_stop({"reason": "utilization-policy", "message": f"{text} (node {self.job.node.name})"})

    def _on_sigterm(self) -> None:
        down = paths.is_shutting_down()
        reason = "node-rebooted" if down else "stopped-by-user"
        text = "the node is shutting down" if down else "the unit was stopped on the node"
        self._ask_stop({"reason": reason, "message": text})

    # What others ask for, and signs of life of the coordinator

    def _handle(self, request: dict[str, Any], peer: Peer) -> dict[str, Any]:
        operation = request.get("op")
        if operation == "adopt":
            if self.container is not None and not request.get("entered"):
                return {"container": True}
            return self._adopt(peer)
        if peer.uid not in (0, os.geteuid()):
            raise NodeError("bad-request", f"only root may ask for {operation!r}")
        if self.dev is not None and operation in self.dev.operations:
            return {**self.dev.handle(request, peer, self.value["state"]), "inside": self._inside()}
        if operation == "go":
            self.start()
        elif operation == "stop":
            self._ask_stop(request)
        elif operation not in ("status", "subscribe"):
            raise NodeError("bad-request", f"unknown operation {operation!r}")
        return {"state": self.value}

    def _adopt(self, peer: Peer) -> dict[str, Any]:
        if self.value["state"] != "running":
            raise NodeError("not-found", "the run's commands are not running on this node")
        return {"adopted": self._take_in(peer.pid), "env": self._logins, "inside": self._inside()}

    def _inside(self) -> int | None:
        """A process whose mount namespace others must enter to see the run's volumes."""
        return self._pid if volumes.mounted(self.job) else None

    def _on_agent(self, present: bool) -> None:
        if self._silence is None or state.is_final(self.value):
            return
        patience = self.job.node_timeout
        seconds = patience if present or self.control.agents() else min(patience, AGENT_GRACE)
        self._silence.cancel()
        self._silence = self.loop.later(seconds, self._coordinator_lost)

    def _coordinator_lost(self) -> None:
        master = self.job.nodes[0]
        text = f"nothing heard from the coordinator on rank 0 ({master.name}, {master.ip})"
        self.stop({"reason": "coordinator-lost", "message": text, "abort": False, "grace": None})


def main(args: list[str]) -> int:
    """Supervise one rank to its end; 0 whatever became of it, because the state says that."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz rank RUN")
    job = spec.load(args[0])
    lock = take_lock(job.run_id)
    value = state.read(job.run_id)
    if value is None or value["state"] not in ("waiting", "pulling"):
        raise NodeError("active", f"run {job.run_id} does not wait to be started on this node")
    protect_from_oom()
    supervisor = Supervisor(job)
    notify_ready()
    supervisor.run()
    os.close(lock)
    return 0
