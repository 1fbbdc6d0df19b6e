"""`lambdactl apply`: a fleet where nothing is to change, and a task until its first command runs on all nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import yaml

from lambdactl.fleet import Fleet
from tests.bench import baselines
from tests.bench.baselines import Ansible, until_last
from tests.bench.meter import Meter, Plan, Sample, tool
from tests.bench.place import BedPlace, Place
from tests.bench.results import Group

OURS = "lambdactl"
ROLES = "ansible-core, the same roles"
TASKS = "ansible-core, as many `command` tasks"
WARM, COLD = "ansible-core, one `command`, warm", "ansible-core, one `command`, cold"
OPENSSH, FLOOR = "parallel ssh, one shared connection", "asyncssh floor"
PYTHON = "asyncssh floor, with a start of Python"
UNTIL_FIRST = "node_cpu_until_first"

# Actions that never leave the controller; all others cost a module on the node.
_LOCAL = frozenset({
    "set_fact", "assert", "fail", "debug", "meta", "include_role", "include_tasks", "import_role", "import_tasks",
    "validate_argument_spec", "lambdactl_probe", "lambdactl_explain",
})  # fmt: skip


def count_role_tasks(meter: Meter, place: Place, folder: Path) -> int:
    """How many modules the roles run on one converged node."""
    counts = folder / "counts.json"
    env = {
        "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).with_name("callbacks")),
        "ANSIBLE_CALLBACKS_ENABLED": "bench_count",
        "BENCH_COUNT": str(counts),
    }
    place.env = {**place.env, **env}
    try:
        Ansible(meter, place, folder).roles()
    finally:
        place.env = {name: value for name, value in place.env.items() if name not in env}
    hosts: dict[str, dict[str, int]] = json.loads(counts.read_text())
    return max(sum(n for action, n in actions.items() if action not in _LOCAL) for actions in hosts.values())


def no_op(meter: Meter, place: Place, plan: Plan, folder: Path, *, tasks: int | None) -> Group:
    """A provisioned fleet applied again; ``tasks`` of the roles' work on the bed, None for the roles themselves."""
    argv = [tool("lambdactl"), "apply", "-f", str(place.fleet_file), "-y"]
    nodes = len(Fleet.load(str(place.fleet_file)).hosts)

    def ours() -> Sample:
        sample = meter.run(argv, env=place.env)
        if "nothing to change" not in sample.err:
            raise RuntimeError(f"the fleet was not converged: {sample.err[-500:]}")
        return sample

    series = [plan.series(OURS, ours)]
    ansible = Ansible(meter, place, folder)
    if tasks is None:
        series.append(plan.series(ROLES, ansible.roles, warm_up=True, note="connections kept from the run before"))
    elif nodes * tasks <= MAX_HOST_TASKS:
        playbook = ansible.tasks(tasks)
        ansible.play(ansible.tasks(1), warm=False)  # opens the connections
        note = f"{tasks} tasks; connections kept from the run before"
        series.append(plan.series(TASKS, lambda: ansible.play(playbook, warm=True), note=note))
    baselines.disconnect(meter, place)
    return Group("noop", place.label, nodes, series, delayed=place.round_trip > 0, real=tasks is None)


MAX_HOST_TASKS = 1500
"""Above it the baseline takes many minutes for one sample, and is left out."""


def launch(meter: Meter, place: Place, plan: Plan, folder: Path) -> Group:
    """From the start of the command to the first command on the last node."""
    nodes = len(Fleet.load(str(place.fleet_file)).hosts)
    task = folder / "stamp.dstack.yml"
    task.write_text(yaml.safe_dump({"type": "task", "name": "stamp", "nodes": nodes, "commands": [place.stamp]}))
    argv = [tool("lambdactl"), "apply", "-f", str(task), "--fleet", str(place.fleet_file), "-y"]
    ansible = Ansible(meter, place, folder)

    def ours() -> Sample:
        place.forget_stamps()
        with place.watch(nodes) as worked:
            sample = until_last(place, meter.run(argv, env=place.env), nodes)
        if sample.values["lost"]:
            raise RuntimeError(f"{sample.values['lost']:.0f} nodes were lost")
        own = {UNTIL_FIRST: worked[0]} if worked else {}
        return replace(sample, values={**sample.values, **own})

    series = [
        plan.series(OURS, ours),
        plan.series(FLOOR, lambda: baselines.floor(meter, place)),
        plan.series(PYTHON, lambda: baselines.floor(meter, place, before=baselines.PYTHON)),
        plan.series(OPENSSH, lambda: baselines.parallel_openssh(meter, place)),
        plan.series(COLD, lambda: ansible.stamped(warm=False), note="new connections"),
        plan.series(WARM, lambda: ansible.stamped(warm=True), note="connections kept from the run before"),
    ]
    baselines.disconnect(meter, place)
    return Group(
        "launch", place.label, nodes, series, delayed=place.round_trip > 0, real=not isinstance(place, BedPlace)
    )
