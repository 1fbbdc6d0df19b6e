"""How a fleet is shown: the plan before, the table after, and its JSON."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lambdactl.cli.console import size, state_text
from lambdactl.fleet import Fleet, FleetHost
from lambdactl.fleet.facts import NodeFacts
from lambdactl.provision import Change, Survey
from lambdactl.run import blocks

PLAN_COLUMNS = ("HOST", "ADDRESS", "STATE", "CHANGES")
COLUMNS = ("HOST", "ADDRESS", "CPU", "MEMORY", "DISK", "GPUS", "DRIVER", "INFINIBAND", "STATE", "REASON")


def host_state(name: str, survey: Survey) -> str:
    """One word for a host: unreachable or failed, new, outdated, busy or ready."""
    problem = survey.problems.get(name)
    if problem is not None:
        return "failed" if name in survey.facts else "unreachable"
    facts = survey.facts[name]
    if survey.needed.get(name):
        return "outdated" if facts.get("runner") else "new"
    return "busy" if facts.get("leases") else "ready"


def busy_blocks(fleet: Fleet, host: FleetHost, known: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """(used, all) blocks of a host that is divided into several; None where it is not, or cannot be."""
    if known is None:
        return None
    facts = NodeFacts.from_probe(dict(known))
    with contextlib.suppress(ValueError):
        of = blocks.division(fleet.blocks_of(host), facts)
        return None if of == 1 else (of - blocks.free(of, len(facts.gpus), facts.leases), of)
    return None


def undivided(fleet: Fleet, survey: Survey) -> dict[str, str]:
    """The hosts that cannot be divided into the blocks that the file asks for, each with one sentence."""
    found: dict[str, str] = {}
    for host in fleet.hosts:
        try:
            if host.name in survey.facts:
                blocks.division(fleet.blocks_of(host), NodeFacts.from_probe(dict(survey.facts[host.name])))
        except ValueError as error:
            line = f":{host.line}" if host.line and host.blocks is not None else ""
            found[host.name] = f"{host.name} {error}; correct 'blocks' in {fleet.path or 'the fleet file'}{line}."
    return found


def _shown_state(fleet: Fleet, host: FleetHost, survey: Survey) -> str:
    """The host's state, with its blocks where it has several: "2/8 busy"."""
    state, used = host_state(host.name, survey), busy_blocks(fleet, host, survey.facts.get(host.name))
    return f"{used[0]}/{used[1]} busy" if state == "busy" and used is not None else state


def plan_rows(fleet: Fleet, survey: Survey) -> list[Sequence[object]]:
    """A row a host: what will change there and why, or why it cannot."""
    rows: list[Sequence[object]] = []
    for host in fleet.hosts:
        state = host_state(host.name, survey)
        problem = survey.problems.get(host.name)
        changes = changes_text(survey.needed.get(host.name, ()))
        text = problem.sentence if problem else changes or "nothing to change"
        rows.append((host.name, survey.addresses.get(host.name, "-"), state_text(state), text))
    return rows


def changes_text(changes: Sequence[Change]) -> str:
    """Roles by reason: "runner, openmpi (new host)"."""
    reasons: dict[str, list[str]] = {}
    for change in changes:
        reasons.setdefault(change.why, []).append(change.role)
    return "; ".join(f"{', '.join(roles)} ({why})" for why, roles in reasons.items())


def host_rows(fleet: Fleet, survey: Survey, failures: Mapping[str, str]) -> list[Sequence[object]]:
    """A row a host with its hardware; `failures` are this run's failures by host, each one sentence."""
    rows: list[Sequence[object]] = []
    for host in fleet.hosts:
        problem = survey.problems.get(host.name)
        reason = failures.get(host.name) or (problem.sentence if problem else _outstanding(survey, host.name))
        state = "failed" if host.name in failures else _shown_state(fleet, host, survey)
        known = survey.facts.get(host.name)
        address = survey.addresses.get(host.name, "-")
        if known is None:
            rows.append((host.name, address, "-", "-", "-", "-", "-", "-", state_text(state), reason))
            continue
        facts = NodeFacts.from_probe(dict(known))
        disk: Mapping[str, Any] = known.get("disk") or {}
        rows.append(
            (
                host.name, address, facts.cpus, size(facts.memory), f"{size(disk.get('free'))} free", gpus_text(facts),
                facts.driver or "-", infiniband_text(known), state_text(state), reason,
            )
        )  # fmt: skip
    return rows


def gpus_text(facts: NodeFacts) -> str:
    """Every GPU's name and memory, equal ones counted: "8 x NVIDIA B200 179GB"."""
    counted = Counter(f"{gpu.name} {size(gpu.memory)}" for gpu in facts.gpus)
    return ", ".join(f"{number} x {name}" for name, number in counted.items()) or "none"


def infiniband_text(facts: Mapping[str, Any]) -> str:
    """Active InfiniBand ports and their rate: "8 x 400Gb/s", with those that are down named."""
    ports = [port for port in facts.get("infiniband") or () if port.get("link_layer") == "InfiniBand"]
    active = Counter(f"{port.get('rate_gbps', 0):g}Gb/s" for port in ports if port.get("state") == "ACTIVE")
    down = [str(port.get("device")) for port in ports if port.get("state") != "ACTIVE"]
    text = ", ".join(f"{number} x {rate}" for rate, number in active.items())
    return ", ".join(part for part in (text, f"down: {' '.join(down)}" if down else "") if part) or "none"


def as_json(fleet: Fleet, survey: Survey, failures: Mapping[str, str]) -> dict[str, Any]:
    """The schema of `fleet get --json` (docs/commands.md)."""
    hosts = []
    for host in fleet.hosts:
        problem = survey.problems.get(host.name)
        used = busy_blocks(fleet, host, survey.facts.get(host.name))
        hosts.append(
            {
                "name": host.name,
                "address": survey.addresses.get(host.name),
                "state": "failed" if host.name in failures else host_state(host.name, survey),
                "reason": failures.get(host.name) or (problem.sentence if problem else None),
                "changes": [{"role": c.role, "why": c.why} for c in survey.needed.get(host.name, ())],
                "blocks": None if used is None else {"used": used[0], "total": used[1]},
                "facts": survey.facts.get(host.name),
            }
        )
    return {"name": fleet.name, "id": fleet.id, "hosts": hosts}


def _outstanding(survey: Survey, name: str) -> str:
    return changes_text(survey.needed.get(name, ()))
