"""`lambdactl apply -f DEV`: a dev environment, carried out as a task of one node (run/dev.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lambdactl import spec
from lambdactl.cli import apply_task, dev_alias, dev_session
from lambdactl.cli.apply import Options
from lambdactl.cli.console import confirm, duration, note
from lambdactl.cli.dev_session import Place
from lambdactl.errors import CapacityError
from lambdactl.run.dev import IDES, as_task, digest, job_key
from lambdactl.run.nodes import Problem, call_all, same

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet
    from lambdactl.run.plan import RunPlan
    from lambdactl.run.status import RunStatus
    from lambdactl.run.survey import Survey
    from lambdactl.transport.api import Transport


def run(parsed: spec.DevEnvironmentSpec, options: Options) -> int:
    """Start a dev environment, or go back to the one that runs, and stay at it."""
    return apply_task.run(as_task(parsed), options, dev=DevRun(parsed, options))


class DevRun:
    """What is different from a task while a dev environment is applied."""

    def __init__(self, parsed: spec.DevEnvironmentSpec, options: Options) -> None:
        self.spec = parsed
        self._options = options
        self._included = False

    @property
    def rows(self) -> list[tuple[str, object]]:
        """Lines of the plan."""
        ide = IDES[self.spec.ide] if self.spec.ide else "none: SSH only"
        if self.spec.version:
            ide += f" {self.spec.version} (brings its own server when it connects)"
        limit = self.spec.inactivity_duration
        return [("IDE", ide), ("Inactivity", "off" if limit is None else duration(limit))]

    def running(self, name: str | None, seen: Survey) -> RunStatus | None:
        """The active dev environment of this name, if it is of the same file; an alias of another run is swept."""
        return next((status for status in seen.runs if status.name == name and status.dev is not None), None)

    def planned(self, plan: RunPlan) -> RunPlan:
        """The plan with what its node is told."""
        return replace(plan, dev=job_key(self.spec))

    def ready(self, fleet: Fleet, seen: Survey) -> None:
        """Called when the user has agreed to the plan: old aliases go, the include line is asked for."""
        dev_alias.sweep(fleet, seen.runs, seen.problems)
        self._included = dev_alias.include(yes=self._options.yes)

    def once_more(self) -> None:
        """Another attempt follows: the line that went with the alias of the last one comes back."""
        self._included = self._included and dev_alias.include(yes=True)

    async def again(self, status: RunStatus, fleet: Fleet, seen: Survey, transport: Transport) -> int:
        """The environment runs already: set its inactivity limit if that is what has changed, and go to it.

        Raises:
            CapacityError: the file says something else that cannot be changed while it runs.
        """
        dev, wanted = status.dev or {}, self.spec.inactivity_duration
        if dev.get("digest") != digest(self.spec):
            raise CapacityError(
                f"{status.name} runs on {status.hosts[0]} from another file, and only 'inactivity_duration' can be "
                f"changed meanwhile; stop it with `lambdactl stop {status.name}`, or choose another name with -n."
            )
        note(f"{status.name} runs already on {status.hosts[0]}.")
        if dev.get("inactivity") != wanted:
            shown = "off" if wanted is None else duration(wanted)
            if confirm(f"Set its inactivity_duration to {shown}?", yes=self._options.yes):
                request = same([status.hosts[0]], op="update", run=status.run_id, inactivity=wanted)
                for answer in (await call_all(transport, request)).values():
                    if isinstance(answer, Problem):
                        raise answer.error()
                note(f"inactivity_duration is {shown} now.")
        self.ready(fleet, seen)
        return await self._be_there(
            Place(fleet, transport, status.run_id, status.name, status.hosts[0], self._included)
        )

    async def stay(self, plan: RunPlan, fleet: Fleet, transport: Transport) -> int:
        """Be at the environment that was just submitted."""
        return await self._be_there(
            Place(fleet, transport, plan.run_id, plan.run_name, plan.nodes[0].name, self._included), mine=True
        )

    async def _be_there(self, place: Place, *, mine: bool = False) -> int:
        if self._options.detach:
            return await dev_session.wait_until_up(place, log_dir=self._options.log_dir)
        return await dev_session.stay(place, log_dir=self._options.log_dir, mine=mine)
