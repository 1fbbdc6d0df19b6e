"""Runs on the wide bed: real sshd behind a real jump host, the real runner without systemd."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lambdactl import spec
from lambdactl.errors import CapacityError, LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.run.control import stop_run, wait_ended
from lambdactl.run.follow import Follower
from lambdactl.run.plan import Overrides, RunPlan, job_specs, make_plan
from lambdactl.run.screen import LogOutput
from lambdactl.run.status import RunStatus, fetch_runs
from lambdactl.run.submit import submit, submit_plan_file, write_plan_file
from lambdactl.run.survey import survey
from lambdactl.transport import Transport, open_transport
from lambdactl.transport.broker import serve_broker
from tests.bed.gang import GangBed, task

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def bed() -> Iterator[GangBed]:
    with GangBed(nodes=3) as bed:
        yield bed


@dataclass
class End:
    status: RunStatus
    log: bytes
    notes: list[str]


async def plan_for(transport: Transport, wanted: spec.TaskSpec, **overrides: object) -> RunPlan:
    seen = await survey(transport, transport.fleet)
    return make_plan(wanted, transport.fleet, seen.views, Overrides(node_timeout=20, **overrides))  # type: ignore[arg-type]  # fields of any kind, by name


async def start(transport: Transport, plan: RunPlan) -> None:
    outcome = await submit(plan.run_id, plan.run_name, plan.owner, job_specs(plan), transport)
    assert outcome["ok"], outcome


async def follow(transport: Transport, plan: RunPlan, show: list[int] | None = None) -> End:
    stream, notes = io.BytesIO(), []
    hosts = {node.rank: node.name for node in plan.nodes}
    follower = Follower(
        transport, plan.run_id, hosts, LogOutput(show or [0], stream=stream), show=show or [0], notify=notes.append
    )
    await follower.run()
    status = await follower.status()
    assert status is not None
    return End(status, stream.getvalue(), notes)


def run(fleet: Fleet, wanted: spec.TaskSpec, show: list[int] | None = None, **overrides: object) -> End:
    async def body() -> End:
        async with open_transport(fleet) as transport:
            plan = await plan_for(transport, wanted, **overrides)
            await start(transport, plan)
            return await follow(transport, plan, show)

    return asyncio.run(body())


def test_a_gang_runs_in_file_order_and_ends_with_the_failing_ranks_code(bed: GangBed) -> None:
    script = "if [ $DSTACK_NODE_RANK = 2 ]; then exit 7; else sleep 1000; fi"
    end = run(bed.load(), task("cat $DSTACK_MPI_HOSTFILE", script, nodes=3))
    assert end.log.decode().split() == list(bed.addresses)
    assert (end.status.state, end.status.exit_code, end.status.first_failed_rank) == ("failed", 7, 2)
    assert [rank["node"] for rank in end.status.ranks] == list(bed.addresses)
    assert all(rank["state"] in ("failed", "stopped") for rank in end.status.ranks)


def test_master_done_stops_workers_and_is_success(bed: GangBed) -> None:
    script = "if [ $DSTACK_NODE_RANK = 0 ]; then echo done; else sleep 1000; fi"
    end = run(bed.load(), task(script, nodes=3, startup_order="workers-first", stop_criteria="master-done"))
    assert (end.status.state, end.status.exit_code) == ("done", 0)
    assert end.log == b"done\n"


def test_all_ranks_are_prefixed(bed: GangBed) -> None:
    end = run(bed.load(), task("echo rank $DSTACK_NODE_RANK", nodes=3), show=[0, 1, 2])
    assert sorted(end.log.splitlines()) == [b"0: rank 0", b"1: rank 1", b"2: rank 2"]


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("echo '{{ 7*7 }} {% raw %} ${{ x }}'", b"{{ 7*7 }} {% raw %} ${{ x }}\n"),
        ("cd /tmp", b"after\n"),
        ("export A=1 # a comment", b"after\n"),
        ("cat <<E\nhere\nE", b"here\nafter\n"),
        ("sleep 0 &", b"after\n"),
        ("printf 'no newline'", b"no newlineafter\n"),
        ("printf '%s' \"$QUOTED\"", b"a 'b' \"c\"\n$dafter\n"),
    ],
)
def test_commands_reach_the_shell_as_they_stand(bed: GangBed, command: str, printed: bytes) -> None:
    end = run(bed.load(), task(command, "echo after", env={"QUOTED": "a 'b' \"c\"\n$d"}))
    assert end.log in (printed, printed + b"after\n")
    assert end.status.exit_code == 0


def test_the_first_failing_command_ends_the_script(bed: GangBed) -> None:
    end = run(bed.load(), task("echo one", "false", "echo never"))
    assert end.log == b"one\n"
    assert end.status.exit_code == 1


def test_env_of_file_and_command_line(bed: GangBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_ME", "mine")
    wanted = task('echo "$A $B $FROM_ME"', env=["A=1", "B=2", "FROM_ME"])
    assert run(bed.load(), wanted, env=(spec.parse_env_item("B=3"),)).log == b"1 3 mine\n"
    monkeypatch.delenv("FROM_ME")
    with pytest.raises(SpecError, match="FROM_ME"):
        run(bed.load(), wanted)


def test_one_jump_connection_and_one_login_a_node() -> None:
    with GangBed(nodes=4) as own:
        assert run(own.load(), task("true", nodes=4)).status.state == "done"
        assert own.jump_logins() == 1
        assert own.node_logins() == dict.fromkeys(own.addresses, 1)


def test_a_log_is_complete_although_connections_are_cut(tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); [ $((i % 6000)) = 0 ] && sleep 0.2; done"
    expected = b"".join(b"line %d\n" % n for n in range(60000))

    async def body(own: GangBed) -> End:
        async with open_transport(own.load()) as transport:
            plan = await plan_for(transport, task(script + "; true"))
            await start(transport, plan)
            following = asyncio.ensure_future(follow(transport, plan))
            for _ in range(3):
                await asyncio.sleep(0.5)
                own.node.drop_sessions()
            return await following

    with GangBed(nodes=1) as own:
        end = asyncio.run(body(own))
    assert end.status.state == "done"
    assert end.log == expected


def test_two_controllers_never_share_a_node(bed: GangBed) -> None:
    fleet = bed.load()
    planned = asyncio.Barrier(4)  # all have seen three free nodes before the first of them asks for any

    async def attempt(wanted: spec.TaskSpec, name: str) -> dict[str, object]:
        async with open_transport(fleet) as transport:
            plan = await plan_for(transport, wanted, name=name)
            await planned.wait()
            return await submit(plan.run_id, plan.run_name, plan.owner, job_specs(plan), transport)

    async def body() -> list[dict[str, object]]:
        outcomes = await asyncio.gather(*(attempt(task("sleep 1000", nodes=3), f"c{n}") for n in range(4)))
        async with open_transport(fleet) as transport:
            names = [host.name for host in fleet.hosts]
            for outcome in outcomes:
                if outcome["ok"]:
                    await stop_run(transport, str(outcome["run_id"]), names, abort=True)
                    await wait_ended(transport, str(outcome["run_id"]), names, patience=20)
            runs, _ = await fetch_runs(transport, names)
            assert not [status for status in runs if not status.final]
        return outcomes

    outcomes = asyncio.run(body())
    assert sum(bool(outcome["ok"]) for outcome in outcomes) <= 1
    for outcome in outcomes:
        if not outcome["ok"]:
            assert outcome["code"] == "busy"
            assert "was not started" in str(outcome["error"])
    # Nothing stays reserved: the whole fleet can be used at once.
    assert run(fleet, task("true", nodes=3)).status.state == "done"


def test_a_refused_gang_leaves_nothing_reserved(bed: GangBed) -> None:
    fleet = bed.load()

    async def body() -> tuple[dict[str, object], RunStatus | None]:
        async with open_transport(fleet) as transport:
            blocker = await plan_for(transport, task("sleep 1000"), name="blocker")
            wide = await plan_for(transport, task("true", nodes=3), name="wide")
            await start(transport, blocker)
            outcome = await submit(wide.run_id, wide.run_name, wide.owner, job_specs(wide), transport)
            await stop_run(transport, "blocker", [bed.addresses[0]])
            ended = await wait_ended(transport, "blocker", [bed.addresses[0]], patience=20)
            return outcome, ended

    outcome, ended = asyncio.run(body())
    assert outcome["code"] == "busy"
    assert "blocker" in str(outcome["error"])
    assert ended is not None
    assert (ended.state, ended.exit_code, ended.reason) == ("stopped", 130, "stopped-by-user")
    assert run(fleet, task("true", nodes=3)).status.state == "done"


def test_a_plan_says_why_it_cannot_be(bed: GangBed) -> None:
    fleet = bed.load()
    with pytest.raises(CapacityError, match="asks for 4 nodes, but the fleet bed has 3"):
        run(fleet, task("true", nodes=4))
    with pytest.raises(CapacityError, match=r"0 of 3 in bed can take it: 127\.1\.0\.1 .*GPU"):
        run(fleet, task("true", resources={"gpu": "B200:8"}))
    with pytest.raises(SpecError, match=r"task.dstack.yml:\d+: 'image': 'a b' is not the name of an image"):
        run(fleet, task("true", image="a b"))


def test_a_busy_node_is_passed_over(bed: GangBed) -> None:
    async def body() -> tuple[RunPlan, RunPlan]:
        async with open_transport(bed.load()) as transport:
            blocker = await plan_for(transport, task("sleep 1000"), name="blocker")
            await start(transport, blocker)
            try:
                return blocker, await plan_for(transport, task("true", nodes=2))
            finally:
                await stop_run(transport, blocker.run_id, [bed.addresses[0]], abort=True)
                await wait_ended(transport, blocker.run_id, [bed.addresses[0]], patience=20)

    blocker, plan = asyncio.run(body())
    assert [node.name for node in plan.nodes] == list(bed.addresses[1:])
    assert f"is in use by run blocker of {blocker.owner} since " in plan.excluded[bed.addresses[0]]


def test_groups_have_their_own_commands_and_know_each_other(bed: GangBed) -> None:
    name = "{{ groups[0].nodes[0].IP_ADDRESS }}"
    parts = [
        {"commands": ["echo 0 ${{ groups[1].nodes[1].IP_ADDRESS }} $DSTACK_NODES_NUM"]},
        {"nodes": 2, "commands": [f"test '$${name}' = '$''{name}'"]},
    ]
    text = yaml.safe_dump({"type": "task", "name": "grouped", "groups": parts})
    wanted = spec.loads(text)
    assert isinstance(wanted, spec.TaskSpec)
    end = run(bed.load(), wanted, show=[0])
    assert end.log.decode() == f"0 {bed.addresses[2]} 3\n"
    assert end.status.state == "done"
    wrong = spec.loads(text.replace("commands:", "resources: {gpu: 'B200:8'}\n  commands:", 1))
    assert isinstance(wrong, spec.TaskSpec)
    with pytest.raises(CapacityError, match=r"grouped does not fit into bed: group 0 wants 1 node, 0 can take it: 127"):
        run(bed.load(), wrong)


def test_the_plan_file_is_private_and_the_outcome_has_no_environment(bed: GangBed, tmp_path: Path) -> None:
    async def body() -> dict[str, object]:
        async with open_transport(bed.load()) as transport:
            plan = await plan_for(transport, task("true", env={"TOKEN": "canary-1234"}))
            write_plan_file(plan, tmp_path / "plan.json")
            outcome = await submit_plan_file(tmp_path / "plan.json", transport)
            await follow(transport, plan)
            return outcome

    outcome = asyncio.run(body())
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == 0o600
    assert outcome["ok"]
    assert "canary-1234" not in json.dumps(outcome)


@pytest.mark.parametrize("content", ["", "[]", '{"run_id": 1}'])
def test_a_broken_plan_file_is_one_sentence(bed: GangBed, tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)

    async def body() -> None:
        async with open_transport(bed.load()) as transport:
            await submit_plan_file(tmp_path / "plan.json", transport)

    with pytest.raises(LambdactlError, match=r"plan.json cannot be read"):
        asyncio.run(body())


def test_a_plan_that_is_being_made_is_waited_for_while_its_maker_lives(
    bed: GangBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`apply` starts the playbook before there is a plan; whatever ends `apply` ends the waiting."""
    socket = tmp_path / "broker"
    monkeypatch.setenv("LAMBDACTL_BROKER", str(socket))

    async def body() -> dict[str, object]:
        async with open_transport(bed.load()) as transport:
            plan = await plan_for(transport, task("true"))
            async with serve_broker(transport, socket):
                waiting = asyncio.ensure_future(submit_plan_file(tmp_path / "plan.json", transport))
                await asyncio.sleep(0.2)
                assert not waiting.done()
                write_plan_file(plan, tmp_path / "plan.json")
                outcome = await waiting
                abandoned = asyncio.ensure_future(submit_plan_file(tmp_path / "none.json", transport))
                await asyncio.sleep(0.2)
                assert not abandoned.done()
            with pytest.raises(LambdactlError, match=r"none.json cannot be read"):
                await abandoned
            await follow(transport, plan)
            return outcome

    assert asyncio.run(body())["ok"]
