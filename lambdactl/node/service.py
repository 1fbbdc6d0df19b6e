"""`runner.pyz service NAME`, on the ingress host: keeps a service's replicas running, and the proxy informed.

It needs no controller. It decides nothing itself (`service_plan` does), and its death harms nobody: the replicas are
runs of their own, the proxy goes on with what it was told, and the next supervisor reads where this one was.

Everything is imported at start: the zipapp may be replaced while this runs, and then it ends for a newer one's sake.
"""

from __future__ import annotations

import os
import queue
import signal
import time

from . import locks, paths, service_content, state
from .errors import NodeError
from .service_doc import Service
from .service_health import Health
from .service_ingress import Ingress
from .service_link import Link
from .service_plan import Plan
from .service_probe import Prober
from .service_proxy import Place
from .service_replica import describe, requests_to_start, requests_to_stop
from .service_state import HostView, Instance
from .service_store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TICK = 0.5
SILENT_IS_DOWN = 10.0
STOPPED = 100  # the exit code that tells systemd to leave it at that
PAUSED = 5.0  # a tick that took so long was a pause of this host, not of all others


class Supervisor:
    """One service."""

    def __init__(self, name: str) -> None:
        self.store = Store(name)
        desired = self.store.read("desired.json")
        if desired is None:
            raise NodeError("not-found", f"there is no service {name} on this node")
        previous = self.store.read("previous.json")
        self.plan = Plan(Service(desired), Service(previous) if previous else None)
        saved = self.store.read("state.json") or {}
        self.plan.restore(saved.get("plan") or {})
        self._inbox: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._links: dict[str, Link] = {}
        self._probers: dict[str, Prober] = {}
        self._health: dict[str, Health] = {}
        self._asked: set[str] = set()  # runs whose start or stop is on its way to their host
        self._ingress = Ingress(name)
        self._changed_at = self.store.changed_at()
        self._token = self.store.token()
        self._runner = paths.read_text(paths.OPT + "/runner.sha256")
        self._said: dict[str, Any] = {}
        self._ticked = time.monotonic()
        self._failed_revision = ""

    def run(self) -> int:
        """Serve until the service is stopped (100), or a newer runner should go on (0)."""
        while True:
            self._take(TICK)
            self._look_for_news()
            now = time.time()
            self._see_hosts()
            for action, item in self.plan.step(now):
                self._carry_out(action, item)
            self._follow_up()
            self._save()
            if self.plan.over:
                self._ingress.remove()
                self._save(final=True)
                return STOPPED
            if paths.read_text(paths.OPT + "/runner.sha256") != self._runner:
                return 0

    # What comes in

    def _take(self, patience: float) -> None:
        until = time.monotonic() + patience
        while True:
            try:
                message = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            self._handle(message)
            if message[0] == "answer":
                until = min(until, time.monotonic() + 0.05)

    def _handle(self, message: tuple[Any, ...]) -> None:
        kind, now = message[0], time.time()
        if kind == "probe":
            _, run, index, problem = message
            if run in self._health:
                self._health[run].probes[index].record(problem)
                self._tell_health(run, now)
        elif kind == "heard":
            link = self._links.get(message[1])
            if link is not None:
                link.last_heard, link.up, link.message = time.monotonic(), True, ""
            for run, value in message[2].items():
                self._saw(run, value, now)
        elif kind == "down":
            link = self._links.get(message[1])
            if link is not None:
                link.up, link.message = False, message[2]
        elif kind == "answer":
            self._answered(message[2], message[3], now)
        elif kind == "sent":
            self._sent(message[1], message[2], now)

    def _tell_health(self, run: str, now: float) -> None:
        health = self._health[run]
        self.plan.health(run, health.ready, health.broken, now)

    def _saw(self, run: str, value: dict[str, Any] | None, now: float) -> None:
        """A host's word on a run that it was asked for."""
        item = self.plan.find(run)
        if item is None or run in self._asked:
            return
        if value is None:
            if item.phase == "starting":
                self.plan.refused(run, "lost", "the host did not start it", now)
            else:
                self.plan.ended(run, "its host knows nothing of it any more", now)
        elif state.is_final(value):
            self.plan.ended(run, str(value.get("message") or value.get("reason") or value["state"]), now)
        elif item.phase == "starting" and value.get("state") in ("waiting", "running"):
            self.plan.started(run, now)

    def _answered(self, tag: tuple[str, str], answers: list[dict[str, Any]] | None, now: float) -> None:
        verb, run = tag
        if verb == "have" and answers and answers[-1].get("ok"):
            self._has(run, (answers[-1].get("result") or {}).get("missing") or [], now)
            return
        self._asked.discard(run)
        if answers is None:
            if verb in ("have", "start"):
                item = self.plan.find(run)
                if item is not None and not self._may_have_started(item):
                    self.plan.refused(run, "busy", "does not answer", now)
            return
        last = answers[-1]
        if verb in ("have", "start"):
            if last.get("ok"):
                self.plan.started(run, now)
            else:
                error = last.get("error") or {}
                self.plan.refused(run, str(error.get("code")), str(error.get("message")), now)
        elif last.get("ok") and not (last.get("result") or {}).get("ranks"):
            self.plan.ended(run, "stopped", now)

    def _may_have_started(self, item: Instance) -> bool:
        """A host that broke off in the middle is asked again when it is back; one that was never reached is not."""
        link = self._links.get(item.host)
        return link is not None and link.reached

    # What is wanted, and what is known of the hosts

    def _look_for_news(self) -> None:
        changed_at = self.store.changed_at()
        if changed_at == self._changed_at:
            return
        self._changed_at = changed_at
        self.plan.stopping = self.store.stopping
        desired = self.store.read("desired.json")
        if desired is not None:
            service = Service(desired)
            if service.revision != self.plan.service.revision:
                self.store.write("previous.json", self.plan.service.raw)
            self._failed_revision = ""
            self.plan.change(service, time.time())

    def _see_hosts(self) -> None:
        service = self.plan.service
        wanted = {host.name: host for host in service.hosts}
        for item in self.plan.instances:  # also those of a host that left the fleet: they must be stopped there
            known = self.plan.update.previous and self.plan.update.previous.host(item.host)
            if item.host not in wanted and known:
                wanted[item.host] = known
        for name, host in wanted.items():
            if name not in self._links:
                self._links[name] = Link(host, self._inbox, local=name == service.raw.get("ingress"))
        now = time.monotonic()
        paused, self._ticked = now - self._ticked > PAUSED, now
        for name, link in list(self._links.items()):
            if paused:
                link.last_heard = now
            silent = now - link.last_heard
            view = self.plan.hosts.setdefault(name, HostView())
            view.silent, view.message = silent, link.message
            view.up = link.up and silent < SILENT_IS_DOWN
            link.watch([item.run for item in self.plan.instances if item.host == name])
            if name not in wanted and not any(item.host == name for item in self.plan.instances):
                self._links.pop(name).close()
        if any(item.phase == "draining" for item in self.plan.instances):
            slots = self._ingress.connections()
            self.plan.connections = {
                item.run: 1 if slots is None else slots.get(item.slot, 0) for item in self.plan.instances
            }

    # What goes out

    def _carry_out(self, action: str, item: Instance) -> None:
        link = self._links.get(item.host)
        if link is None:
            self.plan.refused(item.run, "busy", "is not a host of this service", time.time())
            return
        if action == "start":
            self._asked.add(item.run)
            self._save()  # a supervisor that dies now leaves word of what it was about to start
            self._bring(item, link)
        else:
            if item.run in self._probers:
                self._probers.pop(item.run).close()
            self._sync()  # no new request may go to what is stopped next
            link.ask(("stop", item.run), requests_to_stop(item))

    def _bring(self, item: Instance, link: Link) -> None:
        """Start a replica; where it takes something with it, its host is asked first what it lacks of that."""
        host = self.plan.service.host(item.host) or link.host
        try:
            blobs = [] if link.local else service_content.wanted(host.job)
        except NodeError as error:
            self._asked.discard(item.run)
            self.plan.refused(item.run, error.code, error.message, time.time())
            return
        if blobs:
            link.ask(("have", item.run), [{"op": "have", "blobs": blobs}])
        else:
            self._start(item, link)

    def _start(self, item: Instance, link: Link) -> None:
        host = self.plan.service.host(item.host) or link.host
        link.ask(("start", item.run), requests_to_start(self.plan.service, host, item))

    def _has(self, run: str, missing: list[str], now: float) -> None:
        """The host has all but these."""
        item = self.plan.find(run)
        link = self._links.get(item.host) if item is not None else None
        if item is not None and link is not None and missing:
            service_content.send(link.host, run, missing, self._inbox)
        else:
            self._sent(run, None, now)

    def _sent(self, run: str, problem: str | None, now: float) -> None:
        item = self.plan.find(run)
        link = self._links.get(item.host) if item is not None else None
        if item is None or link is None or item.phase != "starting" or problem is not None:
            self._asked.discard(run)
            if item is not None and item.phase == "starting":
                self.plan.refused(run, "start-failed", problem or "is not a host of this service", now)
            return
        self._start(item, link)

    def _follow_up(self) -> None:
        """Probers for what runs, the proxy, the document that an update was taken back to."""
        active = {item.run: item for item in self.plan.instances if item.phase in ("running", "draining")}
        for run in [run for run in self._probers if run not in active]:
            self._probers.pop(run).close()
        for run in [run for run in self._health if self.plan.find(run) is None]:
            del self._health[run]
        for run, item in active.items():
            host = self._links.get(item.host)
            if run not in self._probers and host is not None and item.phase == "running":
                service = self._service_of(item)
                self._health[run] = Health(service.probes, ready=item.ready)
                self._probers[run] = Prober(run, host.host.ip, service.port, service.probes, self._inbox)
        if self.plan.update.state == "failed" and self._failed_revision != self.plan.service.revision:
            self._failed_revision = self.plan.service.revision
            self.store.write("desired.json", self.plan.service.raw)
            self._changed_at = self.store.changed_at()
        if self.plan.update.previous is None:
            self.store.remove("previous.json")
        self._sync()

    def _service_of(self, item: Instance) -> Service:
        previous = self.plan.update.previous
        if previous is not None and item.revision == previous.revision:
            return previous
        return self.plan.service

    def _sync(self) -> None:
        places = {}
        for item in self.plan.instances:
            link = self._links.get(item.host)
            if link is None or item.phase not in ("running", "draining") or item.ready_since is None:
                continue
            places[item.slot] = Place(link.host.ip, self._service_of(item).port, "ready" if item.serving else "drain")
        self._ingress.sync(self.plan.service, places, self._token)

    def _save(self, *, final: bool = False) -> None:
        now = time.time()
        summary = describe(self.plan, self._health, self._ingress.problem, now, final=final)
        value = {"plan": self.plan.as_dict(), "summary": summary}
        if value != self._said:
            self._said = value
            self.store.write("state.json", value)


def main(args: list[str]) -> int:
    """Supervise one service."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz service NAME")
    store = Store(args[0])
    if store.read("desired.json") is None:
        raise NodeError("not-found", f"there is no service {args[0][:60]} on this node")
    paths.make_state_dirs()
    lock = locks.acquire(store.path("supervisor.lock"), wait=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    code = Supervisor(args[0]).run()
    if lock is not None:
        os.close(lock)
    return code
