"""What the action plugin lambdactl_validate does, without Ansible in it: task variables in, plain data out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lambdactl import spec
from lambdactl.doctor import examine
from lambdactl.errors import SpecError
from lambdactl.provision.actions import play_fleet
from lambdactl.run.plan import NodeView
from lambdactl.run.survey import survey
from lambdactl.state import State
from lambdactl.validate.flow import Flow, Watcher
from lambdactl.validate.hardware import Network
from lambdactl.validate.record import Validation
from lambdactl.validate.steps import Options, make_plan


async def validate_play(task_vars: Mapping[str, Any], options: Options) -> Validation:
    """Validate the hosts of a play, and keep the record in this user's state folder.

    Raises:
        LambdactlError: there is nothing to validate, or no host can be reached.
    """
    from lambdactl.transport import open_transport

    fleet, names = play_fleet(task_vars)
    async with open_transport(fleet) as transport:
        seen = await survey(transport, fleet)
        views = {
            name: view if name in names else NodeView(name, problem="is not among the play's hosts")
            for name, view in seen.views.items()
        }
        plan = make_plan(fleet, views, options)
        report = await examine(fleet, transport, names=plan.nodes)
        doctor = [finding.as_json() for finding in report.findings]
        silent = Watcher(lambda _title, _seconds: None, lambda _record: None)
        found = await Flow(transport, fleet, views, plan, options, silent).run(doctor)
    with State() as state:
        state.remember_validation(found.id, found.fleet_id, found.started_at, found.as_json())
    return found


def options_of(arguments: Mapping[str, Any]) -> Options:
    """The action's arguments as options.

    Raises:
        SpecError: an argument is not valid.
    """
    nics, rate = arguments.get("nics"), arguments.get("nic_gbps")
    try:
        network = Network(int(nics), float(rate)) if nics and rate else None
        rounds = int(arguments.get("rounds") or 3)
    except (TypeError, ValueError):
        raise SpecError("nics, nic_gbps and rounds must be numbers.") from None
    if bool(nics) != bool(rate):
        raise SpecError("nics and nic_gbps belong together; give both, such as 8 and 400.")
    given = tuple(spec.parse_env_item(f"{key}={value}") for key, value in dict(arguments.get("env") or {}).items())
    return Options(
        cpu=_switch(arguments, "cpu"),
        pairs=_switch(arguments, "pairs"),
        rails=_switch(arguments, "rails", default=True),
        network=network,
        env=spec.resolve_env(given, os.environ),
        rounds=max(2, rounds),
    )


def _switch(arguments: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """Ansible's words for yes and no."""
    value = arguments.get(name, default)
    return value if isinstance(value, bool) else str(value).strip().lower() in ("1", "y", "yes", "t", "true", "on")
