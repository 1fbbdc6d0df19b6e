"""`retry` on Kubernetes: a run's attempts, made by the machine that follows it.

The Job's own `backoffLimit` is something else: it starts single pods again, at times of its own, without a new gang and
new addresses, and knows neither of dstack's events nor of its windows. So each attempt is a Job of its own, as it is a
run of its own on SSH hosts (run/retry.py). The Job of the last one stays meanwhile: it holds the name, and `stop`
removes it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lambdactl.errors import Interrupted
from lambdactl.run.retry import Attempts

from .model import RETRY
from .resources import JOBS
from .session import open_session

if TYPE_CHECKING:
    from lambdactl.run.status import RunStatus

    from .client import Client


async def rest(client: Client, attempts: Attempts, status: RunStatus, notify: Callable[[str], None]) -> bool:
    """Whether there is another attempt after this end of a run; the back-off is over then.

    Raises:
        Interrupted: the run was stopped meanwhile.
    """
    pause = attempts.after(status, time.time())
    if pause is None:
        return False
    why = (status.message or status.reason or "it failed").rstrip(".")
    notify(f"attempt {attempts.number - 1} of {status.name} failed ({why}); the next one is in {pause:.0f} s.")
    until = time.time() + pause
    mark = json.dumps({"at": until, "attempt": attempts.number})
    if await client.find(JOBS, status.name) is not None:
        await client.patch(JOBS, status.name, {"metadata": {"annotations": {RETRY: mark}}})
    async with open_session(client, status.run_id, status.name) as session:
        there = session.view.job is not None
        gone = await session.until(lambda view: there and view.job_gone, timeout=max(0.0, until - time.time()))
    if gone:
        raise Interrupted(f"{status.name} was stopped between two attempts.")
    return True
