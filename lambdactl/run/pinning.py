"""`instances`: which hosts of a fleet a run may use, by name, address or number in the fleet file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambdactl.errors import SpecError
from lambdactl.fleet import Fleet, FleetHost
from lambdactl.spec import TaskSpec, line_in

if TYPE_CHECKING:
    from lambdactl.spec.fields import InstanceSelector


def pinned(task: TaskSpec, fleet: Fleet) -> set[str] | None:
    """The names of the hosts that the task names; None when it names none: all are.

    Raises:
        SpecError: an entry names no host of this fleet.
    """
    if not task.instances:
        return None
    found: set[str] = set()
    for selector in task.instances:
        if selector.fleet is not None and selector.fleet.rpartition("/")[2] != fleet.name:
            continue  # it is about another fleet
        names = {host.name for host in fleet.hosts if _means(selector, host, fleet)}
        if not names:
            shown = selector.name or selector.hostname or selector.instance
            raise SpecError(
                f"'instances' names {shown}, which is no host of {fleet.name} (hosts: "
                f"{', '.join(host.name for host in fleet.hosts[:8])}{', ...' if len(fleet.hosts) > 8 else ''}).",
                filename=task.source.filename,
                line=line_in(task, "instances"),
            )
        found |= names
    return found


def _means(selector: InstanceSelector, host: FleetHost, fleet: Fleet) -> bool:
    if selector.fleet is not None:
        return host.index == selector.instance
    if selector.hostname is not None:
        return selector.hostname in (host.name, host.route.target.hostname, host.internal_ip)
    # dstack calls the hosts of a fleet <fleet>-<number>; a bare number is the place in the fleet file.
    return selector.name in (host.name, host.route.target.hostname, f"{fleet.name}-{host.index}", str(host.index))
