"""Blocks: dstack's arithmetic, what a run takes, and nodes that give each block once, whoever asks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambdactl import spec
from lambdactl.errors import CapacityError
from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import Address, NodeFacts
from lambdactl.node import blocks as node_blocks
from lambdactl.node import share, unit
from lambdactl.node.spec import Job
from lambdactl.node.topology import parse_list
from lambdactl.run import blocks
from lambdactl.run.plan import NodeView, Overrides, RunPlan, job_specs, make_plan
from lambdactl.run.submit import reservations
from tests.bed.gang import task
from tests.unit.node_bed import PYTHONS, Bed, Node, Refused

FAKES = Path(__file__).resolve().parents[1] / "fakes"
CPUS = os.cpu_count() or 1


def facts(cpus: int = 8, gpus: int = 8, memory: int = 64 << 30, **fields: Any) -> NodeFacts:
    cards = [{"index": i, "name": "NVIDIA B200", "memory": 180 << 30, "uuid": f"GPU-{i}"} for i in range(gpus)]
    known = {"cpus": cpus, "memory": memory, "arch": "x86_64", "gpus": cards, "runner": "abc", **fields}
    return NodeFacts.from_probe(known)


def fleet(setting: object = 8, hosts: int = 2, **first: Any) -> Fleet:
    names = [{"hostname": f"h{number}"} for number in range(hosts)]
    names[0].update(first)
    text = {"type": "fleet", "name": "pod", "blocks": setting, "ssh_config": {"user": "u", "hosts": names}}
    parsed = spec.loads(json.dumps(text), kind="fleet")
    assert isinstance(parsed, spec.FleetSpec)
    return Fleet.from_spec(parsed, path=None)


def views(known: NodeFacts, *leases: list[dict[str, Any]]) -> dict[str, NodeView]:
    def at(number: int) -> NodeFacts:
        return replace(known, addresses=(Address("eth0", f"10.0.0.{number + 1}", 24),))

    return {f"h{number}": NodeView(f"h{number}", at(number), held) for number, held in enumerate(leases)}


def lease(*taken: int, of: int = 8, name: str = "other", **fields: Any) -> dict[str, Any]:
    whole = not taken
    base = {"run_name": name, "owner": "ann@laptop", "since": 1_000_000.0, "whole": whole, "gpus": list(taken)}
    return {**base, "blocks": list(taken), "of": None if whole else of, **fields}


def plan(wanted: spec.TaskSpec, where: Fleet, seen: dict[str, NodeView], **overrides: Any) -> RunPlan:
    return make_plan(wanted, where, seen, Overrides(**overrides))


# Arithmetic: the vectors of dstack's test_ssh_deploy, and more


@pytest.mark.parametrize(
    ("setting", "cpus", "gpus", "expected"),
    [
        (1, 32, 8, 1), ("auto", 32, 8, 8), ("auto", 32, 0, 32), (4, 64, 4, 4), (2, 64, 4, 2), ("auto", 64, 4, 4),
        ("auto", 4, 8, 4), ("auto", 1, 0, 1), (3, 9, 0, 3), ("auto", 208, 8, 8),
    ],
)  # fmt: skip
def test_division(setting: int | str, cpus: int, gpus: int, expected: int) -> None:
    assert blocks.division(setting, facts(cpus, gpus)) == expected


@pytest.mark.parametrize(
    ("setting", "cpus", "gpus", "words"),
    [
        (3, 64, 4, r"cannot split into blocks \(blocks: 3\): 64 CPUs and 4 GPUs cannot be divided by 3"),
        (8, 64, 4, r"\(blocks: 8\)"),
        ("auto", 20, 8, r"\(blocks: auto, which is 8 here\): 20 CPUs and 8 GPUs cannot be divided by 8"),
        ("auto", 6, 8, r"auto, which is 6 here"),
        (4, 6, 0, r"6 CPUs cannot be divided by 4"),
    ],
)
def test_what_cannot_be_divided(setting: int | str, cpus: int, gpus: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        blocks.division(setting, facts(cpus, gpus))


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({}, 1), ({"gpu": 1}, 1), ({"gpu": 3}, 3), ({"gpu": "B200:2..4"}, 2), ({"cpu": "3.."}, 2),
        ({"memory": "20GB.."}, 2),
        ({"cpu": 2, "memory": "40GB..", "gpu": 1}, 3), ({"gpu": 4}, 4), ({"gpu": 8}, 0), ({"disk": "10GB.."}, 1),
        ({"shm_size": "20GB"}, 2),
    ],
)  # fmt: skip
def test_the_smallest_number_of_blocks(resources: dict[str, Any], count: int) -> None:
    known = facts(8, 4, memory=64 << 30, disk={"path": "/", "free": 50 << 30})
    wanted = task("true", resources=resources) if resources else task("true")
    assert blocks.smallest(wanted.resources, known, 4) == (blocks.Want(count, 4) if count else None)


def test_controller_and_node_agree_on_what_is_free() -> None:
    dice = random.Random(7)
    for _ in range(400):
        total = dice.choice([0, 4, 8])
        held: list[dict[str, Any]] = []
        for _ in range(dice.randint(0, 5)):
            of = dice.choice([1, 2, 4, 8]) if total != 4 else dice.choice([1, 2, 4])
            request: Any = dice.choice(["all", dice.randint(0, total), (dice.randint(1, of), of)])
            granted = node_blocks.grant(request, total, held)
            if granted is not None:
                held.append(granted)
        for of in (1, 2, 4):
            assert len(node_blocks.free(of, total, held)) == blocks.free(of, total, held)
        gpus = [gpu for one in held for gpu in one["gpus"]]
        assert len(gpus) == len(set(gpus))


def test_neighbours_out_of_the_smallest_gap() -> None:
    assert node_blocks.choose(2, [0, 1, 2, 4, 5]) == [4, 5]
    assert node_blocks.choose(3, [0, 2, 4, 5]) == [0, 2, 4]
    assert node_blocks.choose(3, [0, 2]) is None


def test_kernel_lists() -> None:
    assert parse_list("0-2,8,10-11\n") == [0, 1, 2, 8, 10, 11]
    assert parse_list("") == []


# Planning


def test_single_node_runs_share_and_fill_up_what_is_used() -> None:
    two = plan(task("true", resources={"gpu": 2}), fleet(), views(facts(), [], [lease(0, 1, 2)]))
    assert [(node.name, node.gpus, node.want) for node in two.nodes] == [("h1", 2, blocks.Want(2, 8))]
    job = job_specs(two)["h1"]
    assert job["share"] == {"blocks": 2, "of": 8}
    assert job["nodes"][0]["gpus"] == 2
    asked = reservations(two.run_id, two.run_name, "me", job_specs(two))["h1"]
    assert (asked["blocks"], asked["of"]) == (2, 8)
    assert "gpus" not in asked
    six = plan(task("true", resources={"gpu": 6}), fleet(), views(facts(), [], [lease(0, 1, 2)]))
    assert six.nodes[0].name == "h0"


def test_distributed_runs_and_validations_take_whole_hosts() -> None:
    seen = views(facts(), [], [lease(0)])
    with pytest.raises(CapacityError, match="h1 is in use by run other of ann@laptop since 1970-01-12 13:46 UTC"):
        plan(task("true", nodes=2), fleet(), seen)
    whole = plan(task("true"), fleet(), seen, whole=True)
    assert (whole.nodes[0].name, whole.nodes[0].want.whole, whole.nodes[0].gpus) == ("h0", True, 8)
    assert job_specs(whole)["h0"]["share"] is None


def test_why_a_shared_host_is_full() -> None:
    held = [lease(0, 1, 2, 3, 4, ends=1_000_600.0), lease(5, 6, name="small")]
    with pytest.raises(CapacityError) as refused:
        plan(task("true", resources={"gpu": 2}), fleet(hosts=1), views(facts(), held))
    assert (
        "h0 has 1 of 8 blocks free, 2 wanted; in use by run other of ann@laptop since 1970-01-12 13:46 UTC "
        "(until 1970-01-12 13:56 UTC at the latest); run small of ann@laptop"
    ) in str(refused.value)


def test_a_host_has_its_own_blocks_and_ansible_knows_them() -> None:
    from lambdactl.fleet.ssh import host_vars

    where = fleet("auto", blocks=1)
    seen = views(facts(cpus=10), [lease(0)], [])
    with pytest.raises(CapacityError, match=r"h1 cannot split into blocks .* correct 'blocks' in the fleet file"):
        plan(task("true"), where, seen)
    frozen = {host.name: host_vars(where, host) for host in where.hosts}
    again = Fleet.from_hostvars(frozen, ["h0", "h1"])
    assert [again.blocks_of(host) for host in again.hosts] == [1, "auto"]


# On the node


@pytest.fixture(params=PYTHONS, ids=lambda path: "py38" if "3.8" in path else "py")
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 1)
    bed.nodes[0].env["PATH"] = f"{FAKES}:{bed.nodes[0].env['PATH']}"
    bed.nodes[0].env["FAKE_GPU_COUNT"] = str(4 * CPUS)  # every CPU, and four GPUs with each, can be a block
    yield bed
    bed.close()


def reserve(node: Node, count: int, *, of: int = CPUS, name: str = "", **fields: Any) -> dict[str, Any]:
    run = str(uuid.uuid4())
    request = {"run_id": run, "run_name": name or f"r-{run}", "owner": "me", "blocks": count, "of": of, **fields}
    return node.call("reserve", **request)


def test_a_share_is_what_its_blocks_are(bed: Bed) -> None:
    node = bed.nodes[0]
    first, second = reserve(node, 1), reserve(node, 1)
    assert first["gpus"] == [0, 1, 2, 3]
    assert second["gpus"] == [4, 5, 6, 7]
    assert first["share"]["gpus"][1] == "GPU-fa4e0000-0000-4000-8000-000000000001"
    assert not set(first["share"]["cpus"]) & set(second["share"]["cpus"])
    memory = node.call("probe")["memory"]
    assert 0 <= memory / CPUS - first["share"]["memory"] < 4096
    for _ in range(CPUS - 2):
        reserve(node, 1)
    with pytest.raises(Refused, match=f"1 of {CPUS} blocks wanted, 0 are free; the others are in use by run r-"):
        reserve(node, 1)
    with pytest.raises(Refused, match="the node is in use by run"):
        node.call("reserve", run_id=str(uuid.uuid4()), run_name="gang", gpus="all")


def test_wrong_divisions_and_taken_names_are_refused(bed: Bed) -> None:
    node = bed.nodes[0]
    with pytest.raises(Refused, match=f"cannot split into {4 * CPUS + 1} blocks"):
        reserve(node, 1, of=4 * CPUS + 1)
    for count, of in ((0, 2), (3, 2), (True, 2), (1, 10**6), (1, None)):
        with pytest.raises(Refused) as refused:
            reserve(node, count, of=of)  # type: ignore[arg-type]  # wrong kinds are among them, on purpose
        assert refused.value.code == "bad-request"
    reserve(node, 1, name="twin")
    with pytest.raises(Refused, match="a run named twin of me is on this node since") as taken:
        reserve(node, 1, name="twin")
    assert taken.value.code == "exists"


def test_fleet_files_of_two_controllers_may_divide_differently(bed: Bed) -> None:
    node = bed.nodes[0]
    if CPUS % 2:
        pytest.skip("an odd number of CPUs cannot be halved")  # the arithmetic is tested above without a node
    half = reserve(node, 1, of=2)
    small = reserve(node, 1, of=CPUS) if CPUS > 2 else reserve(node, 1, of=2)
    assert not set(half["gpus"]) & set(small["gpus"])
    assert not set(half["share"]["cpus"]) & set(small["share"]["cpus"])


def test_a_run_sees_its_gpus_and_cpus_only(bed: Bed) -> None:
    node = bed.nodes[0]
    reserve(node, 1)
    job = bed.job("echo $CUDA_VISIBLE_DEVICES $DSTACK_GPUS_PER_NODE; nproc; cat $DSTACK_MPI_HOSTFILE")
    job["nodes"][0]["gpus"] = 4
    mine = node.call("reserve", run_id=job["run_id"], run_name="mine", blocks=1, of=CPUS)
    bed.runs.append(job["run_id"])
    assert mine["share"]["blocks"] == 1
    node.call("start", job={**job, "rank": 0, "share": {"blocks": 1, "of": CPUS}})  # the lease says which they are
    bed.finish(job["run_id"])
    uuids = ",".join(f"GPU-fa4e0000-0000-4000-8000-{index:012x}" for index in range(4, 8))
    assert node.log(job["run_id"]).decode().split() == [uuids, "4", "1", "127.0.0.1", "slots=4"]
    assert [held["run_name"] for held in node.call("probe")["leases"]] != ["mine"]


def test_many_controllers_race_for_blocks(bed: Bed) -> None:
    """Each block is given once, whatever the divisions and whether somebody wants the whole node."""
    node = bed.nodes[0]
    node.call("probe")
    dice = random.Random(3)
    requests = []
    for number in range(16):
        base = {"id": 1, "op": "reserve", "run_id": str(uuid.uuid4()), "run_name": f"r{number}"}
        of = dice.choice([CPUS, max(1, CPUS // 2) if CPUS % 2 == 0 else CPUS])
        requests.append({**base, "gpus": "all"} if number % 8 == 7 else {**base, "blocks": 1, "of": of})
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(node.argv("serve"), stdin=pipe, stdout=pipe, env=node.env) for _ in requests]
    for racer, request in zip(racers, requests, strict=True):
        assert racer.stdin is not None
        racer.stdin.write(json.dumps(request).encode() + b"\n")
        racer.stdin.flush()
    answers = [json.loads(racer.communicate()[0]) for racer in racers]
    won = [answer["result"] for answer in answers if answer["ok"]]
    gpus = [gpu for result in won for gpu in result["gpus"]]
    cpus = [cpu for result in won if result["share"] for cpu in result["share"]["cpus"]]
    assert won
    assert len(gpus) == len(set(gpus))
    assert len(cpus) == len(set(cpus))
    assert {answer["error"]["code"] for answer in answers if not answer["ok"]} <= {"busy"}
    held = node.call("probe")["leases"]
    assert sorted(gpu for one in held for gpu in one["gpus"]) == sorted(gpus)


# The unit


SHARE = {"blocks": 2, "of": 8, "gpus": ["GPU-2", "GPU-3"], "cpus": [4, 5], "memory": 16 << 30}


def job(**fields: Any) -> Job:
    place = {"name": "n", "ip": "10.0.0.1", "gpus": 2, "ssh_user": "root"}
    base = {"run_id": str(uuid.uuid4()), "run_name": "x", "nodes": [place], "script": "true", "gpus": [2, 3]}
    return Job({**base, **fields})


def test_a_units_limits_are_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[str, str] = {}
    monkeypatch.setattr(share.paths, "read_text", lambda path, default="": texts.get(path, default))
    v1 = unit.properties(job(share=SHARE), ["runner"])
    assert (v1["MemoryMax"], v1["CPUQuota"]) == (str(16 << 30), "200%")
    assert "DeviceAllow" not in v1
    texts[share.UNIFIED] = "cpuset cpu io memory\n"
    v2 = unit.properties(job(share=SHARE, memory_limit=1 << 30), ["runner"])
    assert (v2["MemoryMax"], v2["AllowedCPUs"]) == (str(1 << 30), "4 5")
    assert "CPUQuota" not in v2
    assert "MemoryMax" not in unit.properties(job(), ["runner"])


def test_the_device_group_leaves_out_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's minor numbers decide, not nvidia-smi's order."""
    texts = {"/proc/devices": "Character devices:\n  1 mem\n136 pts\n195 nvidia-frontend\n\nBlock devices:\n  8 sd\n"}
    for index in range(4):
        texts[f"/proc/driver/nvidia/gpus/0000:{16 + index:02x}:00.0/information"] = f"Device Minor: \t {3 - index}\n"
    gpus = [{"index": i, "uuid": f"GPU-{i}", "pci": f"00000000:{16 + i:02X}:00.0"} for i in range(4)]
    nodes = [f"/dev/nvidia{minor}" for minor in range(4)] + ["/dev/nvidiactl", "/dev/nvidia-uvm"]
    monkeypatch.setattr(share.paths, "read_text", lambda path, default="": texts.get(path, default))
    monkeypatch.setattr(share.gpus, "known", lambda: gpus)
    monkeypatch.setattr(share.light, "named", lambda *words: nodes if words == ("/dev", "nvidia") else [])
    words = unit.systemd_argv(job(share=SHARE), ["runner"])
    allowed = [word.partition("DeviceAllow=")[2] for word in words if "DeviceAllow=" in word]
    assert "--property=DevicePolicy=closed" in words
    wanted = ["block-*", "char-mem", "char-pts", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"]
    assert allowed == [f"{name} rwm" for name in wanted]
    contained = unit.properties(job(share=SHARE, container={"image": "busybox"}), ["runner"])
    assert "DevicePolicy" not in contained  # its engine gives a container its devices
    assert contained["MemoryMax"] == str(16 << 30)
    texts.pop("/proc/driver/nvidia/gpus/0000:13:00.0/information")
    assert share.device_properties([0, 1]) == {}


@pytest.mark.parametrize(
    "wrong", [[], {"blocks": 1}, {**SHARE, "cpus": []}, {**SHARE, "gpus": [1]}, {**SHARE, "memory": "1G"}]
)
def test_a_broken_share_is_a_bad_request(wrong: object) -> None:
    from lambdactl.node.errors import NodeError

    with pytest.raises(NodeError, match=r"share|blocks"):
        job(share=wrong)
