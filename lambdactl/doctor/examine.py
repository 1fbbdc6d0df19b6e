"""From a fleet to a report: one question a node, then pure judgement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lambdactl.doctor.catalogue import FLEET_JUDGES, NODE_JUDGES, checks
from lambdactl.doctor.evidence import number, unmet
from lambdactl.doctor.model import REACHABLE, Check, Evidence, Finding, Outcome, Report, Status
from lambdactl.provision import Problem, Reply, ask

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet
    from lambdactl.transport.api import Runner

_TIMEOUT = 90.0  # seconds a node; its programs have 20 each, at once
_TIMEOUT_DEEP = 900.0  # ib_write_bw takes about 10 s a device, dcgmi diag up to 360 s


async def examine(
    fleet: Fleet,
    runner: Runner,
    *,
    names: Sequence[str] | None = None,
    deep: bool = False,
    on_result: Callable[[str, Problem | None], None] | None = None,
) -> Report:
    """Ask the hosts `names` (default: all of the fleet) in one round trip each, and judge.

    Args:
        runner: an open transport, or the broker's client.
        deep: also run tests that load GPUs and network for minutes.
        on_result: called as each host has answered.
    """
    chosen = [host.name for host in fleet.hosts if names is None or host.name in names]
    logins = await runner.connect(chosen)  # first of all, so that they do not count as skew of the clocks
    problems = {name: Problem(name, f.kind, f.message, f.remedy) for name, f in logins.items() if f is not None}
    if on_result is not None:
        for name, problem in problems.items():
            on_result(name, problem)
    request = {"op": "examine", "deep": deep}
    timeout = _TIMEOUT_DEEP if deep else _TIMEOUT
    reached = [name for name in chosen if name not in problems]
    replies = await ask(runner, reached, request, timeout=timeout, on_result=on_result)
    problems |= {name: reply.answer for name, reply in replies.items() if isinstance(reply.answer, Problem)}
    evidence = {name: clocked(reply) for name, reply in replies.items() if name not in problems}
    evidence = _with_shared_interface(fleet, evidence)
    return Report(
        fleet=fleet.name,
        fleet_id=fleet.id,
        hosts=tuple(chosen),
        findings=judge(chosen, evidence, problems),
        evidence=evidence,
        examined_at=time.time(),
        deep=deep,
    )


def judge(
    hosts: Sequence[str], evidence: Mapping[str, Evidence], problems: Mapping[str, Problem] | None = None
) -> list[Finding]:
    """All findings, by host in the given order, then in the order of the checks. Pure.

    Args:
        evidence: of each host that answered.
        problems: why the others did not.
    """
    compared = {name: _compare(name, evidence) for name in FLEET_JUDGES}
    findings = []
    for host in hosts:
        known = evidence.get(host)
        for check in checks().values():
            if check.id == REACHABLE:
                findings.append(_reachable(check, host, (problems or {}).get(host)))
            elif known is None:
                continue
            elif check.scope == "fleet":
                findings.append(check.finding(host, compared[check.id].get(host, Outcome(Status.SKIP, "not measured"))))
            else:
                findings.append(examine_one(check, host, known))
    return findings


def examine_one(check: Check, host: str, evidence: Evidence) -> Finding:
    """One check of one node. Evidence that cannot be judged is a warning, never an error or a pass."""
    reason = unmet(evidence, check.needs)
    if reason is not None:
        return check.finding(host, Outcome(Status.SKIP, reason))
    try:
        return check.finding(host, NODE_JUDGES[check.id](evidence))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return check.finding(host, _unreadable(error))


def _compare(name: str, evidence: Mapping[str, Evidence]) -> Mapping[str, Outcome]:
    try:
        return FLEET_JUDGES[name](evidence)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return dict.fromkeys(evidence, _unreadable(error))


def _unreadable(error: Exception) -> Outcome:
    return Outcome(Status.WARN, f"the node's evidence cannot be judged ({type(error).__name__}: {str(error)[:80]})")


def _reachable(check: Check, host: str, problem: Problem | None) -> Finding:
    if problem is None:
        return check.finding(host, Outcome(Status.PASS, "answers"))
    found = check.finding(host, Outcome(Status.FAIL, problem.cause))
    return Finding(**{**found.__dict__, "remedy": problem.remedy or found.remedy})


def clocked(reply: Reply) -> dict[str, Any]:
    """The node's answer, and how far its clock is from ours: half the round trip is the most it can be wrong by."""
    known = dict(reply.answer) if not isinstance(reply.answer, Problem) else {}
    received, answered = number(known, "received_at"), number(known, "answered_at")
    if received is not None and answered is not None:
        offset = ((received - reply.asked_at) + (answered - reply.answered_at)) / 2
        uncertainty = max(0.0, ((reply.answered_at - reply.asked_at) - (answered - received)) / 2)
        known["clock"] = {"offset": round(offset, 4), "uncertainty": round(uncertainty, 4)}
    return known


def _with_shared_interface(fleet: Fleet, evidence: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name on each host the interface that it is reached at by the others."""
    from lambdactl.fleet.facts import NodeFacts
    from lambdactl.fleet.interfaces import interface_of
    from lambdactl.fleet.network import internal_ips

    facts = {
        host: NodeFacts.from_probe(known["facts"])
        for host, known in evidence.items()
        if isinstance(known.get("facts"), dict)
    }
    addresses, _ = internal_ips(fleet, facts)
    return {
        host: {**known, "shared_interface": interface_of(facts[host], addresses[host]) if host in addresses else None}
        for host, known in evidence.items()
    }
