"""A validation from its first step to its record: the planned steps, the pairs when the whole is slow, the verdict."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambdactl.fleet import Fleet
from lambdactl.fleet.interfaces import nccl_ib_hca
from lambdactl.nccl.model import Result
from lambdactl.nccl.verdict import Status
from lambdactl.run.plan import NodeView
from lambdactl.validate import provenance, record
from lambdactl.validate.blame import Blame, Finding, Investigation
from lambdactl.validate.execute import execute
from lambdactl.validate.judge import job_record, step_record, unlike_rails
from lambdactl.validate.record import JobRecord, StepRecord, Validation
from lambdactl.validate.steps import Job, Options, Plan, Step, of_pair
from lambdactl.validate.tournament import Pair

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport

_WHOLE = frozenset({"whole", "ring", "cpu"})


@dataclass(frozen=True)
class Watcher:
    """Who is told as it goes: before a step or round (its title), and after it (its record)."""

    begins: Callable[[str, int], None]
    ended: Callable[[StepRecord], None]


class Flow:
    """One validation; `run` gives its record. A cancellation stops what runs on the nodes and leaves no record."""

    def __init__(
        self, transport: Transport, fleet: Fleet, views: Mapping[str, NodeView], plan: Plan, options: Options,
        watcher: Watcher,
    ) -> None:  # fmt: skip
        self._transport, self._fleet, self._views = transport, fleet, views
        self._plan, self._options, self._watcher = plan, options, watcher
        self.id = uuid.uuid4().hex[:8]
        self._result: Result | None = None
        self._number = 0

    async def run(self, doctor: list[dict[str, Any]] | None = None) -> Validation:
        """All steps in order.

        Args:
            doctor: the doctor's findings, for the record.
        """
        started = time.time()
        steps = []
        for step in self._plan.steps:
            steps.append(await self._step(step))
        investigation = await self._pairs(steps)
        finding = investigation.finding() if investigation else self._without_pairs(steps)
        asked = await provenance.ask(self._transport, self._plan.nodes)
        versions = provenance.versions(self._plan, self._views, asked, self._result)
        status, sentence = conclude(steps, finding, doctor or ())
        return Validation(
            id=self.id, fleet_id=self._fleet.id, fleet=self._fleet.name, started_at=started,
            seconds=round(time.time() - started, 1), status=status, sentence=sentence,
            topology=provenance.topology(self._plan, self._views, self._options.network), versions=versions,
            provenance=self._provenance(asked), steps=steps, pairs=_pairs(investigation),
            typical_pair=finding.typical if finding else None, finding=finding.sentence if finding else None,
            blames=[_blame(blame) for blame in finding.blames] if finding else [],
            left_out=dict(self._plan.left_out), doctor=doctor,
        )  # fmt: skip

    async def _step(self, step: Step) -> StepRecord:
        self._watcher.begins(step.title, step.seconds)
        found = step_record(step, await self._jobs(step, step.jobs))
        self._watcher.ended(found)
        return found

    async def _jobs(self, step: Step, jobs: Sequence[Job]) -> list[JobRecord]:
        """All jobs at the same time; when one raises, the others are stopped before it is raised again."""
        tasks = [asyncio.ensure_future(self._job(step, job)) for job in jobs]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise

    async def _job(self, step: Step, job: Job) -> JobRecord:
        self._number += 1
        name = f"validate-{self.id}-{step.name}-{self._number}"
        outcome = await execute(
            self._transport, self._fleet, self._views, job, name, step.limit, self._options.env
        )  # fmt: skip
        self._result = outcome.result or self._result
        return job_record(job, outcome)

    async def _pairs(self, steps: Sequence[StepRecord]) -> Investigation | None:
        """The tournament, when it is wanted and can tell anything."""
        pair = self._plan.pair
        if pair is None or not (self._options.pairs or slow(steps)):
            return None
        investigation = Investigation(self._plan.nodes, rounds=self._options.rounds)
        number = 0
        while pairs := investigation.next_round():
            number += 1
            self._watcher.begins(f"pairs, round {number}: {len(pairs)} at the same time", pair.seconds)
            investigation.record(await self._round(pair, pairs))
        return investigation

    async def _round(self, pair: Step, pairs: Sequence[Pair]) -> dict[Pair, float | None]:
        jobs = [of_pair(pair, [self._plan.nodes[a], self._plan.nodes[b]]) for a, b in pairs]
        found = await self._jobs(pair, jobs)
        return {key: job.value for key, job in zip(pairs, found, strict=True)}

    def _without_pairs(self, steps: Sequence[StepRecord]) -> Finding | None:
        """What two nodes' own measurements say, when together they are slow."""
        if len(self._plan.nodes) != 2 or not (slow(steps) or self._options.pairs):
            return None
        suspects = [job.nodes[0] for step in steps if step.kind == "node" for job in step.jobs if _bad(job.status)]
        rails = [f"{name} ({share:.0%} of the middle rail)" for name, share in unlike_rails(steps)]
        if suspects:
            text = f"alone, {' and '.join(suspects)} is slow already"
        elif rails:
            text = f"each node alone is fine, and between them {', '.join(rails)} is slow"
        else:
            text = (
                "each node alone is fine and all rails are alike, so the path between them is slow on all of its rails"
            )
        return Finding((), None, 0, f"Two nodes cannot be told apart by pairs: {text}.")

    def _provenance(self, asked: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        return {
            "hostfile_order": list(self._plan.nodes),
            "commands": {step.name: step.jobs[0].command for step in self._plan.steps},
            "environment_names": sorted(self._options.env),
            "nccl_ib_hca": {name: hca for name in self._plan.nodes if (hca := self._hca(name)) is not None},
            "nodes": {name: dict(values) for name, values in asked.items()},
        }

    def _hca(self, name: str) -> str | None:
        """The run's default of NCCL_IB_HCA on a node; who runs a command by hand needs it."""
        facts = self._views[name].facts
        return None if facts is None or "NCCL_IB_HCA" in self._options.env else nccl_ib_hca(facts)


def slow(steps: Sequence[StepRecord]) -> bool:
    """Whether something between the nodes is less than it should be."""
    return any(_bad(step.status) for step in steps if step.kind in ("whole", "ring", "rail", "cpu"))


def _bad(status: str) -> bool:
    return status in (str(Status.FAIL), str(Status.WARN))


def conclude(
    steps: Sequence[StepRecord], finding: Finding | None, doctor: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, str]:
    """The verdict on the fleet in one sentence: the worst step's, who is to blame, and what the doctor saw fail.

    What pairs or the doctor find makes a PASS a WARN: the bandwidth is there, and something is wrong.
    """
    status = record.worst(step.status for step in steps)
    sick = [item for item in doctor if item["status"] == "fail"]
    blamed = finding is not None and bool(finding.blames)
    passed, unjudged = status == str(Status.PASS), status == str(Status.NONE)
    if (passed and (sick or blamed)) or (unjudged and blamed and steps[0].kind != "cpu"):
        status = str(Status.WARN)
    # Of several steps with that status the one of all nodes says most; its number is what people compare.
    ranked = sorted(steps, key=lambda step: (step.status != status, step.kind not in _WHOLE))
    chosen = ranked[0]
    sentence = f"{status}: {chosen.title}: {chosen.sentence.rstrip('.')}."
    if finding is not None and (finding.blames or _bad(status)):
        sentence += f" {finding.sentence}"
    if sick:
        sentence += f" The doctor saw {len(sick)} failures, such as: {sick[0]['title']} on {sick[0]['host']}."
    return status, sentence


def _pairs(investigation: Investigation | None) -> list[tuple[str, str, list[float]]]:
    if investigation is None:
        return []
    names = investigation.names
    return [(names[a], names[b], list(values)) for (a, b), values in sorted(investigation.results().items())]


def _blame(blame: Blame) -> dict[str, Any]:
    return {
        "kind": blame.kind, "nodes": list(blame.nodes), "relative": blame.relative, "text": blame.text,
        "evidence": list(blame.evidence),
    }  # fmt: skip
