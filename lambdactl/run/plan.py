"""From a task file and the fleet's facts to a plan: which host has which rank, or why it cannot be.

Ranks follow the order of hosts in the fleet file, so that a hostfile is the same from run to run.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambdactl.errors import CapacityError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.fleet.interfaces import run_defaults
from lambdactl.fleet.network import common_cidr, internal_ips
from lambdactl.run import extras, groups, interpolate, secrets
from lambdactl.run.blocks import WHOLE, Want
from lambdactl.run.container import choose_engine, container_key, container_of, container_reason, image_of
from lambdactl.run.content import RunContent
from lambdactl.run.pinning import pinned
from lambdactl.run.placement import NodeView as NodeView
from lambdactl.run.placement import Placement, place
from lambdactl.run.tools import prelude, tools_reason
from lambdactl.spec import EnvVar, TaskSpec

# How long a node may be out of reach during a run before the run is given up (dstack's grace is 2 min as well).
NODE_TIMEOUT = 120.0
# Logs are rotated, never cut off: bytes kept a rank.
LOG_LIMIT = 4 << 30

# The address of a single node that shares no network with the other hosts; on several nodes such a host takes no part.
_ALONE = "127.0.0.1"

_ADJECTIVES = ("brave", "calm", "clever", "eager", "fair", "fast", "gentle", "keen", "loud", "merry", "proud", "quick")
_NOUNS = ("badger", "crane", "falcon", "heron", "lynx", "marten", "otter", "panda", "puffin", "raven", "seal", "wolf")


@dataclass(frozen=True)
class PlannedNode:
    """One rank's place; `want` is the share of the host that it takes."""

    rank: int
    name: str
    ip: str
    gpus: int
    ssh_user: str | None
    ssh_port: int
    want: Want = WHOLE


@dataclass(frozen=True)
class RunPlan:
    """A run that can be submitted.

    Attributes:
        nodes: in rank order.
        excluded: for each host that takes no part, one clause that says why ("" where it is simply not needed).
        mpi_network: the subnet that the nodes share, in CIDR notation, for Open MPI; None on one node.
        dev: the JobSpec's key of a dev environment (run/dev.py).
        defaults: by host, variables that hold where neither the user nor the node's own configuration sets them.
        content: files and repository that the nodes must have before the run is submitted (run/deliver.py).
    """

    run_id: str
    run_name: str
    fleet_id: str
    fleet_name: str
    task: TaskSpec
    nodes: tuple[PlannedNode, ...]
    excluded: Mapping[str, str]
    env: Mapping[str, str]
    mpi_network: str | None
    max_duration: int | None
    owner: str
    node_timeout: float = NODE_TIMEOUT
    container: Mapping[str, Any] | None = None
    submitted_at: float = field(default_factory=time.time)
    defaults: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dev: Mapping[str, Any] | None = None
    content: RunContent = field(default_factory=RunContent)
    attempt: Mapping[str, Any] | None = None
    """The number of this attempt and how those before it ended, for a run that is retried."""
    wants: Mapping[str, Want] = field(default_factory=dict)
    """What the run wants of each host that could take it, chosen or not."""

    @property
    def gpus(self) -> int:
        """GPUs of all nodes together."""
        return sum(node.gpus for node in self.nodes)

    def places(self) -> list[dict[str, Any]]:
        """The nodes as a JobSpec lists them, in rank order."""
        return [
            {"name": n.name, "ip": n.ip, "gpus": n.gpus, "ssh_user": n.ssh_user, "ssh_port": n.ssh_port}
            for n in self.nodes
        ]


@dataclass(frozen=True)
class Overrides:
    """What the command line adds to a task file."""

    name: str | None = None
    env: Sequence[EnvVar] = ()
    max_duration: int | None = None
    node_timeout: float = NODE_TIMEOUT
    container_engine: str = "auto"
    pull_timeout: int | None = None
    args: Sequence[str] = ()
    whole: bool = False
    """Take whole hosts although the fleet is divided into blocks."""


class Shortage(CapacityError):
    """Too few hosts are free now; `placement` says which hosts would do when they are."""

    def __init__(self, message: str, placement: Placement, nodes: int) -> None:
        super().__init__(message)
        self.placement = placement
        self.nodes = nodes

    @property
    def passes(self) -> bool:
        """Whether enough hosts could take the run if others were not there: waiting helps."""
        return len(self.placement.wants) >= self.nodes

    @property
    def because(self) -> str:
        """The reason as one clause, for those who wait."""
        found = self.placement
        if not self.passes:
            missing = [f"{name} {why}" for name, why in found.excluded.items() if name not in found.wants and why]
            return f"{len(found.wants)} of {self.nodes} hosts can take it at present: {'; '.join(missing[:3])}"
        free = f"{len(found.chosen)} of {self.nodes} nodes {'is' if len(found.chosen) == 1 else 'are'} free; "
        shown = "; ".join(f"{name} {found.excluded[name]}" for name in found.busy[:3])
        return (
            (free if self.nodes > 1 else "") + shown + (f"; and {len(found.busy) - 3} more" if found.busy[3:] else "")
        )


def make_plan(
    task: TaskSpec,
    fleet: Fleet,
    views: Mapping[str, NodeView],
    overrides: Overrides | None = None,
    content: RunContent | None = None,
    *,
    refused: Mapping[str, str] | None = None,
) -> RunPlan:
    """Choose the hosts of a run.

    Args:
        views: one for each host of the fleet.
        content: what the run takes with it (run/content.py).
        refused: hosts whose lease was refused a moment ago, each with a clause that says why.

    Raises:
        SpecError: the file uses a field that this version cannot honour, or a variable has no value.
        Shortage: too few hosts fit or are free, with every host's reason.
    """
    overrides = overrides or Overrides()
    _refuse_unsupported(task)
    extras.volumes(task)
    task = interpolate.with_args(task, overrides.args)
    env = interpolate.environment(task, secrets.get, given=overrides.env, around=fleet.env)
    if (names := pinned(task, fleet)) is not None:
        others = {name: NodeView(name, problem="is not among 'instances'") for name in views if name not in names}
        views = {**views, **others}
    name = overrides.name or task.name or random_name()
    facts = {host.name: facts for host in fleet.hosts if (facts := views[host.name].facts) is not None}
    addresses, unaddressed = internal_ips(fleet, facts)
    engine = choose_engine(task, facts.values(), overrides.container_engine)
    container = container_key(task, env, engine=engine, pull_timeout=overrides.pull_timeout)
    placement = place(
        task,
        fleet,
        views,
        unaddressed=unaddressed,
        lacking=lambda wanted, known: container_reason(wanted, known, engine) or tools_reason(wanted, known),
        whole=overrides.whole,
        refused=refused,
    )
    if len(placement.chosen) < task.nodes:
        text = _too_few(name, task, len(placement.chosen), len(fleet.hosts), fleet.name, placement.excluded)
        if placement.shortage:
            text = f"{name} does not fit into {fleet.name}: {placement.shortage}."
        raise Shortage(text, placement, task.nodes)
    chosen = []
    for rank, host in enumerate(fleet.host(host_name) for host_name in placement.chosen):
        target, want = host.route.target, placement.wants[host.name]
        gpus = want.gpus(facts[host.name])
        address = addresses.get(host.name, _ALONE)
        chosen.append(PlannedNode(rank, host.name, address, gpus, target.user, target.port, want))
    return RunPlan(
        run_id=str(uuid.uuid4()),
        run_name=name,
        fleet_id=fleet.id,
        fleet_name=fleet.name,
        task=task,
        nodes=tuple(chosen),
        excluded=placement.excluded,
        env=env,
        mpi_network=common_cidr({node.name: node.ip for node in chosen}, facts) if len(chosen) > 1 else None,
        max_duration=overrides.max_duration if overrides.max_duration is not None else task.max_duration,
        owner=owner(),
        node_timeout=overrides.node_timeout,
        container=container,
        wants=placement.wants,
        defaults=run_defaults(
            {node.name: facts[node.name] for node in chosen}, {node.name: node.ip for node in chosen}
        ),
        content=content or RunContent(),
    )


def job_specs(plan: RunPlan) -> dict[str, dict[str, Any]]:
    """The JobSpec of every host (see docs/architecture.md), by host name."""
    task = plan.task
    places = groups.addresses(task, [node.ip for node in plan.nodes])
    common = {
        "run_id": plan.run_id,
        "run_name": plan.run_name,
        "nodes": plan.places(),
        "shell": task.shell,
        "env": dict(plan.env),
        "working_dir": task.working_dir,
        "startup_order": task.startup_order,
        "stop_criteria": task.stop_criteria,
        "on_node_failure": task.on_node_failure,
        "max_duration": plan.max_duration,
        "stop_signal": task.stop_signal,
        "node_timeout": plan.node_timeout,
        "mpi_network": plan.mpi_network,
        "owner": plan.owner,
        "submitted_at": plan.submitted_at,
        "spec_text": task.source.text,
        "log_limit": LOG_LIMIT,
        "gpus": None,
        **({} if plan.dev is None else {"dev": dict(plan.dev)}),
        **extras.job_keys(task),
        **plan.content.job_keys(),
        "priority": task.priority,
        "attempt": plan.attempt,
    }
    return {
        node.name: {
            **common,
            "rank": node.rank,
            "container": container_of(task, node.rank, plan.container),
            "script": _script(task, node.rank, places),
            "ports": extras.ports(task, node.rank),
            "user": node.ssh_user if plan.container else task.user or node.ssh_user,
            "defaults": dict(plan.defaults.get(node.name, {})),
            "share": None if node.want.whole else node.want.request(),
        }
        for node in plan.nodes
    }


def join_commands(commands: Sequence[str]) -> str:
    """One script in which the first failing command ends the run, as if all were joined by AND.

    The commands are kept as written, with a test between them: unlike a literal `&&` this also holds for commands that
    end in a comment, a here-document or `&`, and it does not switch off a user's own `set -e`.
    """
    test = '\nlambdactl_rc=$?; [ "$lambdactl_rc" -eq 0 ] || exit "$lambdactl_rc"\n'
    return test.join(command.rstrip("\n") for command in commands) + "\n"


def random_name() -> str:
    """A run name such as quick-heron-7."""
    # Not a secret: only has to be easy to say.
    return f"{random.choice(_ADJECTIVES)}-{random.choice(_NOUNS)}-{random.randint(1, 99)}"  # noqa: S311 (a name)


def owner() -> str:
    """Who submits, for messages to others: user@machine."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _refuse_unsupported(task: TaskSpec) -> None:
    if not all(group.commands for group in task.groups or (task,)) and image_of(task) is None:
        raise SpecError("the task has no 'commands', so there is nothing to run.", filename=task.source.filename)


def _script(task: TaskSpec, rank: int, places: Sequence[Sequence[str]]) -> str:
    if task.entrypoint:
        return ""
    return join_commands([*prelude(task), *interpolate.with_addresses(groups.commands(task, rank), places)])


def _too_few(name: str, task: TaskSpec, fitting: int, hosts: int, fleet: str, excluded: Mapping[str, str]) -> str:
    wanted = f"{task.nodes} node{'s' if task.nodes > 1 else ''}"
    if task.nodes > hosts:
        return (
            f"{name} asks for {wanted}, but the fleet {fleet} has {hosts}; "
            "lower 'nodes' or add hosts to the fleet file."
        )
    why = "; ".join(f"{host} {reason}" for host, reason in list(excluded.items())[:8] if reason)
    more = len(excluded) - 8
    return f"{name} asks for {wanted}, but {fitting} of {hosts} in {fleet} can take it: {why}" + (
        f"; and {more} more." if more > 0 else "."
    )
