"""The fleet's queue as a waiting controller uses it: a ticket on every host, renewed until the run is started.

The nodes keep the order and refuse whoever would go before it (node/tickets.py); the controller says what its run wants
(run/claims.py), looks every few seconds, and reserves all nodes as soon as they are free. It ends without a trace:
taken back on Ctrl-C and SIGTERM, and by itself half a minute after the controller was lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lambdactl.errors import CapacityError, Interrupted
from lambdactl.fleet import Fleet
from lambdactl.run.claims import Claim, Room, claims
from lambdactl.run.nodes import Problem, Reply, call_all, error_of, same
from lambdactl.run.placement import NodeView
from lambdactl.run.plan import RunPlan, Shortage, job_specs
from lambdactl.run.status import in_order, ordinal
from lambdactl.run.submit import reserve
from lambdactl.spec import format_duration
from lambdactl.transport.api import Transport

# A ticket outlives this many seconds without its controller; it is renewed every 2 to 10 s, by its place.
TICKET_TTL = 30.0
_SOONEST, _LATEST = 2.0, 10.0
_ANSWER = 15.0
_RECONNECT = ("lost", "unreachable", "timeout")

Make = Callable[[Mapping[str, NodeView], Mapping[str, str]], RunPlan]
"""A plan for what the hosts look like now, less those that refused (with the clause why); raises Shortage."""


@dataclass(frozen=True)
class Queued:
    """Who waits; times are seconds since the epoch.

    Attributes:
        since: its place among runs of the same priority; None: behind all of them.
        not_before: until then it waits by its own will (before another attempt) and holds nobody back.
    """

    run_id: str
    run_name: str
    owner: str
    nodes: int
    priority: int = 0
    since: float | None = None
    not_before: float | None = None
    submitted_at: float = field(default_factory=time.time)
    attempt: int = 1

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the runner's `queue` operation."""
        names = ("run_id", "run_name", "owner", "nodes", "priority", "since", "not_before", "submitted_at", "attempt")
        return {name: getattr(self, name) for name in names}


class Queue:
    """One run's place in a fleet's queue; `notify` gets a sentence whenever the place or the reason changes."""

    def __init__(
        self,
        transport: Transport,
        fleet: Fleet,
        who: Queued,
        *,
        notify: Callable[[str], None] = lambda _text: None,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._transport = transport
        self._all = [host.name for host in fleet.hosts]
        self._coming: dict[str, asyncio.Future[Any]] = {}
        self._notify = notify
        self._sleep = sleep
        self._told = ""
        self._claims: dict[str, Claim] = {}
        self._reason = ""
        self.who = who
        self.views: dict[str, NodeView] = {}

    async def wait(
        self, views: Mapping[str, NodeView], make: Make, *, limit: float | None = None
    ) -> tuple[RunPlan, float]:
        """Wait until the run's nodes are reserved for it, at most `limit` seconds; the plan, and how long it took.

        Raises:
            Interrupted: the run was stopped while it waited.
            CapacityError: the time is over, or another run took its name.
        """
        self.views = dict(views)
        began = time.monotonic()
        try:
            while True:
                await self.renew()
                plan = await self._try(make)
                waited = time.monotonic() - began
                if plan is not None:
                    await self.started()
                    return plan, waited
                await self._sleep(self._pause(waited, limit))
        except BaseException:
            await self.leave()
            raise

    def _pause(self, waited: float, limit: float | None) -> float:
        """Seconds to the next look; raises CapacityError when the run has waited as long as it may."""
        pause = min(_SOONEST + self._place()[0] - 1, _LATEST)
        if limit is None:
            return pause
        if waited >= limit:
            raise CapacityError(
                f"{self.who.run_name} waited {format_duration(int(limit))} for its turn, which is as long as it may: "
                f"{self._reason}."
            )
        return max(0.05, min(pause, limit - waited))

    async def rest(self, views: Mapping[str, NodeView], until: float, reason: str) -> None:
        """Keep the run's name and show it in the queue until a moment, holding nobody back; raises as `wait`."""
        self.views, self._reason = dict(views), reason
        self.who = replace(self.who, not_before=until)
        try:
            while (left := until - time.time()) > 0:
                await self.renew()
                await self._sleep(min(left, _SOONEST * 2))
        except BaseException:
            await self.leave()
            raise
        self.who = replace(self.who, not_before=None)

    async def leave(self) -> None:
        """Give the place, and all that is only reserved, back."""
        await asyncio.shield(asyncio.ensure_future(self._leave()))

    async def _leave(self) -> None:
        run = self.who.run_id
        for task in self._coming.values():
            task.cancel()
        await call_all(self._transport, same(self._present(), op="release", run_id=run), timeout=_ANSWER)
        await self.started()

    async def started(self) -> None:
        """Take the run out of the queue of every node, because it has its nodes; there is nothing to do without one."""
        await call_all(self._transport, same(self._present(), op="dequeue", run_id=self.who.run_id), timeout=_ANSWER)

    async def renew(self) -> None:
        """Put the ticket on every host, or keep it there; what the hosts answer is the next look's view."""
        names = self._present()
        answers: dict[str, Reply | Problem] = {}
        if self.who.since is None:  # the first host that answers says which place the run has, on all of them
            for name in list(names):
                names.remove(name)
                answers |= await self._ask([name])
                if not isinstance(reply := answers[name], Problem):
                    self.who = replace(self.who, since=float(reply["ticket"]["since"]))
                    break
                self._check(reply)
        answers |= await self._ask(names)
        for name, answer in answers.items():
            if isinstance(answer, Problem):
                self._check(answer)
                clause = f"does not answer: {answer.message.rstrip('.')}"
                self.views[name] = replace(self.views[name], problem=clause, leases=(), queue=())
                if answer.code in _RECONNECT:
                    self._coming[name] = asyncio.ensure_future(self._transport.connect([name]))
            else:
                leases, queue = answer.get("leases") or (), answer.get("queue") or ()
                self.views[name] = replace(self.views[name], problem=None, leases=leases, queue=queue)

    def _present(self) -> list[str]:
        """The hosts to ask: those that answered the survey, less those to which a new connection is being made."""
        self._coming = {name: task for name, task in self._coming.items() if not task.done()}
        known = [name for name, view in self.views.items() if view.facts is not None]
        return [name for name in self._all if name in known and name not in self._coming]

    async def _ask(self, names: list[str]) -> dict[str, Reply | Problem]:
        common = {"op": "queue", **self.who.fields, "ttl": TICKET_TTL, "reason": self._reason}
        requests = {name: {**common, **_claim(self._claims.get(name))} for name in names}
        return await call_all(self._transport, requests, timeout=_ANSWER)

    def _check(self, problem: Problem) -> None:
        """Raises for what ends the waiting; a host that is away does not."""
        if problem.code == "cancelled":
            raise Interrupted(f"{problem.message}.")
        if problem.code == "exists":
            raise CapacityError(f"{problem.message}; choose another name with -n.")
        if problem.code == "bad-request":
            raise error_of(problem.code, f"{problem.sentence}; apply the fleet file to update its runner.")

    async def _try(self, make: Make) -> RunPlan | None:
        """Reserve what is free, or say anew what the run wants of each host."""
        try:
            plan = make(self.views, {})
        except Shortage as short:
            wants, reason = dict(short.placement.wants), short.because
        else:
            refusals = await reserve(plan.run_id, plan.run_name, plan.owner, job_specs(plan), self._transport)
            if not refusals:
                return plan
            await call_all(self._transport, same(self._present(), op="release", run_id=plan.run_id), timeout=_ANSWER)
            wants, reason = dict(plan.wants), "; ".join(f"{p.host}: {p.message}" for p in refusals[:2])
        rooms = {}
        for name, want in wants.items():
            view = self.views[name]
            rooms[name] = Room(want, len(view.facts.gpus) if view.facts else 0, view.leases)
        waited = max(0.0, time.time() - (self.who.since or time.time()))
        self._claims = claims(rooms, self.who.nodes, now=time.time(), waited=waited)
        self._say(reason)
        return None

    def _say(self, reason: str) -> None:
        place, of = self._place()
        self._reason = reason
        text = f"{self.who.run_name} waits, {ordinal(place)} of {of} in the queue: {reason}."
        if text != self._told:
            self._told = text
            self._notify(text)

    def _place(self) -> tuple[int, int]:
        """(place, length) of the queue as the hosts see it."""
        runs = in_order(ticket for view in self.views.values() for ticket in view.queue)
        ids = [str(ticket["run_id"]) for ticket in runs]
        return (ids.index(self.who.run_id) + 1 if self.who.run_id in ids else 1), max(1, len(ids))


def _claim(claim: Claim | None) -> dict[str, Any]:
    if claim is None or claim.want is None:
        return {"want": None}
    return {
        "want": claim.want.request(),
        "holds": claim.holds,
        "drain": claim.drain,
        "earliest": claim.earliest,
    }
