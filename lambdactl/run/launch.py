"""A run from its file to its end, as far as a controller takes part: nodes at once or by the queue, attempt by attempt.

What needs the controller: waiting in the queue, and trying again. A started attempt needs nobody (docs/runner.md).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from lambdactl.errors import Interrupted
from lambdactl.fleet import Fleet
from lambdactl.run.admission import Patience, admit
from lambdactl.run.content import RunContent
from lambdactl.run.placement import NodeView
from lambdactl.run.plan import Overrides, RunPlan, make_plan, owner, random_name
from lambdactl.run.queue import Queue, Queued
from lambdactl.run.retry import Attempts
from lambdactl.run.status import RunStatus
from lambdactl.run.survey import survey
from lambdactl.spec import TaskSpec
from lambdactl.transport.api import Transport


@dataclass(frozen=True)
class Wishes:
    """Which run is wanted: the file, what the command line adds, and whether it waits on a full fleet."""

    task: TaskSpec
    overrides: Overrides
    patience: Patience = field(default_factory=Patience)
    finish: Callable[[RunPlan], RunPlan] = lambda plan: plan
    """What another kind of run adds to each plan."""
    content: RunContent | None = None
    """What the run takes with it."""


class Launch:
    """One run of a name over all its attempts.

    Args:
        only: hosts that may be used; None: all of the fleet.
        notify: gets a sentence whenever something is to be told while nothing of the run is to be seen.
    """

    def __init__(
        self,
        transport: Transport,
        fleet: Fleet,
        wishes: Wishes,
        *,
        only: list[str] | None = None,
        notify: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._transport = transport
        self._fleet = fleet
        self._task = wishes.task
        self._only = only
        self._notify = notify
        self._patience = wishes.patience
        self._finish = wishes.finish
        self._content = wishes.content
        self.name = wishes.overrides.name or wishes.task.name or random_name()
        self._overrides = replace(wishes.overrides, name=self.name)
        self.submitted_at = time.time()
        self.attempts = Attempts(wishes.task.retry, self.submitted_at)
        self.run_id = str(uuid.uuid4())
        self._queue = self._new_queue()

    @property
    def waits(self) -> Patience:
        """Whether this attempt waits on a full fleet, and how long: by the user's word, else by the file's `retry`."""
        if self._patience.waits or (self._patience.never and self.attempts.number == 1):
            return self._patience
        limit = self.attempts.patience(time.time())
        return Patience(waits=limit is not None, limit=limit)

    def make(self, views: Mapping[str, NodeView], refused: Mapping[str, str]) -> RunPlan:
        """The plan of this attempt on the hosts as they are; raises Shortage, SpecError."""
        plan = make_plan(self._task, self._fleet, self._allowed(views), self._overrides, self._content, refused=refused)
        attempt = self.attempts.as_job() if self.attempts.policy is not None else None
        return self._finish(replace(plan, run_id=self.run_id, submitted_at=self.submitted_at, attempt=attempt))

    async def nodes(self, views: Mapping[str, NodeView]) -> RunPlan:
        """Reserve the nodes of this attempt; raises as `admission.admit`."""
        return await admit(
            self._transport, views, self.make, self._look, self._queue, self.waits, notify=self._notify
        )  # fmt: skip

    async def again(self, status: RunStatus | None) -> bool:
        """Whether another attempt is to be made of a run that has ended; the back-off is over then.

        Raises:
            Interrupted: the run was stopped meanwhile.
        """
        if status is None or not status.final:
            return False
        pause = self.attempts.after(status, time.time())
        if pause is None:
            return False
        why = status.message or status.reason or "it failed"
        text = f"attempt {self.attempts.number - 1} of {self.name} failed ({why}); the next one is in {pause:.0f} s"
        self._notify(f"{text}.")
        self.submitted_at, self.run_id = time.time(), str(uuid.uuid4())
        self._queue = self._new_queue()
        await self._queue.rest(await self._look(), time.time() + pause, text)
        return True

    async def look(self) -> Mapping[str, NodeView]:
        """The hosts as they are now."""
        return await self._look()

    async def _look(self) -> Mapping[str, NodeView]:
        return (await survey(self._transport, self._fleet, task=self._task)).views

    def _allowed(self, views: Mapping[str, NodeView]) -> Mapping[str, NodeView]:
        if self._only is None:
            return views
        return {
            name: view if name in self._only else NodeView(name, problem="is not among the hosts of this play")
            for name, view in views.items()
        }

    def _new_queue(self) -> Queue:
        who = Queued(
            self.run_id,
            self.name,
            owner(),
            self._task.nodes,
            priority=self._task.priority,
            submitted_at=self.submitted_at,
            attempt=self.attempts.number,
        )
        return Queue(self._transport, self._fleet, who, notify=self._notify)


def left_queue(name: str) -> Interrupted:
    """The error of a run that was interrupted before it had started."""
    return Interrupted(f"interrupted; {name} was not started, and nothing of it is left on the nodes.")
