"""`instances`: which hosts of a fleet a run may use, by name, address or number in the fleet file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def meant(selector: InstanceSelector) -> set[str]:
        if names := {host.name for host in fleet.hosts if _means(selector, host, fleet)}:
            return names
        known = listed([host.name for host in fleet.hosts])
        raise SpecError(
            f"'instances' names {shown(selector)}, which is no host of {fleet.name} (hosts: {known}).",
            filename=task.source.filename,
            line=line_in(task, "instances"),
        )

    return names_of(task, fleet.name, meant)


def names_of(task: TaskSpec, fleet: str, meant: Callable[[InstanceSelector], set[str]]) -> set[str] | None:
    """What all selectors together mean that are not about other fleets; None when there are none."""
    if not task.instances:
        return None
    mine = [one for one in task.instances if one.fleet is None or one.fleet.rpartition("/")[2] == fleet]
    return set().union(*(meant(selector) for selector in mine))


def shown(selector: InstanceSelector) -> str:
    """A selector in a message."""
    return str(selector.name or selector.hostname or selector.instance)


def listed(names: Sequence[str]) -> str:
    """The first eight names."""
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _means(selector: InstanceSelector, host: FleetHost, fleet: Fleet) -> bool:
    if selector.fleet is not None:
        return host.index == selector.instance
    if selector.hostname is not None:
        return selector.hostname in (host.name, host.route.target.hostname, host.internal_ip)
    # dstack calls the hosts of a fleet <fleet>-<number>; a bare number is the place in the fleet file.
    return selector.name in (host.name, host.route.target.hostname, f"{fleet.name}-{host.index}", str(host.index))
