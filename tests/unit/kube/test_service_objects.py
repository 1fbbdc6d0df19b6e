"""The objects of a service: golden files (UPDATE_GOLDEN=1 writes them), the published schema, and what is refused."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from typing import Any

import pytest
import yaml

from lambdactl import spec
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.fleet import KubeFleet
from lambdactl.backends.kubernetes.resources import NODES, PODS
from lambdactl.backends.kubernetes.service_objects import deployment, front, owned
from lambdactl.backends.kubernetes.service_plan import KubeServicePlan, make_plan
from lambdactl.backends.kubernetes.service_probes import container_probes
from lambdactl.backends.kubernetes.service_view import replica_message
from lambdactl.errors import CapacityError, SpecError
from lambdactl.run.plan import Overrides
from lambdactl.run.service import ServiceOverrides
from tests.fakes.kube import FakeCluster
from tests.live.desk import FLEET
from tests.unit.kube.pod_bed import RUN_ID
from tests.unit.kube.test_objects import GOLDEN, VERSIONS

WEB = """
name: web
image: registry.example.com/team/web:1
port: 8000
replicas: 2
env: [TOKEN=hunter2]
commands: [python -m app]
probes: [{type: http, url: /health, interval: 5s, timeout: 2s, ready_after: 2, headers: [{name: X-A, value: b}]}]
registry_auth: {username: ada, password: hunter2}
volumes: ["/mnt/data:/data"]
tags: {team: ml}
resources: {cpu: 1.., shm_size: 2GB}
"""
MODEL = """
name: llm
image: vllm/vllm-openai:v0.11
port: 8000
model: meta/llama
resources: {gpu: "B200:1"}
"""


def plan(cluster: FakeCluster, target: Target, text: str, *, old: Any = None, pods: Any = None) -> KubeServicePlan:
    service = spec.loads(f"type: service\n{text}", kind="service")
    fleet = KubeFleet.from_spec(spec.loads(FLEET, kind="fleet"), path=None)
    return make_plan(
        service, fleet, target, ServiceOverrides(Overrides()), old=old,
        node_items=cluster.objects(NODES), pods=cluster.objects(PODS) if pods is None else pods,
    )  # fmt: skip


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch, target: Target, tmp_path: Any) -> Target:
    monkeypatch.setenv("LAMBDACTL_KUBECONFIG", str(tmp_path / "kubeconfig"))
    return target


def objects(found: KubeServicePlan) -> list[dict[str, Any]]:
    run = replace(found.service.run, run_id=RUN_ID, owner="ada@laptop", submitted_at=1_700_000_000.0)
    service = replace(found.service, run=run)
    owner = {"name": service.name, "uid": "00000000-0000-0000-0000-000000000001"}
    made_from = "0123456789"
    return [deployment(service, made_from), *owned(service, made_from, owner), front(service, owner)]


@pytest.mark.parametrize("text", [WEB, MODEL], ids=["service-web", "service-model"])
def test_golden_and_schema(cluster: FakeCluster, anywhere: Target, text: str, request: pytest.FixtureRequest) -> None:
    import kubernetes_validate

    made = objects(plan(cluster, anywhere, text))
    for version in VERSIONS:
        for item in made:
            kubernetes_validate.validate(item, version, strict=True)
    for item in made:
        for file in ("entrypoint", "login"):
            if item["kind"] == "ConfigMap":
                item["data"][file] = f"(container/{file}.sh)\n"
        if item["kind"] == "ConfigMap":
            item["data"] = {key: text for key, text in item["data"].items() if not key.startswith("prober")}
        if item["kind"] != "Secret":
            assert "hunter2" not in yaml.safe_dump(item)
    path = GOLDEN / f"{request.node.callspec.id}.yaml"
    written = yaml.safe_dump_all(made, sort_keys=True, width=120)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(written)
    assert list(yaml.safe_load_all(path.read_text())) == list(yaml.safe_load_all(written))


def test_the_revision_is_the_files_and_nothing_of_the_day(cluster: FakeCluster, anywhere: Target) -> None:
    first, same = plan(cluster, anywhere, WEB), plan(cluster, anywhere, WEB.replace("replicas: 2", "replicas: 3"))
    old = deployment(first.service, first.revision)
    again = plan(cluster, anywhere, WEB, old=old)
    assert again.revision == first.revision
    assert plan(cluster, anywhere, WEB.replace("replicas: 2", "replicas: 3"), old=old).revision == first.revision
    assert plan(cluster, anywhere, WEB.replace("hunter2", "other", 1), old=old).revision != first.revision
    assert again.service.run.run_id == first.service.run.run_id != same.service.run.run_id


def test_capacity(cluster: FakeCluster, anywhere: Target) -> None:
    gpus = MODEL.replace('"B200:1"', '"B200:8"')
    assert plan(cluster, anywhere, gpus).service.surge
    full = [
        {
            "metadata": {"name": f"p{n}", "namespace": "default", "labels": {"lambdactl.dev/service": "llm"}},
            "spec": {
                "nodeName": node["metadata"]["name"],
                "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "8"}}}],
            },
        }
        for n, node in enumerate(cluster.objects(NODES))
    ]
    # Its own old replicas make room for the new ones, one by one.
    assert not plan(cluster, anywhere, gpus, pods=full).service.surge
    for pod in full:
        pod["metadata"]["labels"] = {}
    with pytest.raises(
        CapacityError, match=r"asks for 1 replica, and the cluster .* has room for 0: .*0 of 8 GPUs free"
    ):
        plan(cluster, anywhere, gpus, pods=full)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("https: true", "needs a public name"),
    ],
)
def test_what_is_refused_is_named_with_its_line(cluster: FakeCluster, anywhere: Target, more: str, said: str) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        plan(cluster, anywhere, f"name: aa\nimage: b\nport: 80\ncommands: [c]\n{more}\n")
    assert caught.value.line == 6


def test_probes() -> None:
    def made(text: str) -> dict[str, Any]:
        service = spec.loads(f"type: service\nname: aa\nimage: b\nport: 80\n{text}", kind="service")
        return container_probes(service, ready_timeout=60)

    plain = made("")
    assert plain["readinessProbe"]["tcpSocket"] == {"port": 80}
    assert (plain["readinessProbe"]["failureThreshold"], plain["livenessProbe"]["failureThreshold"]) == (1, 3)
    assert plain["startupProbe"] | {"tcpSocket": 0} == {
        "tcpSocket": 0, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 60,
    }  # fmt: skip
    assert set(made("probes: [{type: http, until_ready: true}]")) == {"startupProbe"}


LOGIN = "probes: [{type: http, url: /a, headers: [{name: Authorization, value: Bearer hunter2}]}]"


@pytest.mark.parametrize(
    "text",
    [
        "probes: [{type: http, method: post}]",
        "probes: [{type: http, body: b, method: post}]",
        "probes: [{type: http}, {type: http, url: /b}]",
        LOGIN,
        "probes: [{type: http, until_ready: true, ready_after: 2}]",
        "model: m",
    ],
)
def test_what_a_kubelet_cannot_ask_is_asked_beside_the_replica(
    cluster: FakeCluster, anywhere: Target, text: str
) -> None:
    import kubernetes_validate

    made = objects(plan(cluster, anywhere, f"name: aa\nimage: own:1\nport: 80\ncommands: [c]\n{text}\n"))
    for item in made:
        kubernetes_validate.validate(item, VERSIONS[0], strict=True)
        assert item["kind"] == "Secret" or "hunter2" not in yaml.safe_dump(item)
    pod = made[0]["spec"]["template"]["spec"]
    (beside,) = pod["initContainers"]
    assert (beside["name"], beside["image"], beside["restartPolicy"]) == ("probes", "own:1", "Always")
    (main,) = pod["containers"]
    assert main["startupProbe"]["httpGet"] == {"path": "/startup", "port": 18779}
    assert main["livenessProbe"]["httpGet"] == {"path": "/live", "port": 18779}
    assert "readinessProbe" not in main
    # Nothing but the sidecar sees what is asked.
    assert {m["name"] for m in main["volumeMounts"]} & {m["name"] for m in beside["volumeMounts"]} == set()


def test_one_plain_get_and_a_mere_connection_are_the_kubelets(cluster: FakeCluster, anywhere: Target) -> None:
    for text in ("probes: [{type: http, url: /a, headers: [{name: X-A, value: b}]}]", "probes: []", ""):
        found = plan(cluster, anywhere, f"name: aa\nimage: own:1\nport: 80\ncommands: [c]\n{text}\n")
        assert found.service.prober is None
        assert "initContainers" not in objects(found)[0]["spec"]["template"]["spec"]


def test_where_the_probes_are_asked(cluster: FakeCluster, anywhere: Target) -> None:
    model = "name: aa\nimage: own:1\nport: 80\ncommands: [c]\nmodel: m\n"
    both = replace(anywhere, image="all:1", probe_image="probes:1")
    assert plan(cluster, replace(anywhere, image="all:1"), model).service.prober == "all:1"
    assert plan(cluster, both, model).service.prober == "probes:1"


def test_kueue_admits_the_replicas(cluster: FakeCluster, anywhere: Target) -> None:
    plain, queued = (plan(cluster, replace(anywhere, queue=queue), WEB) for queue in (None, "team-a"))
    made = objects(queued)[0]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    # Kueue's webhook marks the pods itself; a queue is no reason to replace replicas.
    assert made["spec"] == objects(plain)[0]["spec"]
    assert "kueue.x-k8s.io/queue-name" not in objects(plain)[0]["metadata"]["labels"]
    # As Kueue and the scheduler leave a pod that has to wait.
    pod = {
        "metadata": {"name": "web-1", "labels": {"kueue.x-k8s.io/queue-name": "team-a"}},
        "spec": {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]},
        "status": {"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]},
    }  # fmt: skip
    assert replica_message(pod) == "waits for Kueue's queue team-a"


def test_the_login_is_for_the_registry_of_the_image_and_no_other(cluster: FakeCluster, anywhere: Target) -> None:
    text = WEB.replace("type: http,", "type: http, method: post,")
    found = objects(plan(cluster, replace(anywhere, probe_image="elsewhere.example.org/probes:1"), text))
    pod = found[0]["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["image"] == "elsewhere.example.org/probes:1"
    (name,) = [one["name"] for one in pod["imagePullSecrets"]]
    (login,) = [item for item in found if item["metadata"]["name"] == name]
    auths = json.loads(base64.b64decode(login["data"][".dockerconfigjson"]))["auths"]
    assert list(auths) == ["registry.example.com"]


def test_docker_and_idle_gpus_are_as_for_tasks(
    cluster: FakeCluster, anywhere: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "name: aa\nport: 80\ncommands: [c]\ndocker: true\n"
    text += "utilization_policy: {min_gpu_utilization: 10, time_window: 5m}\n"
    with pytest.raises(SpecError, match="LAMBDACTL_DOCKER_IMAGE"):
        plan(cluster, anywhere, text)
    monkeypatch.setenv("LAMBDACTL_DOCKER_IMAGE", "dind:1")
    made = objects(plan(cluster, anywhere, text))
    main = made[0]["spec"]["template"]["spec"]["containers"][0]
    assert (main["image"], main["securityContext"]["privileged"]) == ("dind:1", True)
    assert "lambdactl_util_min=10\nlambdactl_util_window=300\n" in made[1]["data"]["settings"]


def bound(found: KubeServicePlan) -> Any:
    affinity = objects(found)[0]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return {one["key"]: one["values"] for one in term["matchExpressions"]}


@pytest.mark.parametrize("entry", ["node-2", "{hostname: node-2}", '"1"', "live-1", "{fleet: live, instance: 1}"])
def test_instances_bind_the_replicas_to_nodes(cluster: FakeCluster, anywhere: Target, entry: str) -> None:
    found = plan(cluster, anywhere, f"{MODEL}instances: [{entry}]\n")
    assert [node.name for node in found.places] == ["node-2"]
    assert found.excluded == {"node-1": "is not among 'instances'"}
    assert bound(found)["kubernetes.io/hostname"] == ["node-2"]


def test_instances_that_are_not_there(cluster: FakeCluster, anywhere: Target) -> None:
    with pytest.raises(SpecError, match=r"names node-9, which is no node of the cluster \(nodes: node-1, node-2\)"):
        plan(cluster, anywhere, f"{MODEL}instances: [node-9]\n")
    # What is about another fleet binds to nothing here.
    with pytest.raises(CapacityError, match="is not among 'instances'"):
        plan(cluster, anywhere, f"{MODEL}instances: [{{fleet: other, instance: 1}}]\n")
