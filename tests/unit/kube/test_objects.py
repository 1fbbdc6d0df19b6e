"""The objects of a run: golden files (UPDATE_GOLDEN=1 writes them), and the published schema of Kubernetes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl.backends.kubernetes.model import KeyPair, KubeRun, label_value
from lambdactl.backends.kubernetes.objects import job, owned
from lambdactl.backends.kubernetes.payload import registry_of, settings
from lambdactl.errors import SpecError
from tests.unit.kube.pod_bed import kube_run

GOLDEN = Path(__file__).parents[2] / "data" / "kubernetes"
VERSIONS = ("1.31", "1.36")
KEYS = {"login": KeyPair("PRIVATE login\n", "ssh-ed25519 LOGIN"), "host": KeyPair("PRIVATE host\n", "ssh-ed25519 HOST")}

NCCL = """
name: nccl-tests
nodes: 2
startup_order: workers-first
stop_criteria: master-done
commands:
  - if [ $DSTACK_NODE_RANK -eq 0 ]; then mpirun --hostfile $DSTACK_MPI_HOSTFILE all_reduce_perf; else sleep infinity; fi
resources:
  gpu: nvidia:B200:8
  shm_size: 16GB
"""
SINGLE = """
name: single
image: registry.example.com:5000/team/tool:1.2
registry_auth: {username: ada, password: pass}
user: "1000:100"
working_dir: /srv/job
privileged: true
commands: ["echo '{{ 7*7 }}' $(HOME)"]
volumes: ["/mnt/data:/data", "claim:/scratch"]
tags: {team: ml, "_not": "a label"}
resources: {cpu: 4..8, memory: 16GB..32GB, disk: 50GB..}
"""
LENIENT = """
name: lenient
nodes: 4
on_node_failure: ignore
stop_signal: TERM
stop_grace: 1m
commands: [python train.py]
resources: {gpu: 1..8}
"""
GPUS = {"gpu_resource": "nvidia.com/gpu", "keys": False, **KEYS}
CASES: dict[str, KubeRun] = {
    "nccl": kube_run(NCCL, **GPUS, gpus=8, gpu_products=("NVIDIA-B200",), max_duration=7200),
    "single": kube_run(SINGLE, keys=False, env={"TOKEN": "secret"}),
    "dev": kube_run(
        "name: devbox\ncommands: [init]", keys=False, **KEYS, dev={"ide": "vscode", "inactivity": 7200, "digest": "d"}
    ),
    "lenient": kube_run(LENIENT, **GPUS, gpus=1, rdma="rdma/rdma_shared_device_a", queue="gpus", keep=True),
}


def objects(run: KubeRun) -> list[dict[str, Any]]:
    return [job(run), *owned(run, {"name": run.run_name, "uid": "00000000-0000-0000-0000-000000000001"})]


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    made = objects(CASES[name])
    for item in made:
        for file in ("entrypoint", "login"):
            if item["kind"] == "ConfigMap":
                item["data"][file] = f"(container/{file}.sh)\n"
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump_all(made, sort_keys=True, width=120)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert list(yaml.safe_load_all(path.read_text())) == list(yaml.safe_load_all(text))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_schema(name: str, version: str) -> None:
    import kubernetes_validate

    for item in objects(CASES[name]):
        kubernetes_validate.validate(item, version, strict=True)


def test_everything_is_labelled_and_goes_with_the_job() -> None:
    run = CASES["nccl"]
    first, *others = objects(run)
    for item in (first, *others, {"metadata": first["spec"]["template"]["metadata"]}):
        assert item["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "lambdactl"
        assert item["metadata"]["labels"]["lambdactl.dev/run-id"] == run.run_id
    for item in others:
        assert [owner["uid"] for owner in item["metadata"]["ownerReferences"]] == [
            "00000000-0000-0000-0000-000000000001"
        ]


def test_nothing_secret_is_outside_of_secrets() -> None:
    run = kube_run(
        "commands: [ls]\nimage: a/b\nregistry_auth: {username: u, password: hunter2}", env={"TOKEN": "hunter2"}
    )
    for item in objects(run):
        assert "hunter2" not in yaml.safe_dump(item), item["kind"]
    assert "hunter2" not in repr(run)


def test_defaults_of_dstack_ask_for_nothing() -> None:
    container = job(kube_run("commands: [ls]"))["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {}
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]


def test_the_start_gate_needs_a_probe_only_where_there_is_a_gate() -> None:
    for text, gated in (("", False), ("startup_order: workers-first", True), ("startup_order: master-first", True)):
        container = job(kube_run(f"nodes: 2\ncommands: [ls]\n{text}"))["spec"]["template"]["spec"]["containers"][0]
        assert ("startupProbe" in container) is gated


@pytest.mark.parametrize(
    ("text", "ssh"),
    [
        ("nodes: 2\ncommands: [mpirun x]", "need"),
        ("nodes: 2\ncommands: [torchrun x]", "use"),
        ("commands: [mpirun x]", ""),
    ],
)
def test_who_needs_ssh(text: str, ssh: str) -> None:
    assert kube_run(text).ssh == ssh


def test_the_shell_is_dstacks() -> None:
    assert "lambdactl_shell=''" in settings(kube_run("commands: [ls]"))
    assert "lambdactl_shell=/bin/sh" in settings(kube_run("image: a\ncommands: [ls]"))
    assert "lambdactl_shell=bash" in settings(kube_run("image: a\nshell: bash\ncommands: [ls]"))


def test_ports_of_runs_differ_and_collide_with_nobodys() -> None:
    ports = {
        kube_run("commands: [ls]", run_id=f"6ba7b810-9dad-11d1-80b4-{number:012x}").ssh_port for number in range(50)
    }
    assert len(ports) > 45
    assert all(10240 <= port < 30000 for port in ports)


def test_too_large_commands_are_refused_with_a_sentence() -> None:
    with pytest.raises(SpecError, match="at most 1 MiB in one object"):
        objects(kube_run(f"commands: ['{'x' * (1 << 20)}']"))


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("debian", "https://index.docker.io/v1/"),
        ("team/tool:1", "https://index.docker.io/v1/"),
        ("ghcr.io/a/b", "ghcr.io"),
        ("localhost/a", "localhost"),
        ("r.example:5000/a", "r.example:5000"),
    ],
)
def test_registries(image: str, registry: str) -> None:
    assert registry_of(image) == registry


def test_label_values() -> None:
    assert label_value("ada@laptop.local") == "ada_laptop.local"
    assert label_value("@" * 80) == ""
