"""What a validation plans on which fleet, how its jobs are judged, and how it compares with the past."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambdactl import spec
from lambdactl.errors import CapacityError, LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import NodeFacts
from lambdactl.nccl.hardware import Hardware
from lambdactl.nccl.parser import parse
from lambdactl.run.plan import NodeView
from lambdactl.state import State
from lambdactl.validate.blame import Blame, Finding
from lambdactl.validate.execute import Outcome, task_text
from lambdactl.validate.flow import conclude, slow
from lambdactl.validate.hardware import Network
from lambdactl.validate.history import compare
from lambdactl.validate.judge import job_record, rail_verdict, step_record, unlike_rails
from lambdactl.validate.provenance import nccl_version
from lambdactl.validate.record import JobRecord, StepRecord, Validation
from lambdactl.validate.steps import Job, Options, Plan, Step, make_plan
from tests.data.nccl.samples import GIB, output

B200 = Hardware("NVIDIA B200", 8, 4, 8, 400)


def fleet(nodes: int) -> Fleet:
    hosts = "".join(f"    - 10.0.0.{number + 1}\n" for number in range(nodes))
    text = f"type: fleet\nname: fl\nssh_config:\n  user: ubuntu\n  hosts:\n{hosts}"
    parsed = spec.loads(text, kind="fleet")
    assert isinstance(parsed, spec.FleetSpec)
    return Fleet.from_spec(parsed, path=None)


def view(name: str, *, gpus: int = 8, ports: int = 8, problem: str | None = None, **facts: Any) -> NodeView:
    if problem:
        return NodeView(name, problem=problem)
    probe = {
        "runner": "abc",
        "gpus": [{"index": index, "name": "NVIDIA B200"} for index in range(gpus)],
        "infiniband": [
            {"device": f"mlx5_{n}", "port": 1, "state": "ACTIVE", "link_layer": "InfiniBand", "rate_gbps": 400}
            for n in range(ports)
        ],
        "nccl_tests": {"path": "/opt/nccl-tests/build"},
        **facts,
    }
    return NodeView(name, NodeFacts.from_probe(probe), leases=facts.get("leases", ()))


def planned(nodes: int, options: Options | None = None, **views: Any) -> Plan:
    """A plan of a fleet whose nodes all look alike, but for those in `views` (by place)."""
    found = fleet(nodes)
    every = {
        host.name: view(host.name, **views.get(f"n{place}", views.get("all", {})))
        for place, host in enumerate(found.hosts)
    }
    return make_plan(found, every, options or Options())


@pytest.mark.parametrize(
    ("nodes", "names", "pairs"),
    [
        (1, ["nodes"], False),
        (2, ["nodes", "all", "ring", *(f"rail-{n}" for n in range(8))], False),
        (4, ["nodes", "all", "ring", *(f"rail-{n}" for n in range(8))], True),
    ],
)
def test_the_steps_of_a_fleet(nodes: int, names: list[str], pairs: bool) -> None:
    plan = planned(nodes)
    assert [step.name for step in plan.steps] == names
    assert (plan.pair is not None) == pairs
    assert len(plan.steps[0].jobs) == nodes
    assert plan.note is None
    assert all(step.limit > 4 * step.seconds for step in plan.steps)


def test_the_commands_are_whole_and_hold_no_value_of_the_users() -> None:
    plan = planned(4, Options(env={"NCCL_DEBUG": "INFO"}))
    commands = {step.name: step.jobs[0].command for step in plan.steps}
    assert commands["ring"] == (
        "mpirun --hostfile $DSTACK_MPI_HOSTFILE -n 32 -N 8 --bind-to none -x NCCL_DEBUG -x NCCL_ALGO=Ring "
        "/opt/nccl-tests/build/all_reduce_perf -b 1G -e 4G -f 2 -t 1 -g 1 -c 1 -n 10"
    )
    assert "-n 4 -N 1 --bind-to none -x NCCL_DEBUG -x CUDA_VISIBLE_DEVICES=3 " in commands["rail-3"]
    assert plan.steps[2].jobs[0].hardware == Hardware("NVIDIA B200", 8, 4, 8, 400, "ring")


def test_a_step_is_a_task_file_that_anyone_may_run() -> None:
    step = planned(2).steps[1]
    task = spec.loads(task_text(step.jobs[0], "all", step.limit), kind="task")
    assert isinstance(task, spec.TaskSpec)
    assert (task.nodes, task.stop_criteria, task.max_duration) == (2, "master-done", step.limit)


@pytest.mark.parametrize(
    ("views", "options", "error", "words"),
    [
        ({"all": {"gpus": 0}}, Options(), SpecError, "have no GPUs, so there is nothing to validate; --cpu"),
        ({}, Options(cpu=True), SpecError, "--cpu is for nodes without GPUs, and 10.0.0.1 of fl has some"),
        ({"all": {"nccl_tests": None}}, Options(), SpecError, "has no nccl-tests in /opt/nccl-tests/build; run"),
        ({"all": {"problem": "is down"}}, Options(), CapacityError, "no node of fl can take part: 10.0.0.1 is down"),
        ({"all": {"leases": [{"run_name": "train", "owner": "me"}]}}, Options(), CapacityError, "by run train of me"),
    ],
)  # fmt: skip
def test_what_cannot_be_validated_says_why(
    views: dict[str, Any], options: Options, error: type[LambdactlError], words: str
) -> None:
    with pytest.raises(error, match=words):
        planned(3, options, **views)


def test_a_node_that_is_left_out_is_told() -> None:
    plan = planned(3, n1={"problem": "is not provisioned"}, n2={"gpus": 0})
    assert plan.nodes == ("10.0.0.1",)
    assert plan.left_out == {"10.0.0.2": "is not provisioned", "10.0.0.3": "has no GPUs"}


def test_without_rdma_ports_the_user_may_state_them() -> None:
    assert "state it with --nics" in (planned(2, all={"ports": 0}).note or "")
    assert planned(2, Options(network=Network(8, 400)), all={"ports": 0}).note is None


def test_cpus_get_no_verdict_and_say_so() -> None:
    plan = planned(3, Options(cpu=True), all={"gpus": 0})
    assert [step.kind for step in plan.steps] == ["cpu"]
    assert "there will be no verdict" in (plan.note or "")
    assert plan.pair is not None
    assert "-n 2 -N 1" in plan.pair.jobs[0].command


def outcome(text: str | None, problem: str | None = None) -> Outcome:
    return Outcome("run", parse(text) if text else None, 0, problem, (), 9.5, ("10.0.0.1",))


@pytest.mark.parametrize(
    ("busbw", "status", "words"),
    [
        (48.5, "PASS", "reaches 46"),
        (45.5, "WARN", "is below 46"),
        (24.0, "FAIL", "is below 45 .90% of the rail's wire, 1 x 400"),
    ],
)
def test_a_rail_is_judged_by_its_wire(busbw: float, status: str, words: str) -> None:
    result = parse(output({GIB: busbw, 2 * GIB: busbw * 1.001}, nodes=4, gpus=1))
    found = rail_verdict(result, B200)
    assert found.status == status
    assert words.replace(".90", "(90") in found.reasons[0]


def test_a_rail_without_all_nodes_fails() -> None:
    found = rail_verdict(parse(output({GIB: 48.0, 2 * GIB: 48.1}, nodes=3, gpus=1)), B200)
    assert (found.status, "of 4" in found.reasons[0]) == ("FAIL", True)


def test_a_run_that_fails_fails_its_step() -> None:
    found = job_record(Job(("a",), "x", B200), outcome(None, "rank 0 exited with 3"))
    assert (found.status, found.sentence) == ("FAIL", "the run failed: rank 0 exited with 3")


def node(name: str, value: float, status: str = "PASS") -> JobRecord:
    return JobRecord([name], ["10.0.0.1"], "x", "r", status, "fine", 1.0, value)


def step(name: str, kind: Any, jobs: list[JobRecord]) -> StepRecord:
    return step_record(Step(name, name, kind, (), 1, 1), jobs)


def test_a_node_unlike_the_others_passes_no_more() -> None:
    found = step("nodes", "node", [node("a", 838), node("b", 840), node("c", 720), node("d", 841)])
    assert found.status == "WARN"
    assert found.sentence == "c: 720 GB/s is 14% below the middle node's 839 (720 to 841 GB/s on 4 nodes)"


def test_slow_rails_are_named() -> None:
    rails = [step(f"rail-{n}", "rail", [node("a", 24.0 if n == 5 else 48.5)]) for n in range(8)]
    assert [name for name, _ in unlike_rails(rails)] == ["rail-5"]


def test_the_conclusion_is_the_worst_step_and_the_culprit() -> None:
    steps = [step("nodes", "node", [node("a", 838)]), step("all nodes", "whole", [node("a", 240, "FAIL")])]
    assert slow(steps)
    assert conclude(steps, Finding((), 700, 3, "Nobody stands out.")) == (
        "FAIL",
        "FAIL: all nodes: fine. Nobody stands out.",
    )
    assert conclude(steps[:1], None) == ("PASS", "PASS: nodes: fine.")
    sick = [{"status": "pass"}, {"status": "fail", "title": "ECC errors", "host": "b"}]
    text = "WARN: nodes: fine. The doctor saw 1 failures, such as: ECC errors on b."
    assert conclude(steps[:1], None, sick) == ("WARN", text)


def test_the_cpu_benchmark_gets_no_verdict_whatever_is_found() -> None:
    finding = Finding((Blame("node", ("a",), 0.5, ()),), 700, 5, "To blame: node a.")
    steps = [step("cpu", "cpu", [node("a", 3, "no verdict")])]
    assert conclude(steps, finding, [{"status": "fail", "title": "x", "host": "b"}])[0] == "no verdict"
    assert conclude([step("all", "whole", [node("a", 3, "no verdict")])], finding)[0] == "WARN"


def validation(number: int, value: float, **changes: Any) -> Validation:
    base = Validation(
        f"id{number}", "fleet", "f", float(number), 60.0, "PASS", "PASS: fine.", "2 nodes: 8 x B200",
        {"nccl": "2.26.2"}, {}, [step("all", "whole", [node("a", value)])],
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.parametrize(("value", "flagged"), [(0.94, True), (0.98, False), (1.06, False)])
def test_six_percent_less_is_flagged_and_two_are_not(value: float, flagged: bool) -> None:
    past = [validation(number, 700) for number in (3, 2, 1)]
    (change,) = compare(validation(4, 700 * value), past).changes
    assert (change.flagged, change.runs) == (flagged, 3)


def test_the_past_is_keyed_by_topology_and_versions() -> None:
    other = [validation(3, 900, topology="4 nodes: 8 x B200"), validation(2, 600, versions={"nccl": "2.25.1"})]
    found = compare(validation(4, 560), other)
    assert (found.changes[0].before, found.changed) == (600, ("nccl 2.25.1 -> 2.26.2",))
    assert compare(validation(4, 560), [validation(1, 700), *other]).changes[0].before == 700
    assert compare(validation(4, 560), other[:1]).changes == ()


def test_validations_are_kept_and_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    with State(tmp_path / "state.db") as state:
        for number in (1, 2):
            each = validation(number, 700)
            state.remember_validation(each.id, each.fleet_id, each.started_at, each.as_json())
        assert [document["id"] for document in state.validations("fleet")] == ["id2", "id1"]
        assert state.validations("other") == []
        document = state.validation("id1")
        assert document is not None
        assert Validation.from_json(document) == validation(1, 700)
        assert state.validation("x%") is None


def test_an_older_state_file_gets_the_new_table(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "state.db"
    with State(path):
        pass
    with sqlite3.connect(path) as db:
        db.executescript("DROP TABLE validations; PRAGMA user_version = 1;")
    with State(path) as state:
        assert state.validations() == []


@pytest.mark.parametrize(("code", "text"), [(22602, "2.26.2"), (2708, "2.7.8"), (23000, "2.30.0")])
def test_nccl_versions(code: int, text: str) -> None:
    assert nccl_version(code) == text
