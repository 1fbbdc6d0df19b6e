"""The reference page's backend fleet file: apply, fleet list and get, delete, and the inventory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.resources import CONFIGMAPS
from lambdactl.cli.app import app
from lambdactl.errors import CapacityError, LambdactlError, SpecError
from lambdactl.state import State
from tests.fakes.kube import FakeCluster, FakeNode
from tests.unit.kube.bed import ROOT, limited

REFERENCE = ROOT / "examples" / "lambda-kubernetes-fleet.dstack.yml"


@pytest.fixture(autouse=True)
def configured(home: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake cluster is the one that is configured, for a user with the manifest's rights."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))


def command(*args: object) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


def fails(*args: object) -> LambdactlError:
    done = command(*args)
    assert isinstance(done.exception, LambdactlError), done.output
    return done.exception


def test_the_reference_pages_fleet(cluster: FakeCluster) -> None:
    done = command("apply", "-f", REFERENCE)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0][:5] == ["NODE", "ADDRESS", "CPU", "MEMORY", "GPUS"]
    assert [row[0] for row in rows[1:]] == ["node-1", "node-2"]
    assert "8 x B200 179GB" in done.stdout
    assert "lambda-fleet: 2 of 2 nodes" in done.stderr
    listed = json.loads(command("fleet", "list", "--json").stdout)
    assert [(fleet["name"], fleet["hosts"]) for fleet in listed] == [("lambda-fleet", ["node-1", "node-2"])]
    shown = json.loads(command("fleet", "get", "lambda-fleet", "--json").stdout)
    assert shown["backend"] == "kubernetes"
    assert [host["state"] for host in shown["hosts"]] == ["ready", "ready"]
    assert shown["hosts"][0]["facts"]["gpus"] == 8
    with State() as state:
        record = state.fleet("lambda-fleet")
        assert record is not None
        assert record.facts["node-1"]["gpu_product"] == "NVIDIA B200"


def test_why_the_others_do_not_fit(home: Path, tmp_path: Path) -> None:
    nodes = [
        FakeNode("a100", gpus=8, product="NVIDIA-A100-SXM4-80GB", gpu_memory=81920),
        FakeNode("cordoned", gpus=8),
        FakeNode("cpu"),
        FakeNode("fits-1", gpus=8),
        FakeNode("fits-2", gpus=8),
        FakeNode("tainted", gpus=8, taints=[{"key": "team", "value": "b", "effect": "NoSchedule"}]),
    ]
    with FakeCluster(nodes) as cluster:
        cluster.node("cordoned").cordon()
        limited(cluster, tmp_path)
        file = tmp_path / "f.dstack.yml"
        file.write_text("type: fleet\nname: ff\nnodes: 0..1\nbackends: [kubernetes]\nresources: {gpu: B200:1..8}\n")
        done = command("apply", "-f", file)
        lines = {line.split()[0]: line for line in done.stdout.splitlines()}
        assert "excluded" in lines["a100"]
        for name, reason in {
            "a100": "has A100, B200 wanted", "cordoned": "is cordoned", "cpu": "has no GPU",
            "fits-2": "is more than the fleet's 1 nodes", "tainted": "has the taint team=b:NoSchedule",
        }.items():  # fmt: skip
            assert reason in lines[name]
        assert "ready" in lines["fits-1"]


def test_nodes_that_the_file_wants_from_the_start(cluster: FakeCluster, tmp_path: Path) -> None:
    file = tmp_path / "f.dstack.yml"
    file.write_text("type: fleet\nname: ff\nnodes: 2\nbackends: [kubernetes]\n")
    assert command("apply", "-f", file).exit_code == 0
    cluster.node("node-2").cordon()
    error = fails("apply", "-f", file)
    assert isinstance(error, CapacityError)
    assert "wants 2 nodes from the start, but 1 of the cluster's 2 nodes fit; a cluster's nodes cannot be made" in str(
        error
    )
    cluster.node("node-1").cordon()
    assert "wants nodes that fit" in str(fails("apply", "-f", REFERENCE))


def test_another_backend_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.dstack.yml"
    file.write_text("type: fleet\nname: ff\nnodes: 0..\nbackends: [aws, gcp]\n")
    error = fails("apply", "-f", file)
    assert isinstance(error, SpecError)
    assert str(error).startswith(f"{file}:4: the backends aws, gcp are not among those")


def test_a_busy_node(cluster: FakeCluster) -> None:
    limits = {"limits": {"nvidia.com/gpu": "8"}, "requests": {"nvidia.com/gpu": "8"}}
    spec = {"nodeName": "node-1", "containers": [{"name": "m", "image": "x", "resources": limits}]}
    cluster.put(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "kube-system"}, "spec": spec}
    )
    shown = json.loads(command("fleet", "get", REFERENCE, "--json").stdout)
    assert [host["state"] for host in shown["hosts"]] == ["busy", "ready"]


def test_check_remembers_nothing(cluster: FakeCluster) -> None:
    assert command("apply", "-f", REFERENCE, "--check").exit_code == 0
    assert json.loads(command("fleet", "list", "--json").stdout) == []


def test_delete_removes_strays_and_refuses_while_a_run_is_active(cluster: FakeCluster) -> None:
    labels = {"app.kubernetes.io/managed-by": "lambdactl", "lambdactl.dev/run": "train"}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": labels}}
    cluster.put(config)
    cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "users-own"}})
    pod = {"restartPolicy": "Never", "containers": [{"name": "m", "image": "x"}]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "labels": labels},
           "spec": {"template": {"spec": pod}}}  # fmt: skip
    cluster.put(job)
    command("apply", "-f", REFERENCE)
    assert "runs or services are active: train; stop them first" in str(fails("delete", "-f", REFERENCE, "-y"))
    cluster.pod("j").run().exit(0)
    cluster.wait(lambda: (cluster.store.find("jobs", "default", "j") or {"status": {}})["status"].get("completionTime"))
    done = command("delete", "-f", REFERENCE, "-y")
    assert done.exit_code == 0, done.output
    assert "configmaps/c is left over" in done.stderr
    cluster.wait(lambda: not cluster.store.all("pods"))
    assert cluster.left() == ["configmaps/users-own"]
    assert cluster.get(CONFIGMAPS, "c") is None
    assert json.loads(command("fleet", "list", "--json").stdout) == []


def test_ssh_commands_say_that_it_is_a_kubernetes_fleet(cluster: FakeCluster) -> None:
    command("apply", "-f", REFERENCE)
    assert "Kubernetes" in str(fails("doctor", "-f", REFERENCE))
