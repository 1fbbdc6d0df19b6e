"""`lambdactl apply` of a task with `schedule`: it is left with its fleet, and started there at its times."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lambdactl.cli import delivery
from lambdactl.cli.console import note
from lambdactl.errors import EXIT_OK
from lambdactl.run import schedule

if TYPE_CHECKING:
    from lambdactl.run.plan import RunPlan
    from lambdactl.transport.api import Transport


async def hand_over(plan: RunPlan, transport: Transport) -> int:
    """Bring what the run takes with it to the nodes, and the run itself to rank 0's timer."""
    await delivery.deliver_content(transport, plan.places(), plan.content)
    due = await schedule.add(transport, plan)
    when = "is never due" if due is None else time.strftime("is started first at %Y-%m-%d %H:%M UTC", time.gmtime(due))
    note(f"{plan.run_name} {when}; `lambdactl stop {plan.run_name}` ends that.")
    return EXIT_OK
