"""What a service's supervisor does next, decided from what is wanted and what was seen: no clocks, no sockets here.

`Plan` holds the replicas' instances. What was seen is told to it (`started`, `ended`, `health`, `hosts`), `step(now)`
answers with what is to be done: start a run on a host, or stop one. Which instances get requests is `Instance.serving`.

One replica of a service is on a host, because all of them listen on the same port. An update replaces one replica
after the other: a new one is started where a host is free, and the old one is drained when the new one is ready;
without a free host the old one is drained first, while the others serve.
"""

from __future__ import annotations

import uuid

from .service_state import Failures, HostView, Instance
from .service_update import Update

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .service_doc import Service

BACKOFF_MAX = 60.0
STEADY = 60.0  # seconds of being ready after which earlier failures are forgotten
BUSY_PAUSE = 5.0
STOP_AGAIN = 10.0


def backoff(count: int) -> float:
    """Seconds to wait after the `count`-th failure in a row: 1, 2, 4 ... 60."""
    return min(BACKOFF_MAX, 2.0 ** (count - 1)) if count < 8 else BACKOFF_MAX


class Plan:
    """The replicas of one service and what becomes of them."""

    def __init__(self, service: Service, previous: Service | None = None) -> None:
        self.service = service
        self.instances: list[Instance] = []
        self.failures: dict[int, Failures] = {}
        self.hosts: dict[str, HostView] = {}
        self.update = Update(self, previous)
        self.stopping = False
        self.connections: dict[str, int] = {}  # run: requests that are under way there
        self.waiting: dict[int, str] = {}  # number: why it has no instance now
        self._actions: list[tuple[str, Instance]] = []

    # What was seen

    def change(self, service: Service, now: float) -> None:
        """Somebody wants something else."""
        old, self.service = self.service, service
        if old.revision != service.revision:
            self.update.begin(old, now)
            for failures in self.failures.values():
                failures.count, failures.retry_at = 0, 0.0

    def find(self, run: str) -> Instance | None:
        """The instance of a run."""
        return next((item for item in self.instances if item.run == run), None)

    def started(self, run: str, now: float) -> None:
        """The host says that the run is there and has not ended."""
        item = self.find(run)
        if item is not None and item.phase == "starting":
            item.enter("running", now)

    def refused(self, run: str, code: str, message: str, now: float) -> None:
        """The host did not start it. Codes of a host in use are no failure: another one, or later."""
        item = self.find(run)
        if item is None or item.phase != "starting":
            return
        if code in ("busy", "queued", "exists"):
            view = self.hosts.setdefault(item.host, HostView())
            view.busy_until, view.busy_with = now + BUSY_PAUSE, message
            self.instances.remove(item)
            return
        self.ended(run, message, now)

    def ended(self, run: str, message: str, now: float) -> None:
        """A run is over, whatever ended it."""
        item = self.find(run)
        if item is None:
            return
        self.instances.remove(item)
        if item.phase in ("draining", "stopping") and not item.message:
            return  # as wanted
        failures = self.failures.setdefault(item.number, Failures())
        if item.ready_since is not None and now - item.ready_since >= STEADY:
            failures.count = 0
        failures.count += 1
        failures.retry_at = now + backoff(failures.count)
        failures.reason, failures.host = item.message or message, item.host
        self.update.failed(item, failures.reason, now)

    def health(self, run: str, ready: bool, broken: str, now: float) -> None:
        """The probes' opinion of an instance."""
        item = self.find(run)
        if item is None or item.phase not in ("running", "draining"):
            return
        if ready and not item.ready:
            item.ready_since = now
        item.ready = ready
        if broken and item.live:
            item.message = f"it was restarted because its probes failed: {broken}"
            self._stop(item, now)

    # What is to be done

    def step(self, now: float) -> list[tuple[str, Instance]]:
        """("start" | "stop", instance) in the order in which to do it; a stop may be asked for again."""
        self._actions, self.waiting = [], {}
        for item in self.instances:
            self._watch(item, now)
        if self.stopping:
            for item in self.instances:
                if item.phase in ("starting", "running"):
                    self._leave(item, now)
            return self._actions
        for item in self.instances:
            if item.number >= self.service.replicas and item.phase in ("starting", "running"):
                self._leave(item, now)
        for number in range(self.service.replicas):
            self._number(number, now)
        self.update.judge(now)
        return self._actions

    def _watch(self, item: Instance, now: float) -> None:
        """Lost and found hosts, drains that are over, stops that have to be asked for again."""
        view = self.hosts.get(item.host, HostView())
        if view.silent > self.service.node_timeout and not item.lost:
            item.lost, item.ready = True, False
        elif item.lost and view.up:
            item.lost = False
            if any(other.live and other.number == item.number for other in self.instances if other is not item):
                self._stop(item, now)
        if item.phase == "draining":
            over = now - item.since > self.service.drain_timeout
            if over or (now - item.since >= 1.0 and not self.connections.get(item.run, 0)):
                self._stop(item, now)
        elif item.phase == "stopping" and now - item.since > STOP_AGAIN:
            self._stop(item, now)

    def _stop(self, item: Instance, now: float) -> None:
        item.enter("stopping", now)
        item.ready = False
        self._actions.append(("stop", item))

    def _leave(self, item: Instance, now: float) -> None:
        """Out of service in order: drained where it has requests, else stopped at once."""
        if item.serving:
            item.enter("draining", now)
        else:
            self._stop(item, now)

    def _number(self, number: int, now: float) -> None:
        """See to one replica."""
        mine = [item for item in self.instances if item.number == number and item.live]
        wanted = [item for item in mine if item.revision == self.service.revision and self.service.host(item.host)]
        old = [item for item in mine if item not in wanted]
        if wanted:
            keep = next((item for item in wanted if item.serving), wanted[0])
            for item in wanted + old:
                if item is not keep and (keep.serving or item in wanted):
                    self._leave(item, now)
            return
        if old:
            if self.update.may_replace(number, old):
                self._replace(number, old, now)
            return
        self._start(number, now)

    def _replace(self, number: int, old: list[Instance], now: float) -> None:
        serving = [item for item in old if item.serving]
        for item in old:
            if item not in serving:
                self._leave(item, now)
        if serving and (self._retry_at(number) > now or self._start(number, now)):
            return
        others = any(item.serving for item in self.instances if item.number != number)
        if serving and (others or self.service.replicas == 1):
            self._leave(serving[0], now)

    def _retry_at(self, number: int) -> float:
        return self.failures.get(number, Failures()).retry_at

    def _start(self, number: int, now: float) -> bool:
        """Start the replica on a host; False, with the reason in `waiting`, when there is none or it is too early."""
        failures = self.failures.get(number, Failures())
        if failures.retry_at > now:
            self.waiting[number] = f"{failures.reason}; tried again after {backoff(failures.count):.0f} s"
            return False
        host = self._host(failures, now)
        if host is None:
            self.waiting[number] = self._why_no_host(now)
            return False
        slot = min(set(range(len(self.instances) + 1)) - {item.slot for item in self.instances})
        item = Instance(str(uuid.uuid4()), number, host, self.service.revision, slot, now)
        self.instances.append(item)
        self._actions.append(("start", item))
        return True

    def _host(self, failures: Failures, now: float) -> str | None:
        taken = {item.host for item in self.instances}
        free = [
            host.name
            for host in self.service.hosts
            if host.name not in taken and self._view(host.name).up and self._view(host.name).busy_until <= now
        ]
        if failures.count >= 3 and failures.host in free:
            free = [name for name in free if name != failures.host] + [failures.host]
        elif failures.host in free:
            return failures.host
        return free[0] if free else None

    def _view(self, name: str) -> HostView:
        return self.hosts.get(name, HostView())

    def _why_no_host(self, now: float) -> str:
        taken = {item.host for item in self.instances}
        clauses = []
        for host in self.service.hosts:
            view = self._view(host.name)
            if host.name in taken:
                clauses.append(f"{host.name} has a replica")
            elif not view.up:
                clauses.append(f"{host.name} does not answer")
            elif view.busy_until > now:
                clauses.append(f"{host.name}: {view.busy_with}")
        return "waits for a free host: " + "; ".join(clauses[:6])

    # For whoever looks

    @property
    def over(self) -> bool:
        """Whether the service was stopped and nothing of it is left on the hosts that answer."""
        return self.stopping and all(item.lost for item in self.instances)

    @property
    def ready(self) -> int:
        """How many replicas get requests."""
        return len({item.number for item in self.instances if item.serving})

    def as_dict(self) -> dict[str, Any]:
        """What must survive the supervisor."""
        return {
            "instances": [item.as_dict() for item in self.instances],
            "failures": {str(number): failures.as_dict() for number, failures in self.failures.items()},
            "update": self.update.as_dict(),
        }

    def restore(self, raw: dict[str, Any]) -> None:
        """Take up what `as_dict` gave."""
        self.instances = [Instance.from_dict(item) for item in raw.get("instances", ())]
        self.failures = {int(number): Failures(**fields) for number, fields in raw.get("failures", {}).items()}
        self.update.restore(raw.get("update") or {})
