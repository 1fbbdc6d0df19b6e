"""The plan of a validation: which benchmark runs where, with which command, for how long at most.

A step is one or more jobs on disjoint nodes, which run at the same time; a job is an ordinary run of a task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lambdactl.errors import CapacityError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import NodeFacts
from lambdactl.nccl import bounds
from lambdactl.nccl.hardware import Algorithm, Hardware, gpu_model
from lambdactl.run.plan import NodeView
from lambdactl.validate.hardware import Network, hardware

Kind = Literal["node", "whole", "ring", "rail", "pair", "cpu"]

NCCL_TESTS = "/opt/nccl-tests/build"
CPU_BENCHMARK = "/opt/lambdactl/bench/all_reduce_cpu"

# Flags of all_reduce_perf: everything for the curves, large sizes only where a number is enough.
_CURVE = "-b 8 -e 8G -f 2 -t 1 -g 1 -c 1 -n 20"
_PLATEAU = "-b 1G -e 4G -f 2 -t 1 -g 1 -c 1 -n 10"
_CPU = "-b 1K -e 32M -f 8 -n 5 -w 1"
_START = 10.0  # seconds that mpirun and NCCL take to begin, and as much again for 100 nodes
_UNKNOWN_GBPS = 25.0  # for the estimate alone, where the hardware has no rule
_CPU_SECONDS = 15.0
# A step that takes this many times its estimate, and a minute, hangs.
_PATIENCE, _LEAST_LIMIT = 5, 120


@dataclass(frozen=True, slots=True)
class Job:
    """One run: its nodes in rank order, rank 0's command, and the hardware that judges it (or why there is none).

    `rail` is the index of the only GPU of each node that takes part.
    """

    nodes: tuple[str, ...]
    command: str
    hardware: Hardware | str
    rail: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Jobs that run at the same time. `seconds` is the estimate, `limit` the hard limit of each job."""

    name: str
    title: str
    kind: Kind
    jobs: tuple[Job, ...]
    seconds: int
    limit: int


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        network: NICs and rate as the user states them, where the nodes do not show it.
        env: NAME=VALUE for every rank of NCCL's runs.
        rounds: rounds of the tournament of pairs.
    """

    cpu: bool = False
    pairs: bool = False
    rails: bool = True
    network: Network | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps that are known beforehand; the pairs follow when they are needed.

    Attributes:
        nodes: those that take part, in rank order; `left_out` says of each other one why not.
        pair: the step of one pair, where pairs can tell anything; None with fewer than three nodes.
        note: why there will be no verdict, where that is known beforehand.
    """

    fleet: str
    nodes: tuple[str, ...]
    steps: tuple[Step, ...]
    left_out: Mapping[str, str]
    pair: Step | None
    note: str | None

    @property
    def seconds(self) -> int:
        """The estimate of all steps."""
        return sum(step.seconds for step in self.steps)


def make_plan(fleet: Fleet, views: Mapping[str, NodeView], options: Options) -> Plan:
    """What a validation of this fleet does.

    Raises:
        SpecError: there is nothing to validate, with the sentence why.
        CapacityError: no node is free.
    """
    left_out = {host.name: why for host in fleet.hosts if (why := _why_not(views[host.name]))}
    nodes = [host.name for host in fleet.hosts if host.name not in left_out]
    if not nodes:
        why = "; ".join(f"{name} {reason}" for name, reason in list(left_out.items())[:4])
        raise CapacityError(f"no node of {fleet.name} can take part: {why}.")
    facts = {name: found for name in nodes if (found := views[name].facts) is not None}
    with_gpus = [name for name in nodes if facts[name].gpus]
    if with_gpus and options.cpu:
        raise SpecError(f"--cpu is for nodes without GPUs, and {with_gpus[0]} of {fleet.name} has some; leave it out.")
    if not with_gpus:
        return _cpu_plan(fleet, nodes, left_out, options)
    left_out |= {name: "has no GPUs" for name in nodes if name not in with_gpus}
    without = [name for name in with_gpus if not facts[name].nccl_tests]
    if without:
        raise SpecError(
            f"{fleet.name}: {', '.join(without[:4])} has no nccl-tests in {NCCL_TESTS}; run `lambdactl apply` first."
        )
    return _gpu_plan(fleet, with_gpus, facts, left_out, options)


def _why_not(view: NodeView) -> str | None:
    if view.facts is None:
        return view.problem or "is not known; apply the fleet file first"
    if view.facts.runner is None:
        return "is not provisioned; apply the fleet file first"
    if view.leases:
        lease = view.leases[0]
        return f"is in use by run {lease.get('run_name', '?')} of {lease.get('owner', 'somebody')}"
    return None


def _cpu_plan(fleet: Fleet, nodes: Sequence[str], left_out: dict[str, str], options: Options) -> Plan:
    if not options.cpu:
        raise SpecError(
            f"the nodes of {fleet.name} have no GPUs, so there is nothing to validate; "
            "--cpu measures MPI between their CPUs instead, without a verdict."
        )
    command = f"mpirun --hostfile $DSTACK_MPI_HOSTFILE -n {len(nodes)} -N 1 --bind-to none {CPU_BENCHMARK} {_CPU}"
    why = "this is lambdactl's CPU benchmark"
    steps = [_step("cpu", "all nodes, MPI between CPUs", "cpu", [Job(tuple(nodes), command, why)], _CPU_SECONDS)]
    pair = _step("pairs", "pairs of nodes, MPI between CPUs", "pair", [Job((), _of_two(command), why)], _CPU_SECONDS)
    note = "The CPU benchmark says nothing about GPUs or the network between them: there will be no verdict."
    return Plan(fleet.name, tuple(nodes), tuple(steps), left_out, pair if len(nodes) > 2 else None, note)


def _of_two(command: str) -> str:
    return re.sub(r"-n \d+ -N", "-n 2 -N", command)


def _gpu_plan(
    fleet: Fleet, nodes: Sequence[str], facts: Mapping[str, NodeFacts], left_out: dict[str, str], options: Options
) -> Plan:
    gpus = {name: len(facts[name].gpus) for name in nodes}

    def judged(names: Sequence[str], algorithm: Algorithm = "default") -> Hardware | str:
        return hardware([facts[name] for name in names], algorithm=algorithm, given=options.network)

    def job(names: Sequence[str], flags: str, *, settings: Mapping[str, str] | None = None) -> Job:
        every = {**options.env, **(settings or {})}
        algorithm: Algorithm = "ring" if every.get("NCCL_ALGO") == "Ring" else "default"
        return Job(tuple(names), _mpirun([gpus[n] for n in names], flags, every, options.env), judged(names, algorithm))

    alone = [job([name], _CURVE) for name in nodes]
    steps = [_step("nodes", "every node alone (NVLink)", "node", alone, _duration(alone[0], _CURVE))]
    pair = None
    if len(nodes) > 1:
        whole, ring = job(nodes, _CURVE), job(nodes, _PLATEAU, settings={"NCCL_ALGO": "Ring"})
        steps.append(_step("all", "all nodes", "whole", [whole], _duration(whole, _CURVE)))
        steps.append(_step("ring", "all nodes, NCCL_ALGO=Ring", "ring", [ring], _duration(ring, _PLATEAU)))
        for rail in range(min(gpus.values()) if options.rails else 0):
            steps.append(_rail(nodes, rail, judged(nodes), options.env))
        two = job(nodes[:2], _PLATEAU)
        pair = _step("pairs", "pairs of nodes", "pair", [two], _duration(two, _PLATEAU))
    found = judged(nodes)
    note = f"No verdict on the network: {found}." if isinstance(found, str) else _gap(found)
    return Plan(fleet.name, tuple(nodes), tuple(steps), left_out, pair if len(nodes) > 2 else None, note)


def _gap(found: Hardware) -> str | None:
    if gpu_model(found.gpu) is None:
        return f"No verdict: no rule is proven for the GPU {found.gpu}."
    if found.nodes > 1 and found.nics is None:
        return "No verdict on the network: the nodes show no active RDMA port; state it with --nics and --nic-gbps."
    return None


def _rail(nodes: Sequence[str], rail: int, whole: Hardware | str, env: Mapping[str, str]) -> Step:
    command = _mpirun([1] * len(nodes), _PLATEAU, {**env, "CUDA_VISIBLE_DEVICES": str(rail)}, env)
    job = Job(tuple(nodes), command, whole, rail)
    return _step(f"rail-{rail}", f"GPU {rail} of every node (rail {rail})", "rail", [job], _duration(job, _PLATEAU))


def _mpirun(slots: Sequence[int], flags: str, settings: Mapping[str, str], given: Mapping[str, str]) -> str:
    """The user's own variables travel in the run's environment, so that their values are in no argument list."""
    exports = "".join(
        f" -x {name}" if name in given and settings[name] == given[name] else f" -x {name}={value}"
        for name, value in settings.items()
    )
    ranks, per_node = sum(slots), max(slots)
    layout = f"-n {ranks} -N {per_node}"
    return (
        f"mpirun --hostfile $DSTACK_MPI_HOSTFILE {layout} --bind-to none{exports} {NCCL_TESTS}/all_reduce_perf {flags}"
    )


def of_pair(pair: Step, nodes: Sequence[str]) -> Job:
    """The pair step's job on these two nodes."""
    return replace(pair.jobs[0], nodes=tuple(nodes))


def script(job: Job) -> str:
    """What every rank runs: rank 0 the command, the others wait for its ranks."""
    return f'if [ "$DSTACK_NODE_RANK" -eq 0 ]; then\n  {job.command}\nelse\n  sleep infinity\nfi\n'


def _step(name: str, title: str, kind: Kind, jobs: Sequence[Job], seconds: float) -> Step:
    estimate = math.ceil(seconds)
    return Step(name, title, kind, tuple(jobs), estimate, max(_LEAST_LIMIT, _PATIENCE * estimate + 60))


def _duration(job: Job, flags: str) -> float:
    """Seconds: the start, and twice (both halves) iterations, 5 warm-ups and the check at every size."""
    words = flags.split()
    largest = int(words[words.index("-e") + 1].removesuffix("G")) * 1e9
    iterations = int(words[words.index("-n") + 1]) + 8
    per_pass = 2 * largest * 2 / (_expected_gbps(job) * 1e9)  # all smaller sizes together are as much as the largest
    return _START * (1 + len(job.nodes) / 100) + 2 * iterations * per_pass


def _expected_gbps(job: Job) -> float:
    found = job.hardware
    if isinstance(found, str) or (model := gpu_model(found.gpu)) is None:
        return _UNKNOWN_GBPS
    if found.nodes == 1:
        return model.node_floor
    if not (found.nics and found.nic_gbps):
        return _UNKNOWN_GBPS
    return found.nic_gbps / 8 if job.rail is not None else bounds.ring(found)
