"""`lambdactl backend check` under the shipped manifest's rights: what works, and each failure with its remedy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lambdactl.backends.kubernetes.check import Checked, check
from lambdactl.backends.kubernetes.config import JumpAddress, Target
from lambdactl.backends.kubernetes.rights import RIGHTS
from lambdactl.cli.app import app
from tests.fakes.kube import FakeCluster, FakeNode, load_rules
from tests.fakes.kube.rbac import Rule
from tests.unit.kube.bed import RBAC, limited


def run(target: Target) -> Checked:
    return asyncio.run(asyncio.wait_for(check(target), 60))


def found(checked: Checked) -> dict[str, str]:
    return {finding.check: finding.status for finding in checked.findings}


def test_all_is_well(cluster: FakeCluster, target: Target) -> None:
    checked = run(target)
    assert found(checked) == dict.fromkeys(
        ("reachability", "namespace", "permissions", "nodes", "GPUs", "RDMA", "jump pod", "shared memory", "IPC_LOCK",
         "privileged", "queues"), "pass",
    )  # fmt: skip
    values = {finding.check: finding.value for finding in checked.findings}
    assert values["GPUs"] == "16 x NVIDIA B200 on 2 nodes, 16 free"
    assert values["RDMA"] == "rdma/rdma_shared_device_a on 2 nodes"
    assert checked.exit_code == 0


def test_nothing_is_made(cluster: FakeCluster, target: Target) -> None:
    before = cluster.left()
    run(target)
    assert cluster.left() == before
    assert {seen.verb for seen in cluster.requests if seen.resource != "selfsubjectaccessreviews"} <= {
        "get", "list", "create",
    }  # fmt: skip


@pytest.mark.parametrize("right", [r for r in RIGHTS if not r.optional], ids=lambda right: right.plural)
def test_each_missing_right_is_told(cluster: FakeCluster, tmp_path: Path, right: Any) -> None:
    def without(rule: Rule) -> bool:
        return not (rule.resources == (right.plural,) and (rule.namespace is None) == right.everywhere)

    rules = [rule for rule in load_rules(RBAC) if without(rule)]
    checked = run(cluster.target(tmp_path, token=cluster.user("eve", rules)))
    (told,) = [f for f in checked.findings if f.check == "permissions" and f.status == "fail"]
    assert right.verbs[0] in told.value
    assert right.plural in told.value
    assert right.why in told.value
    assert told.remedy == "have an administrator apply docs/kubernetes/rbac.yaml."
    assert checked.exit_code == 4


def namespace(level: str) -> Callable[[FakeCluster, Path, Target], Target]:
    def change(cluster: FakeCluster, folder: Path, target: Target) -> Target:
        labels = {"pod-security.kubernetes.io/enforce": level}
        cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": level, "labels": labels}})
        return limited(cluster, folder, level)

    return change


def no_nodes(cluster: FakeCluster, folder: Path, target: Target) -> Target:
    for name in ("node-1", "node-2"):
        cluster.node(name).cordon()
    return target


def quota(cluster: FakeCluster, folder: Path, target: Target) -> Target:
    spec = {"hard": {"pods": "0"}}
    cluster.put({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": spec})
    return target


def old(cluster: FakeCluster, folder: Path, target: Target) -> Target:
    cluster.server.version = "v1.29.4+k3s1"
    return target


def hidden(cluster: FakeCluster, folder: Path, target: Target) -> Target:
    def change(node: Any) -> None:
        node["status"]["allocatable"]["nvidia.com/gpu"] = "0"

    from lambdactl.backends.kubernetes.resources import NODES

    for name in ("node-1", "node-2"):
        cluster.change(NODES, name, change)
    return target


def unlabelled(cluster: FakeCluster, folder: Path, target: Target) -> Target:
    from lambdactl.backends.kubernetes.resources import NODES

    for name in ("node-1", "node-2"):
        cluster.change(NODES, name, lambda node: node["metadata"].update(labels={}))
    return target


CASES = [
    ("namespace", "fail", 2, "'nowhere' does not exist", "kubectl create namespace nowhere",
     lambda c, f, t: limited(c, f, "nowhere")),
    ("namespace", "warn", 0, "'baseline': it refuses `privileged`", "pod-security.kubernetes.io/enforce",
     namespace("baseline")),
    ("namespace", "fail", 4, "'restricted'", "pod-security", namespace("restricted")),
    ("privileged", "warn", 0, "allows only 'baseline' pods", "remove that from the task file", namespace("baseline")),
    ("IPC_LOCK", "warn", 0, "non-default capabilities", "remove that", namespace("baseline")),
    ("shared memory", "fail", 3, "the quota 'none'", "have the quota raised", quota),
    ("nodes", "fail", 3, "0 of 2 take pods (node-1 is cordoned", "uncordon", no_nodes),
    ("reachability", "fail", 3, "v1.29.4+k3s1", "upgraded", old),
    ("reachability", "fail", 4, "does not accept the login", "log in again", lambda c, f, t: c.target(f, token="old")),
    ("GPUs", "fail", 3, "node-1, node-2 have GPUs that Kubernetes does not count", "device plugin", hidden),
    ("GPUs", "warn", 0, "no label nvidia.com/gpu.product", "GPU feature discovery", unlabelled),
    ("RDMA", "fail", 2, "no node has the configured resource rdma/ib", "rdma/rdma_shared_device_a",
     lambda c, f, t: replace(t, rdma_resource="rdma/ib")),
    ("queues", "fail", 2, "names the queue 'q'", "install Kueue", lambda c, f, t: replace(t, queue="q")),
    ("jump pod", "pass", 0, "at 203.0.113.7, port 30022", "",
     lambda c, f, t: replace(t, proxy_jump=JumpAddress(port=30022))),
    ("jump pod", "warn", 0, "port 22 is outside", "30000 to 32767",
     lambda c, f, t: replace(t, proxy_jump=JumpAddress(port=22))),
    ("configuration", "warn", 0, "namespace is 'a'", "set it",
     lambda c, f, t: replace(t, notes=("namespace is 'a'; set it.",))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "status", "exit_code", "value", "remedy", "change"),
    CASES,
    ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)],
)
def test_each_trouble_has_its_remedy(
    cluster: FakeCluster, target: Target, tmp_path: Path,
    name: str, status: str, exit_code: int, value: str, remedy: str, change: Any,
) -> None:  # fmt: skip
    checked = run(change(cluster, tmp_path, target))
    (told,) = [finding for finding in checked.findings if finding.check == name]
    assert told.status == status
    assert value in told.value
    assert remedy in told.remedy
    assert checked.exit_code == exit_code


def test_few_things_in_a_small_cluster(tmp_path: Path) -> None:
    with FakeCluster([FakeNode("cpu-1")]) as cluster:
        cluster.server.groups |= {"kueue.x-k8s.io", "jobset.x-k8s.io"}
        checked = run(limited(cluster, tmp_path))
    assert [(f.check, f.value) for f in checked.findings if f.status == "warn"] == [("GPUs", "no node has any")]
    assert "Kueue and JobSet found" in [f.value for f in checked.findings]


def test_the_command(cluster: FakeCluster, target: Target, home: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "kubeconfig")
    done = CliRunner().invoke(app, ["backend", "check", "--kubeconfig", file])
    assert done.exit_code == 0, done.output
    assert "PASS    permissions" in done.output.replace("PASS     ", "PASS    ")
    assert "fake: all is well" in done.output
    document = json.loads(CliRunner().invoke(app, ["backend", "check", "--kubeconfig", file, "--json"]).stdout)
    (shown,) = document["clusters"]
    assert (shown["status"], shown["namespace"], shown["context"]) == ("pass", "default", "fake")
    cluster.node("node-1").cordon()
    cluster.node("node-2").cordon()
    done = CliRunner().invoke(app, ["backend", "check", "--kubeconfig", file])
    assert done.exit_code == 3
    assert "remedy: nodes: " in done.output
