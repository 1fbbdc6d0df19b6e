"""Every failure of the API as one sentence with a remedy, and its exit code: by table, and by a server that refuses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes.client import Client, open_client
from lambdactl.backends.kubernetes.config import Target, targets
from lambdactl.backends.kubernetes.errors import (
    APIError,
    Asked,
    Forbidden,
    QuotaExceeded,
    Unauthorized,
    explain,
    explain_event,
)
from lambdactl.backends.kubernetes.resources import CONFIGMAPS, JOBS, NODES, PODS, SERVICES
from lambdactl.errors import LambdactlError
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.tls import Authority
from tests.unit.kube.bed import limited

ASKED = Asked("mk8s", "https://k8s:6443", "team", "create", "pods", "train-0")

# (status, the API's message, exit code, what the sentence must hold)
ANSWERS = [
    (401, "Unauthorized", 4, ["'mk8s'", "expired", "log in again"]),
    (403, 'pods is forbidden: User "eve" cannot create resource "pods" in API group "" in the namespace "team"', 4,
     ["'eve' may not create pods", "in the namespace 'team'", "docs/kubernetes/rbac.yaml"]),
    (403, 'nodes is forbidden: User "eve" cannot list resource "nodes" in API group "" at the cluster scope', 4,
     ["may not list nodes in the whole cluster", "docs/kubernetes/rbac.yaml"]),
    (403, 'jobs.batch is forbidden: User "eve" cannot create resource "jobs" in API group "batch" in the namespace '
     '"team"', 4, ["may not create jobs.batch"]),
    (403, 'pods "a" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: '
     "requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8", 3,
     ["the quota 'gpus'", "=8 used", "lambdactl ps"]),
    (403, 'pods "a" is forbidden: failed quota: small: must specify cpu,memory for: main', 3,
     ["cpu, memory", "resources"]),
    (403, 'pods "a" is forbidden: maximum cpu usage per Container is 2, but limit is 64', 3,
     ["LimitRange", "maximum cpu"]),
    (403, 'pods "a" is forbidden: violates PodSecurity "baseline:latest": privileged (container "main" must not set '
     "securityContext.privileged=true)", 4,
     ["only 'baseline' pods", "privileged", "pod-security.kubernetes.io/enforce"]),
    (403, "pods \"a\" is forbidden: unable to create new content in namespace team because it is being terminated", 4,
     ["is being deleted"]),
    (403, 'admission webhook "policy.example" denied the request: no latest tags', 4,
     ["policy.example", "no latest tags"]),
    (403, "something else", 4, ["does not allow to create pods", "something else"]),
    (404, 'namespaces "team" not found', 2, ["namespace 'team' does not exist", "kubectl create namespace team"]),
    (404, 'pods "train-0" not found', 1, ["pods 'train-0' does not exist"]),
    (404, "the server could not find the requested resource", 1, ["has no pods", "check the kubeconfig's server"]),
    (409, 'pods "train-0" already exists', 3, ["exists already", "another name"]),
    (409, "the object has been modified", 1, ["changed by somebody else", "try again"]),
    (410, "too old resource version: 1 (2)", 1, ["too old", "list again"]),
    (422, 'Pod "a" is invalid: spec.containers: Required value', 2, ["does not take", "Required value"]),
    (400, 'container "main" in pod "a" is waiting to start: ContainerCreating', 1, ["no log yet"]),
    (429, "too many requests", 4, ["overloaded", "try again"]),
    (500, "etcdserver: request timed out", 4, ["trouble of its own", "etcdserver"]),
    (503, "", 4, ["trouble of its own"]),
    (418, "short and stout", 1, ["answered 418"]),
]  # fmt: skip


@pytest.mark.parametrize(("status", "said", "exit_code", "wanted"), ANSWERS)
def test_answers(status: int, said: str, exit_code: int, wanted: list[str]) -> None:
    error = explain(status, {"message": said, "reason": "R", "details": {"kind": "pods"}}, ASKED)
    for text in wanted:
        assert text in str(error)
    assert error.exit_code == exit_code
    assert (error.status, error.said, error.reason) == (status, said, "R")
    is_one_sentence(error)


def is_one_sentence(error: LambdactlError) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith((".", "(its 'certificate-authority-data').")), text
    assert re.search(r"[a-z]\. [A-Z]", text) is None, text


def test_events_of_controllers() -> None:
    text = (
        'Error creating: pods "t-0-x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5'
    )
    error = explain_event(text, "team")
    assert isinstance(error, QuotaExceeded)
    assert "'q' in the namespace 'team'" in str(error)
    policy = explain_event(
        'Error creating: pods "x" is forbidden: violates PodSecurity "baseline:latest": hostPath volumes'
    )
    assert isinstance(policy, Forbidden)
    assert explain_event("Created pod: t-0-x") is None


# What goes wrong before there is an answer.


def ask(target: Target, resource: Any = PODS, *, patience: float = 0) -> None:
    async def inside() -> None:
        async with open_client(target, patience=patience) as client:
            await client.list(resource)

    asyncio.run(inside())


def failure(target: Target, resource: Any = PODS) -> LambdactlError:
    with pytest.raises(LambdactlError) as caught:
        ask(target, resource)
    is_one_sentence(caught.value)
    return caught.value


def at(folder: Path, server: str, **cluster: Any) -> Target:
    import yaml

    file = folder / "other"
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(document))
    return targets(str(file), environ={})[0]


@pytest.fixture(scope="module")
def secure() -> Iterator[FakeCluster]:
    with FakeCluster([FakeNode("n")], tls=True) as found:
        yield found


def test_expired_token(cluster: FakeCluster, tmp_path: Path) -> None:
    error = failure(cluster.target(tmp_path, token="old"))
    assert (error.exit_code, "expired" in str(error)) == (4, True)


def test_missing_right(cluster: FakeCluster, tmp_path: Path) -> None:
    error = failure(cluster.target(tmp_path, token=cluster.user("eve", [])))
    assert "'eve' may not list pods in the namespace 'default'" in str(error)


def test_nobody_listens(tmp_path: Path) -> None:
    error = failure(at(tmp_path, "http://127.0.0.1:9"))
    assert (error.exit_code, "refuses connections" in str(error)) == (4, True)


def test_unknown_name(tmp_path: Path) -> None:
    assert "is not known" in str(failure(at(tmp_path, "https://nowhere.invalid:6443")))


def test_unknown_authority(secure: FakeCluster, tmp_path: Path) -> None:
    error = failure(at(tmp_path, secure.url, **{"certificate-authority-data": Authority().ca_data()}))
    assert "signed by an authority that the kubeconfig does not name" in str(error)


def test_certificate_for_another_name(secure: FakeCluster, tmp_path: Path) -> None:
    assert secure.authority is not None
    server = secure.url.replace("127.0.0.1", "localhost.localdomain")
    error = failure(at(tmp_path, server, **{"certificate-authority-data": secure.authority.ca_data()}))
    assert "is for another name" in str(error) or "is not known" in str(error)
    named = {"tls-server-name": "wrong.example", "certificate-authority-data": secure.authority.ca_data()}
    assert "is for another name" in str(failure(at(tmp_path, secure.url, **named)))


def test_http_where_https_is_meant(cluster: FakeCluster, tmp_path: Path) -> None:
    assert "does not speak TLS" in str(failure(at(tmp_path, cluster.url.replace("http", "https"))))


def test_not_a_kubernetes_api(cluster: FakeCluster, tmp_path: Path) -> None:
    target = cluster.target(tmp_path)
    cluster.fail_next("list", "pods", 404, message="404 page not found")
    assert "is not the API of a Kubernetes cluster" in str(failure(target))


def test_client_certificate_is_a_login(secure: FakeCluster, tmp_path: Path) -> None:
    import base64

    assert secure.authority is not None
    certificate, key = (base64.b64encode(part).decode() for part in secure.authority.issue("admin"))
    user = {"client-certificate-data": certificate, "client-key-data": key}
    ask(secure.target(tmp_path, **user))


def test_exec_plugin_is_a_login_and_is_asked_again(cluster: FakeCluster, tmp_path: Path) -> None:
    """A token that has expired is renewed once, in the middle of a command."""
    counter = tmp_path / "count"
    plugin = tmp_path / "plugin"
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "tN"}}
    plugin.write_text(
        f"#!/bin/sh\necho x >> {counter}\necho '{json.dumps(answer)}' | sed s/tN/t$(wc -l < {counter})/\n"
    )
    plugin.chmod(0o755)
    cluster.user("a", token="t1")
    entry = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    target = cluster.target(tmp_path, exec=entry)

    async def inside() -> None:
        async with open_client(target) as client:
            await client.list(PODS)
            del cluster.server.users["t1"]
            cluster.user("a", token="t2")
            await asyncio.gather(*(client.list(PODS) for _ in range(20)))

    asyncio.run(inside())
    assert counter.read_text().count("x") == 2


def test_a_kubeconfig_that_is_downloaded_again_is_a_new_login(cluster: FakeCluster, tmp_path: Path) -> None:
    target = cluster.target(tmp_path, token=cluster.user("a", token="old"))

    async def inside() -> None:
        async with open_client(target) as client:
            await client.list(PODS)
            del cluster.server.users["old"]
            with pytest.raises(Unauthorized):
                await client.list(PODS)
            cluster.kubeconfig(tmp_path, token=cluster.user("a", token="new"))
            await client.list(PODS)

    asyncio.run(inside())


@pytest.mark.parametrize(
    ("command", "said"), [("/nowhere/kubelogin", "is not installed"), ("/bin/false", "failed"), ("/bin/true", "failed")]
)
def test_exec_plugin_fails(cluster: FakeCluster, tmp_path: Path, command: str, said: str) -> None:
    entry = {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "installHint": "get kubelogin"}
    error = failure(cluster.target(tmp_path, exec=entry))
    assert said in str(error)
    assert error.exit_code == 4


# The server's own refusals, as they come through the client.


def refused(target: Target, body: dict[str, Any], resource: Any = PODS, **options: Any) -> APIError:
    async def inside() -> APIError:
        async with open_client(target) as client:
            with pytest.raises(APIError) as caught:
                await client.create(resource, body, **options)
            return caught.value

    error = asyncio.run(inside())
    is_one_sentence(error)
    return error


def pod(name: str, **container: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "main", "image": "x", **container}], "restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def test_refusals(cluster: FakeCluster, target: Target, tmp_path: Path) -> None:
    cluster.put(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}}
    )
    assert refused(target, pod("a")).exit_code == 3
    assert refused(target, {**pod("a"), "spec": {"containers": [{"name": "x", "imge": "y"}]}}).exit_code == 2
    label = {"pod-security.kubernetes.io/enforce": "baseline"}
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tight", "labels": label}})
    tight = limited(cluster, tmp_path, "tight")
    assert "allows only 'baseline'" in str(refused(tight, pod("a", securityContext={"privileged": True})))
    missing = limited(cluster, tmp_path, "nowhere")
    assert refused(missing, pod("a")).exit_code == 2
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}}
    cluster.put(config)
    assert refused(target, config, CONFIGMAPS).exit_code == 3
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
               "spec": {"type": "NodePort", "ports": [{"port": 22, "nodePort": 22}]}}  # fmt: skip
    assert "not in the valid range" in str(refused(target, service, SERVICES))


def test_rights_are_enforced_for_what_is_not_in_the_manifest(cluster: FakeCluster, target: Target) -> None:
    async def inside(client: Client) -> None:
        await client.list(NODES)
        with pytest.raises(Forbidden):
            await client.delete(NODES, "node-1")
        assert await client.can("create", JOBS) == (True, "")
        assert (await client.can("delete", NODES))[0] is False

    async def outside() -> None:
        async with open_client(target) as client:
            await inside(client)

    asyncio.run(outside())
