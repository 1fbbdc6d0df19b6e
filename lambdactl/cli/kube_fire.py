"""`lambdactl scheduled`: what the pods of a schedule's CronJobs run. It starts the run and follows it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl.backends.kubernetes import schedules
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.schedule_task import Fired, content_of, read
from lambdactl.backends.kubernetes.schedule_view import minute_of
from lambdactl.cli import kube_task
from lambdactl.cli.apply import Options
from lambdactl.cli.console import note
from lambdactl.cli.run_options import effective
from lambdactl.errors import EXIT_OK, CapacityError, LambdactlError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from lambdactl.spec import TaskSpec

LATE = 600.0
"""Seconds after which a run is not started any more: its pod had no place, or no image."""
_LAST_WORDS = Path("/dev/termination-log")


def run(folder: Path, index: int) -> int:
    """Start what the folder holds, if that expression is due; the exit code is the run's."""
    at = minute_of(os.environ.get("LAMBDACTL_SCHEDULED_BY", ""))
    fired = read(folder, Path.cwd(), _effective)
    if at is not None and not fired.is_due(index, at):
        note("nothing is due today: day of month and day of week do not both match.")
        return EXIT_OK
    moment = time.time() if at is None else at
    try:
        if time.time() - moment > LATE:
            raise CapacityError(f"its pod was started {(time.time() - moment) / 60:.0f} minutes late.")
        code = asyncio.run(_start(fired, folder))
    except LambdactlError as error:
        _tell(fired, moment, str(error))
        raise
    _tell(fired, moment, None)
    return code


def _effective(task: TaskSpec, options: Mapping[str, Any]) -> TaskSpec:
    return effective(task, Options(**{name: options[name] for name in options if name != "keep"}))  # type: ignore[no-any-return]  # `effective` gives back the kind of spec that it got


async def _start(fired: Fired, folder: Path) -> int:
    content = await asyncio.to_thread(content_of, fired, folder, Path.cwd())
    options = Options(yes=True, fired=True, keep=bool(fired.options.get("keep")))
    return await kube_task.perform(fired.task, fired.fleet, fired.overrides, options, content)


def _tell(fired: Fired, moment: float, message: str | None) -> None:
    """Write the outcome down where `ps` finds it: as the last words of the pod, and at the CronJob."""
    with contextlib.suppress(OSError):
        _LAST_WORDS.write_text(json.dumps({"started": message is None, "message": message and message[:3000]}))

    async def body() -> None:
        async with open_client(fired.fleet.targets[0]) as client:
            await schedules.tell(client, fired.name, moment, message)

    with contextlib.suppress(LambdactlError):
        asyncio.run(body())
