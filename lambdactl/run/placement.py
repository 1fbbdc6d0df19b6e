"""Where a run can go: what it wants of each host, which hosts can never take it, and which are in use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import NodeFacts
from lambdactl.fleet.match import reasons
from lambdactl.run import blocks, groups
from lambdactl.run.blocks import WHOLE, Want
from lambdactl.spec import TaskSpec


@dataclass(frozen=True)
class NodeView:
    """What is known of one host before a run: facts, leases and queue by its probe, or the problem that hides them."""

    name: str
    facts: NodeFacts | None = None
    leases: Sequence[Mapping[str, Any]] = ()
    problem: str | None = None
    queue: Sequence[Mapping[str, Any]] = ()


@dataclass
class Placement:
    """The outcome of a look for hosts.

    Attributes:
        chosen: host names in rank order; fewer than the task's nodes when it cannot start now.
        wants: what the run wants of each host that could take it, in use or not.
        excluded: for each host that is not chosen one clause that says why ("" where it is simply not needed).
        busy: the hosts among the excluded that only other runs keep from taking it.
        shortage: why the groups of a task do not fit, as a clause.
    """

    chosen: list[str] = field(default_factory=list)
    wants: dict[str, Want] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    shortage: str | None = None


def place(
    task: TaskSpec,
    fleet: Fleet,
    views: Mapping[str, NodeView],
    *,
    unaddressed: Mapping[str, str],
    lacking: Callable[[TaskSpec, NodeFacts], str | None] = lambda _task, _facts: None,
    whole: bool = False,
    refused: Mapping[str, str] | None = None,
) -> Placement:
    """Choose hosts: in the order of the file; a share of a host goes where the least is left free (dstack's: any).

    Args:
        unaddressed: why a host has no address for its peers.
        lacking: what a provisioned host lacks for this task, as a clause.
        whole: the run takes whole hosts although the fleet is divided into blocks.
        refused: hosts whose lease was refused a moment ago, with the clause that says why.
    """
    looks = [
        _look(part, fleet, views, unaddressed=unaddressed, lacking=lacking, whole=whole, refused=refused or {})
        for part in [groups.as_task(task, group) for group in task.groups or ()] or [task]
    ]
    if task.groups:
        return _grouped(task, looks)
    found, free = looks[0]
    if task.nodes == 1:
        free.sort(key=lambda name: _left(found.wants[name], views[name]))
    found.chosen = free[: task.nodes]
    found.excluded |= dict.fromkeys(free[task.nodes :], "")
    return found


def _look(
    task: TaskSpec,
    fleet: Fleet,
    views: Mapping[str, NodeView],
    *,
    unaddressed: Mapping[str, str],
    lacking: Callable[[TaskSpec, NodeFacts], str | None],
    whole: bool,
    refused: Mapping[str, str],
) -> tuple[Placement, list[str]]:
    """Who cannot take the task, and who is in use; and the hosts that are free for it, in the order of the file."""
    found = Placement()
    free: list[str] = []
    for host in fleet.hosts:
        view = views[host.name]
        lack = lacking(task, view.facts) if view.facts is not None and view.facts.runner is not None else None
        absent = unaddressed.get(host.name) if task.nodes > 1 else None
        want = _want(task, view, fleet.blocks_of(host), whole=whole, barred=lack or absent)
        if isinstance(want, str):
            found.excluded[host.name] = want
            continue
        found.wants[host.name] = want
        why = refused.get(host.name) or in_use(want, view)
        if why:
            found.excluded[host.name] = why
            found.busy.append(host.name)
        else:
            free.append(host.name)
    return found, free


def _grouped(task: TaskSpec, looks: Sequence[tuple[Placement, list[str]]]) -> Placement:
    """Hosts for unlike nodes: each group's own, as many as it wants."""
    sizes = [group.nodes for group in task.groups or ()]
    found = Placement(excluded=dict(looks[0][0].excluded))
    chosen = groups.assign([free for _, free in looks], sizes)
    if groups.assign([list(look.wants) for look, _ in looks], sizes) is not None:  # else waiting does not help
        found.wants = {name: want for look, _ in looks for name, want in look.wants.items()}
        found.busy = list(dict.fromkeys(name for look, _ in looks for name in look.busy))
        found.excluded |= {name: look.excluded[name] for look, _ in looks for name in look.busy}
    if chosen is None:
        found.shortage = groups.shortage(task, [free for _, free in looks], [look.excluded for look, _ in looks])
        return found
    found.chosen = [name for group in chosen for name in group]
    found.excluded = {name: why for name, why in found.excluded.items() if name not in found.chosen}
    spare = dict.fromkeys(name for _, free in looks for name in free if name not in found.chosen)
    found.excluded = {**dict.fromkeys(spare, ""), **found.excluded}
    return found


def _left(want: Want, view: NodeView) -> float:
    """How much of the host is free; whole hosts count alike, so that the order of the file decides."""
    if want.whole or view.facts is None:
        return 1.0
    return blocks.free(want.of, len(view.facts.gpus), view.leases) / want.of


def _want(task: TaskSpec, view: NodeView, setting: int | str, *, whole: bool, barred: str | None) -> Want | str:
    """What the run wants of a host, or why the host can never take it."""
    if view.facts is None or view.problem:
        return view.problem or "is not known; apply the fleet file first"
    if unfit := reasons(task.resources, view.facts):
        return "; ".join(unfit)
    if view.facts.runner is None:
        return "is not provisioned; apply the fleet file first"
    if barred:
        return barred
    if task.nodes > 1 or whole:
        return WHOLE
    try:
        of = blocks.division(setting, view.facts)
    except ValueError as error:
        return f"{error}; correct 'blocks' in the fleet file"
    return WHOLE if of == 1 else blocks.smallest(task.resources, view.facts, of) or WHOLE


def in_use(want: Want, view: NodeView) -> str | None:
    """Who keeps a host from taking a run, as a clause; None when there is room."""
    total = len(view.facts.gpus) if view.facts is not None else 0
    if blocks.fits(want, total, view.leases):
        return None
    oldest = sorted(view.leases, key=lambda lease: float(lease.get("since") or 0))
    shown = "; ".join(holder(lease) for lease in oldest[:3])
    more = f" and {len(view.leases) - 3} more" if len(view.leases) > 3 else ""
    if want.whole or any(lease.get("whole", True) for lease in view.leases):
        return f"is in use by {shown}{more}"
    left = blocks.free(want.of, total, view.leases)
    return f"has {left} of {want.of} blocks free, {want.blocks} wanted; in use by {shown}{more}"


def holder(lease: Mapping[str, Any]) -> str:
    """A lease in words: "run a of ann@laptop since 10:02 UTC (until 12:02 at the latest)"."""
    text = f"run {lease.get('run_name', '?')} of {lease.get('owner') or 'somebody'}"
    if lease.get("since"):
        text += f" since {clock(lease['since'])}"
    return text + (f" (until {clock(lease['ends'])} at the latest)" if lease.get("ends") else "")


def clock(moment: float) -> str:
    """A moment as people say it, in UTC; with the date when it is not today."""
    then, now = time.gmtime(float(moment)), time.gmtime()
    form = "%H:%M UTC" if then[:3] == now[:3] else "%Y-%m-%d %H:%M UTC"
    return time.strftime(form, then)
