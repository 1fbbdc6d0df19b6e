"""How a planned run comes to its nodes: reserved at once where they are free, else refused, or by the queue."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from lambdactl.errors import CapacityError, LambdactlError
from lambdactl.run.nodes import Problem, call_all, error_of, same
from lambdactl.run.placement import NodeView
from lambdactl.run.plan import RunPlan, Shortage, job_specs
from lambdactl.run.queue import Make, Queue
from lambdactl.run.submit import reserve
from lambdactl.transport.api import Transport

_ATTEMPTS = 3


@dataclass(frozen=True)
class Patience:
    """Whether a run waits for its turn on a full fleet, and how many seconds at most (None: as long as it takes)."""

    waits: bool = False
    limit: float | None = None
    never: bool = False
    """Not even where the file's `retry` would."""


async def admit(
    transport: Transport,
    views: Mapping[str, NodeView],
    make: Make,
    look: Callable[[], Awaitable[Mapping[str, NodeView]]],
    queue: Queue,
    patience: Patience,
    *,
    notify: Callable[[str], None] = lambda _text: None,
) -> RunPlan:
    """Reserve the nodes of a run; what is returned has to be started within a minute.

    Args:
        make: a plan from views, with the run's own id.
        look: views anew; needed when another controller was faster.
        queue: the run's place, which it may have already.

    Raises:
        Shortage, CapacityError: the fleet is in use and the run does not wait, or has waited long enough.
        Interrupted: it was stopped while it waited.
    """
    try:
        plan = await _at_once(transport, views, make, look)
    except CapacityError as error:
        hopeless = isinstance(error, NameTaken) or (isinstance(error, Shortage) and not error.passes)
        if not patience.waits or hopeless:
            await queue.leave()
            raise
    except BaseException:
        queue.views = dict(views)
        await queue.leave()
        raise
    else:
        await queue.started()
        return plan
    plan, waited = await queue.wait(await look(), make, limit=patience.limit)
    notify(f"{plan.run_name} has its nodes after {waited:.0f} s in the queue.")
    return plan


class NameTaken(CapacityError):
    """A run of that name is on a node: waiting would not help it."""


async def _at_once(
    transport: Transport,
    views: Mapping[str, NodeView],
    make: Make,
    look: Callable[[], Awaitable[Mapping[str, NodeView]]],
) -> RunPlan:
    kept: dict[str, str] = {}
    for attempt in range(_ATTEMPTS):
        if attempt:  # another controller was faster: let it go on, and look again
            await asyncio.sleep(random.uniform(0.1, 0.4) * attempt)  # noqa: S311 (jitter)
            views = await look()
        plan = make(views, kept)
        problems = await reserve(plan.run_id, plan.run_name, plan.owner, job_specs(plan), transport)
        if not problems:
            return plan
        await call_all(transport, same([node.name for node in plan.nodes], op="release", run_id=plan.run_id))
        kept |= {problem.host: f"is taken: {problem.message}" for problem in problems if problem.code == "queued"}
        final = next((problem for problem in problems if problem.code not in ("busy", "queued")), None)
        if final is not None or attempt == _ATTEMPTS - 1:
            raise _refusal(plan, problems, final or problems[0])
    raise AssertionError  # the last attempt returns or raises


def _refusal(plan: RunPlan, problems: list[Problem], first: Problem) -> LambdactlError:
    shown = "; ".join(problem.sentence.rstrip(".") for problem in problems[:4])
    text = f"{plan.run_name} was not started: {shown}."
    return NameTaken(text) if first.code == "exists" else error_of(first.code, text)
