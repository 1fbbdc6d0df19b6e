"""The serve protocol: leases, hostile requests, facts, and the zipapp itself."""
# ruff: noqa: E501 (tables of vectors read better in long lines)

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from lambdactl import content
from lambdactl.node.cgroup import groups_of
from lambdactl.node.env import hostfile
from lambdactl.node.outcome import of_exit
from tests.unit.node_bed import PYTHONS, Bed, Node, Refused

FAKES = Path(__file__).resolve().parents[1] / "fakes"
NODE = Path(content.__file__).parent / "node"


@pytest.fixture(params=PYTHONS, ids=lambda path: "py38" if "3.8" in path else "py")
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 1)
    yield bed
    bed.close()


@pytest.fixture
def gpus(bed: Bed) -> Node:
    node = bed.nodes[0]
    node.env["PATH"] = f"{FAKES}:{node.env['PATH']}"
    return node


def new() -> str:
    return str(uuid.uuid4())


def reserve(
    node: Node, gpus: str | int, *, run: str = "", name: str = "a", owner: str = "", ttl: float = 60
) -> list[int]:
    return list(node.call("reserve", run_id=run or new(), run_name=name, owner=owner, gpus=gpus, ttl=ttl)["gpus"])


# The zipapp


def test_the_zipapp_is_reproducible_and_complete() -> None:
    data = content.runner_zipapp()
    content.runner_zipapp.cache_clear()
    assert content.runner_zipapp() == data
    assert content.runner_sha256() == hashlib.sha256(data).hexdigest()
    with zipfile.ZipFile(BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {f"lambdactl/node/{file.name}" for file in NODE.glob("*.py")} < set(archive.namelist())
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("source", sorted(NODE.glob("*.py")), ids=lambda path: path.name)
def test_the_runner_needs_python_38_and_its_library_only(source: Path) -> None:
    tree = ast.parse(source.read_text(), feature_version=(3, 8))
    for item in ast.walk(tree):
        modules = [name.name for name in item.names] if isinstance(item, ast.Import) else []
        modules += [item.module or ""] if isinstance(item, ast.ImportFrom) and item.level == 0 else []
        assert all(module.partition(".")[0] in sys.stdlib_module_names for module in modules), modules
        assert not {"asyncio", "typing_extensions"} & set(modules)


def test_content_is_found() -> None:
    assert content.path("roles", "runner").is_dir()
    with pytest.raises(FileNotFoundError, match="install lambdactl again"):
        content.path("nothing")


# Hostile input


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"op":null}', b'{"op":["probe"]}', b'{"op":"__init__"}',
        b'{"op":"status","run":"../../../etc"}', b'{"op":"status","run":"a/b"}', b'{"op":"status","run":7}',
        b'{"op":"stop","run":"x\\u0000"}', b'{"op":"stop"}', b'{"op":"stop","run":"x","grace":-1}', b'{"op":"forget","run":".."}',
        b'{"op":"reserve","run_id":"../x","run_name":"x"}', b'{"op":"reserve","run_id":"x","run_name":"x"}',
        b'{"op":"reserve","run_id":"00000000-0000-4000-8000-000000000000","run_name":"$(x)"}',
        b'{"op":"reserve","run_id":"00000000-0000-4000-8000-000000000000","run_name":"x","gpus":-1}',
        b'{"op":"reserve","run_id":"00000000-0000-4000-8000-000000000000","run_name":"x","gpus":true}',
        b'{"op":"reserve","run_id":"00000000-0000-4000-8000-000000000000","run_name":"x","ttl":1e999}',
        b'{"op":"start"}', b'{"op":"start","job":[]}', b'{"op":"start","job":{}}', b'{"op":"probe","roles":[]}',
        b'{"op":"release","run_id":"00000000-0000-4000-8000-00000000000"}', b'{"op":"gc","keep":"all"}',
    ],
)  # fmt: skip
def test_hostile_lines_get_an_answer_and_serve_goes_on(bed: Bed, line: bytes) -> None:
    answer = bed.nodes[0].ask(line)
    assert answer["ok"] is False
    assert answer["error"]["code"] == "bad-request"
    assert "Traceback" not in answer["error"]["message"]
    assert bed.nodes[0].call("status", run=None) == {"ranks": []}


@pytest.mark.parametrize(
    "fields",
    [
        {"run_id": "../../../../tmp/x"}, {"run_id": new().upper()}, {"run_name": "a;b"}, {"rank": 5}, {"rank": -1}, {"rank": True},
        {"nodes": []}, {"nodes": ["x"]}, {"nodes": [{"name": "n", "ip": "-oProxyCommand=x"}]},
        {"nodes": [{"name": "n", "ip": "10.0.0.1", "ssh_user": "-l"}]}, {"script": None}, {"script": "a\0b"}, {"env": {"A-B": "x"}},
        {"env": {"A": 1}}, {"env": {"A": "\0"}}, {"env": []}, {"user": "-x"}, {"gpus": ["0"]}, {"startup_order": "last"},
        {"stop_signal": "SIGNOPE"}, {"stop_signal": 2}, {"max_duration": -1}, {"stop_grace": "x"}, {"log_limit": 1},
        {"node_timeout": 0}, {"on_node_failure": "retry"},
    ],
)  # fmt: skip
def test_hostile_jobs_are_refused_before_they_touch_anything(bed: Bed, fields: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        bed.nodes[0].call("start", job={**bed.job("true"), "rank": 0, **fields})
    assert refused.value.code == "bad-request"
    assert next(iter(fields)) in refused.value.message
    assert os.listdir(bed.nodes[0].state / "runs") == []


# Leases


def test_a_whole_node_is_exclusive_and_busy_names_the_holder(gpus: Node) -> None:
    run = new()
    assert reserve(gpus, "all", run=run, name="first", owner="ann@laptop") == list(range(8))
    assert reserve(gpus, "all", run=run, name="first") == list(range(8))  # renewed
    for wanted in ("all", 1, 0):
        with pytest.raises(Refused) as refused:
            reserve(gpus, wanted)
        assert refused.value.code == "busy"
        assert "run first of ann@laptop since 20" in refused.value.message
    assert gpus.call("status", run="first")["ranks"][0]["state"] == "reserved"
    gpus.call("release", run_id=run)
    gpus.call("release", run_id=run)
    assert reserve(gpus, "all") == list(range(8))


def test_gpus_are_shared_by_number(gpus: Node) -> None:
    assert reserve(gpus, 3, name="x") == [0, 1, 2]
    assert reserve(gpus, 0) == []
    assert reserve(gpus, 4) == [3, 4, 5, 6]
    for wanted, words in (
        (2, "2 GPUs wanted, 1 of 8 are free"),
        (9, "9 GPUs wanted, the node has 8"),
        ("all", "run x"),
    ):
        with pytest.raises(Refused, match=words):
            reserve(gpus, wanted)
    assert reserve(gpus, 1) == [7]


def test_reservations_expire_and_do_not_survive_a_reboot(gpus: Node) -> None:
    everything = list(range(8))
    assert reserve(gpus, "all", ttl=0.2) == everything
    time.sleep(0.3)
    assert reserve(gpus, "all", ttl=3600) == everything
    gpus.close()
    gpus._serve = None
    gpus.env["LAMBDACTL_BOOT"] = "next"
    assert reserve(gpus, "all") == everything


def test_a_job_with_some_gpus_sees_only_these(bed: Bed, gpus: Node) -> None:
    reserve(gpus, 2, name="other")
    job = bed.job("echo $CUDA_VISIBLE_DEVICES-$DSTACK_GPUS_NUM; cat $DSTACK_MPI_HOSTFILE", gpus=[2, 3, 4])
    job["nodes"][0]["gpus"] = 3
    assert reserve(gpus, 3, run=job["run_id"]) == [2, 3, 4]
    bed.runs.append(job["run_id"])
    gpus.call("start", job=job)
    bed.finish(job["run_id"])
    uuids = ",".join(f"GPU-fa4e0000-0000-4000-8000-{index:012x}" for index in (2, 3, 4))
    assert gpus.log(job["run_id"]).decode() == f"{uuids}-3\n127.0.0.1 slots=3\n"


@pytest.mark.parametrize(("gpus_wanted", "winners"), [("all", 1), (3, 2)])
def test_many_reservers_at_once(bed: Bed, gpus: Node, gpus_wanted: str | int, winners: int) -> None:
    gpus.call("probe")
    requests = [{"id": 1, "op": "reserve", "run_id": new(), "run_name": "r", "gpus": gpus_wanted} for _ in range(12)]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(gpus.argv("serve"), stdin=pipe, stdout=pipe, env=gpus.env) for _ in requests]
    for racer, request in zip(racers, requests, strict=True):
        assert racer.stdin is not None
        racer.stdin.write(json.dumps(request).encode() + b"\n")
        racer.stdin.flush()
    answers = [json.loads(racer.communicate()[0]) for racer in racers]
    won = [answer["result"]["gpus"] for answer in answers if answer["ok"]]
    assert len(won) == winners
    assert len({index for indices in won for index in indices}) == sum(map(len, won))
    assert {answer["error"]["code"] for answer in answers if not answer["ok"]} == {"busy"}


# Facts


def test_facts_with_eight_gpus(gpus: Node) -> None:
    facts = gpus.call("probe")
    assert len(facts["gpus"]) == 8
    assert facts["gpus"][7] == {
        "index": 7, "name": "NVIDIA B200", "memory": 183359 << 20, "uuid": "GPU-fa4e0000-0000-4000-8000-000000000007",
        "pci": "00000000:17:00.0", "compute_capability": "10.0",
    }  # fmt: skip
    assert facts["driver"] == "570.148.08"
    assert facts["problems"] == []
    names = (
        "hostname boot_id machine_id time os kernel arch python cpus numa_nodes memory disk addresses cuda infiniband"
    )
    names += " openmpi nccl_tests ssh_host_keys node_ssh_key runner systemd sudo provisioned leases shared_memory"
    assert set(names.split()) <= facts.keys()
    assert facts["systemd"] is False
    assert facts["memory"] > 1 << 28
    assert facts["disk"]["total"] >= facts["disk"]["free"] > 0


@pytest.mark.parametrize(
    ("env", "count", "words"),
    [
        ({"FAKE_GPU_COUNT": "0"}, 0, None),
        ({"FAKE_GPU_COUNT": "2", "FAKE_GPU_NAME": "NVIDIA H100 80GB HBM3"}, 2, None),
        ({"FAKE_GPU_HANG": "100", "LAMBDACTL_PROBE_TIMEOUT": "0.3"}, 0, "nvidia-smi did not answer within 0.3 s: the NVIDIA driver"),
        ({"FAKE_GPU_COUNT": "1", "PCI": "2"}, 1, "nvidia-smi reports 1 GPUs, 2 are on the PCI bus"),
        ({"FAKE_GPU_EXIT": "9", "PCI": "2"}, 0, "nvidia-smi failed (9): NVIDIA-SMI has failed"),
    ],
)  # fmt: skip
def test_gpu_troubles_are_named(gpus: Node, tmp_path: Path, env: dict[str, str], count: int, words: str | None) -> None:
    for index in range(int(env.get("PCI", "0"))):
        device = tmp_path / f"sys/bus/pci/devices/{index}"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    gpus.env.update(env, LAMBDACTL_SYSFS=str(tmp_path / "sys"))
    facts = gpus.call("probe")
    assert len(facts["gpus"]) == count
    assert any(words in problem for problem in facts["problems"]) if words else facts["problems"] == []


def test_infiniband_from_sysfs(bed: Bed, tmp_path: Path) -> None:
    for device, layer, rate in (
        ("mlx5_0", "Ethernet", "100 Gb/sec (4X EDR)"),
        ("mlx5_1", "InfiniBand", "400 Gb/sec (4X NDR)"),
    ):
        port = tmp_path / f"sys/class/infiniband/{device}/ports/1"
        port.mkdir(parents=True)
        (port / "state").write_text("4: ACTIVE\n")
        (port / "link_layer").write_text(layer + "\n")
        (port / "rate").write_text(rate + "\n")
    bed.nodes[0].env["LAMBDACTL_SYSFS"] = str(tmp_path / "sys")
    ports = bed.nodes[0].call("probe")["infiniband"]
    assert ports[1] == {
        "device": "mlx5_1",
        "port": 1,
        "state": "ACTIVE",
        "link_layer": "InfiniBand",
        "rate_gbps": 400.0,
    }
    assert ports[0]["link_layer"] == "Ethernet"


def test_manifests_are_verified(bed: Bed) -> None:
    node = bed.nodes[0]
    folder = node.state / "provisioned"
    folder.mkdir(parents=True)
    (node.root / "etc").mkdir()
    (node.root / "etc/conf").write_text("one\ntwo\n")
    os.chmod(node.root / "etc/conf", 0o644)
    digest = hashlib.sha256(b"one\ntwo\n").hexdigest()
    good = [
        {"path": "/etc/conf", "sha256": digest, "mode": "0644"}, {"line": "two", "in": "/etc/conf"}, {"absent": "/etc/gone"},
        {"package": "coreutils"},
    ]  # fmt: skip
    bad = [
        {"path": "/etc/nope"}, {"path": "/etc/conf", "sha256": "0" * 64}, {"path": "/etc/conf", "mode": "0600"},
        {"line": "three", "in": "/etc/conf"}, {"absent": "/etc/conf"}, {"package": "no-such-package-at-all"}, {"path": 7, "mode": "x"},
    ]  # fmt: skip
    (folder / "good.json").write_text(json.dumps({"role": "good", "digest": "d1", "verify": good}))
    (folder / "bad.json").write_text(json.dumps({"role": "bad", "digest": "d1", "verify": bad}))
    (folder / "cut.json").write_text('{"role": "cut", "dig')
    (folder / "begun.json").write_text('{"role": "begun", "digest": "", "paths_added": ["/x"], "verify": []}')
    (folder / "..json").write_text("{}")
    found = node.call("probe", roles={"good": "d1", "bad": "d1", "absent_role": "d"})["provisioned"]
    assert found["good"] == {"digest": "d1", "drift": [], "current": True}
    assert len(found["bad"]["drift"]) == len(bad)
    assert found["bad"]["current"] is False
    assert "package no-such-package-at-all is not installed" in found["bad"]["drift"]
    assert found["cut"] == {"digest": None, "drift": ["the manifest cannot be read"]}
    assert found["begun"] == {"digest": "", "drift": ["the role was interrupted before its end"]}
    assert set(found) == {"good", "bad", "cut", "begun"}
    assert node.call("probe", roles={"good": "d2"})["provisioned"]["good"]["current"] is False


# Vectors


@pytest.mark.parametrize(
    ("ips", "slots", "text"),
    [
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], [8, 4, 0], "10.0.0.1 slots=8\n10.0.0.2 slots=4\n10.0.0.3\n"),
        (["10.0.0.1", "10.0.0.2"], [4, 4], "10.0.0.1 slots=4\n10.0.0.2 slots=4\n"),
        (["10.0.0.1", ""], [8, 4], ""),
    ],
)
def test_hostfile_as_dstack_writes_it(ips: list[str], slots: list[int], text: str) -> None:
    """The vectors of dstack's TestWriteMpiHostfile."""
    assert hostfile(ips, slots) == text


def test_hostfile_length_mismatch() -> None:
    with pytest.raises(ValueError, match="gpus_per_node length 1 != job_ips length 2"):
        hostfile(["10.0.0.1", "10.0.0.2"], [8])


@pytest.mark.parametrize(
    ("status", "oom", "state", "reason", "code"),
    [
        (0, True, "done", "exited", 0), (7 << 8, False, "failed", "exited", 7), (9, False, "failed", "signalled", 137),
        (9, True, "failed", "oom", 137), (137 << 8, True, "failed", "oom", 137), (36, False, "failed", "signalled", 164),
    ],
)  # fmt: skip
def test_outcomes(status: int, oom: bool, state: str, reason: str, code: int) -> None:
    found = of_exit(status, oom=oom)
    assert (found["state"], found["reason"], found["exit_code"]) == (state, reason, code)


UNIT = "/system.slice/lambdactl-x.service"
V1 = "36 32 0:29 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n37 32 0:37 {root} /sys/fs/cgroup/systemd rw - cgroup systemd rw,name=systemd\n"
HYBRID = V1 + "38 32 0:38 {root} /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
V2 = "35 32 0:38 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "root", "expected"),
    [
        (f"0::{UNIT}\n", V2, "/", {"": f"/sys/fs/cgroup{UNIT}"}),
        (f"0::/docker/abc{UNIT}\n", V2, "/docker/abc", {"": f"/sys/fs/cgroup{UNIT}"}),
        (f"0::/../..{UNIT}\n", V2, "/../..", {"": f"/sys/fs/cgroup{UNIT}"}),
        (f"4:memory:{UNIT}\n9:name=systemd:{UNIT}\n", V1, "/", {"memory": f"/sys/fs/cgroup/memory{UNIT}", "name=systemd": f"/sys/fs/cgroup/systemd{UNIT}"}),
        (f"9:name=systemd:{UNIT}\n0::{UNIT}\n3:cpuset:/\n", HYBRID, "/", {"name=systemd": f"/sys/fs/cgroup/systemd{UNIT}", "": f"/sys/fs/cgroup/unified{UNIT}"}),
        ("0::/\n", V2, "/", {"": "/sys/fs/cgroup"}),
    ],
)  # fmt: skip
def test_control_groups_are_found_in_v1_v2_and_hybrid(
    cgroup: str, mountinfo: str, root: str, expected: dict[str, str]
) -> None:
    assert groups_of(cgroup, mountinfo.format(root=root)) == expected
