"""How `apply` starts a run: by the playbook, which is itself started while the nodes are looked at.

ansible-playbook takes half a second until it asks for the plan, about as long as a look at the nodes; so both run side
by side where nobody is asked for anything in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lambdactl.errors import Interrupted, LambdactlError
from lambdactl.fleet import Fleet
from lambdactl.play import Playing, playing
from lambdactl.run.nodes import error_of
from lambdactl.run.plan import RunPlan
from lambdactl.run.submit import write_plan_file
from lambdactl.state import State

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport


class Refused(Exception):
    """The nodes did not take the run; `error` is what the command ends with."""

    def __init__(self, error: LambdactlError) -> None:
        super().__init__(str(error))
        self.error = error


class Submission:
    """Starts the runs of one command, each by a playbook that uses this process's connections."""

    def __init__(self, fleet: Fleet, transport: Transport) -> None:
        self.transport = transport
        self._fleet = fleet
        self._begun: tuple[Playing, Path] | None = None
        self._terminated = False
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._close()
        if self._terminated and kind is asyncio.CancelledError:
            raise Interrupted("terminated; no run was started.") from None

    async def begin(self) -> None:
        """Start the playbook for a run that is about to be planned; where no plan is made it ends without one.

        From here on SIGTERM, too, ends the playbook before this process.
        """
        here = asyncio.current_task()

        def terminate() -> None:
            self._terminated = True
            if here is not None:
                here.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        self._begun = await self._stack.enter_async_context(self._playbook())

    @contextlib.asynccontextmanager
    async def _playbook(self) -> AsyncIterator[tuple[Playing, Path]]:
        with State() as state:
            record = state.fleet(self._fleet.id)
        text = record.text if record else ""
        with tempfile.TemporaryDirectory(prefix="lambdactl-") as folder:
            plan_file = Path(folder) / "plan.json"
            variables = {"lambdactl_plan_file": str(plan_file)}
            async with playing("run_task", self._fleet, text, self.transport, variables=variables) as running:
                yield running, plan_file

    async def submit(self, plan: RunPlan) -> None:
        """Start the run on all its nodes.

        Raises:
            Refused: it was not started, because of the nodes.
            LambdactlError: it was not started, because of the playbook.
        """
        if self._begun is None:
            await self.begin()
        assert self._begun is not None  # noqa: S101 (begin() comes first)
        running, plan_file = self._begun
        try:
            write_plan_file(plan, plan_file)
            result = await running.result()
        finally:
            await self._close()
        outcome = _outcome(result)
        if outcome is None:
            failure = (
                result.failures[0].sentence
                if result.failures
                else f"ansible-playbook ended with exit code {result.rc}."
            )
            raise LambdactlError(f"{plan.run_name} was not started: {failure}")
        if not outcome["ok"]:
            raise Refused(error_of(outcome["code"], outcome["error"]))

    async def _close(self) -> None:
        """Nothing of a playbook is left, nor of the plan, which holds the user's environment."""
        begun, self._begun = self._begun, None
        if begun is not None and not begun[1].exists():
            begun[1].write_text("{}")  # no plan: it ends in order, and sooner than by a signal
        await self._stack.aclose()
        if begun is not None:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


def _outcome(result: Any) -> dict[str, Any] | None:
    """The submit action's answer, from the events of the playbook."""
    for task_result in result.results:
        outcome = task_result.get("lambdactl_submit")
        if isinstance(outcome, dict):
            return outcome
    return None
