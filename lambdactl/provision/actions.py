"""What the action plugins of `playbooks/` do, without Ansible in it: task variables in, plain data out.

Each of them runs once for the whole play, reaches all nodes at once in one process, and gives a result for each host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lambdactl.errors import SpecError
from lambdactl.provision.bounds import check_core
from lambdactl.provision.explain import explain, sentence
from lambdactl.provision.probe import Survey, reach, survey
from lambdactl.provision.roles import OPTIONAL_ROLES, ROLES, role_inputs

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet

TaskVars = Mapping[str, Any]


def play_fleet(task_vars: TaskVars) -> tuple[Fleet, list[str]]:
    """The fleet of a play as its inventory describes it, and the hosts of it that the play is about.

    The fleet has all hosts of the inventory that belong to it, also those outside of `--limit`: they exist.

    Raises:
        SpecError: hosts that come from no fleet file, or from two.
        LambdactlError: this ansible-core is not supported.
    """
    from lambdactl.fleet import Fleet

    check_core((task_vars.get("ansible_version") or {}).get("full"))
    chosen = [str(name) for name in task_vars["ansible_play_hosts"]]
    hostvars = {name: task_vars["hostvars"][name] for name in chosen}
    first = hostvars[chosen[0]]
    if is_kubernetes(task_vars):
        raise SpecError(
            "the hosts of this play are nodes of a Kubernetes cluster, which take no SSH; run_task.yml, "
            "run_service.yml and stop_run.yml work there, and `lambdactl backend check` looks at the cluster."
        )
    group = str(first.get("lambdactl_fleet", "")).replace("-", "_")
    for name in task_vars["groups"].get(group, ()):
        if name not in hostvars and task_vars["hostvars"][name].get("lambdactl_fleet_id") == first.get(
            "lambdactl_fleet_id"
        ):
            hostvars[str(name)] = task_vars["hostvars"][name]
    return Fleet.from_hostvars(hostvars, list(hostvars)), chosen


def is_kubernetes(task_vars: TaskVars) -> bool:
    """Whether the hosts of a play are a Kubernetes fleet's: its nodes, or ranks of its runs."""
    chosen = task_vars["ansible_play_hosts"]
    return bool(chosen) and task_vars["hostvars"][chosen[0]].get("lambdactl_backend") == "kubernetes"


def role_variables(task_vars: TaskVars, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The variables of each host that decide what roles install."""
    wanted = [name for role in ROLES for name in (*role_inputs(role), f"{role}_state")]
    found = {}
    for name in names:
        variables = task_vars["hostvars"][name]
        found[name] = {key: variables[key] for key in wanted if key in variables}
    return found


async def probe_play(task_vars: TaskVars, *, force: bool, facts: bool) -> dict[str, Any]:
    """Look at the hosts of a play.

    Args:
        force: every role is needed.
        facts: also return each host's facts (large for a large fleet, so only where they are wanted).

    Returns:
        `hosts` ({name: {problem, needed, why, address, provisioned, runs[, facts]}}), `nodes` (what nodes must know
        of each other), `names` (all hosts of the fleet), `openmpi_version` (the one that most nodes have, or empty).
    """
    fleet, names = play_fleet(task_vars)
    async with reach(fleet) as runner:
        seen = await survey(fleet, runner, names=names, variables=role_variables(task_vars, names), force=force)
    versions = Counter(str(known["openmpi"]["version"]) for known in seen.facts.values() if known.get("openmpi"))
    return {
        "hosts": {name: _host(name, seen, with_facts=facts) for name in names},
        "nodes": [node.as_dict() for node in seen.nodes],
        "names": [host.name for host in fleet.hosts],
        "openmpi_version": versions.most_common(1)[0][0] if versions else "",
    }


def _host(name: str, seen: Survey, *, with_facts: bool) -> dict[str, Any]:
    known, problem = seen.facts.get(name) or {}, seen.problems.get(name)
    changes = seen.needed.get(name, ())
    host = {
        "problem": problem.sentence if problem else "",
        "answered": name in seen.facts,
        "needed": [change.role for change in changes],
        "why": ", ".join(f"{change.role} ({change.why})" for change in changes),
        "address": seen.addresses.get(name, ""),
        "provisioned": [role for role in (*ROLES, *OPTIONAL_ROLES) if role in (known.get("provisioned") or {})],
        "runs": sorted({str(lease.get("run_name") or lease.get("run_id")) for lease in known.get("leases") or ()}),
    }
    return {**host, "facts": dict(known)} if with_facts else host


async def submit_play(task_vars: TaskVars, plan_file: str) -> dict[str, Any]:
    """Submit the run that `plan_file` describes to the hosts of a play; see `lambdactl.run.submit.submit_plan_file`."""
    from lambdactl.run.submit import submit_plan_file

    fleet, _ = play_fleet(task_vars)
    async with reach(fleet) as runner:
        return await submit_plan_file(plan_file, runner)


def explained(host: str, step: str, result: Mapping[str, Any]) -> dict[str, str]:
    """A failed task as `{host, step, cause, remedy, msg}`; `msg` is the one line that a host's failure ends with."""
    known = explain(result)
    line = f"{host}: {step}: {sentence(known.cause, known.remedy)}"
    return {"host": host, "step": step, "cause": known.cause, "remedy": known.remedy, "msg": line}
