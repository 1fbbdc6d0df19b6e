"""One look at every node before a run: facts, leases and the active runs, in one exec a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import NodeFacts
from lambdactl.run.container import image_of
from lambdactl.run.nodes import Problem, call
from lambdactl.run.placement import NodeView
from lambdactl.run.status import RunStatus, combine, waiting
from lambdactl.spec import TaskSpec
from lambdactl.transport.api import Runner


@dataclass(frozen=True)
class Survey:
    """What the nodes said; `runs` are those that have not ended."""

    views: dict[str, NodeView]
    runs: Sequence[RunStatus]
    problems: dict[str, Problem]
    raw: dict[str, dict[str, Any]]


def _unused(task: TaskSpec | None) -> list[str]:
    """Facts that a node need not find out, because the plan of this task does not depend on them."""
    if task is None:
        return []
    engines = image_of(task) is not None or task.docker
    tools = task.python or task.nvcc
    unused = ["cuda", "openmpi", "provisioned", "runner"]
    return [*unused, *([] if engines else ["container_engines"]), *([] if tools else ["tools"])]


async def survey(transport: Runner, fleet: Fleet, *, task: TaskSpec | None = None) -> Survey:
    """Ask every host of the fleet; a host that does not answer gets a view with its problem.

    Args:
        task: what the look is for; None is for everything.
    """
    names = [host.name for host in fleet.hosts]
    probe = {"op": "probe", "roles": {}, "without": _unused(task)}
    ranks_there = {"op": "status", "run": None} | ({} if task is None else {"next": "start"})
    answers = await call(transport, {name: [probe, ranks_there] for name in names})
    views: dict[str, NodeView] = {}
    problems: dict[str, Problem] = {}
    raw: dict[str, dict[str, Any]] = {}
    ranks: dict[str, list[dict[str, Any]]] = {}
    for name, answer in answers.items():
        if isinstance(answer, Problem):
            replies, refused = [], [answer]
        else:
            replies = [reply for reply in answer if not isinstance(reply, Problem)]
            refused = [reply for reply in answer if isinstance(reply, Problem)]
        if refused:
            problems[name] = refused[0]
            views[name] = NodeView(name, problem=_clause(refused[0]))
            continue
        facts, states = replies
        raw[name] = facts
        views[name] = NodeView(
            name, NodeFacts.from_probe(facts), facts.get("leases") or (), queue=facts.get("queue") or ()
        )
        for rank in states.get("ranks", ()):
            ranks.setdefault(str(rank["run_id"]), []).append({**rank, "node": name})
    runs = [status for states in ranks.values() if not (status := combine(states)).final]
    tickets = [ticket for view in views.values() for ticket in view.queue]
    runs += [status for status in waiting(tickets) if status.run_id not in ranks]
    return Survey(views, runs, problems, raw)


def _clause(problem: Problem) -> str:
    if problem.code == "no-runner":
        return "is not provisioned; apply the fleet file first"
    return f"does not take part: {problem.message.rstrip('.')}"
