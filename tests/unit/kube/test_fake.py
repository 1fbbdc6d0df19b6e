"""The fake itself: it has to behave as the tests that lean on it believe."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.errors import Unavailable
from lambdactl.backends.kubernetes.resources import JOBS, PODS
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.unit.kube.bed import limited


def job(
    name: str = "j", *command: str, image: str = "x", ranks: int = 2, pod: Any = None, **spec: Any
) -> dict[str, Any]:
    container = {"name": "main", "image": image} | ({"command": list(command)} if command else {})
    template = {"spec": {"restartPolicy": "Never", "containers": [container], **(pod or {})}}
    shape = {"completions": ranks, "parallelism": ranks, "completionMode": "Indexed", "backoffLimit": 0}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {**shape, "template": template, **spec},
    }


def ended(cluster: FakeCluster, name: str = "j") -> tuple[str, str]:
    """(Complete or Failed, reason), once the Job has it."""

    def find() -> tuple[str, str] | None:
        found = (cluster.store.find("jobs", "default", name) or {}).get("status", {}).get("conditions") or []
        return next(((c["type"], c["reason"]) for c in found if c["type"] in ("Complete", "Failed")), None)

    return cluster.wait(find)


def test_a_job_whose_ranks_all_succeed(cluster: FakeCluster) -> None:
    cluster.put(job())
    for index in (0, 1):
        cluster.rank("j", index).run().exit(0)
    assert ended(cluster) == ("Complete", "CompletionsReached")
    assert (cluster.get(JOBS, "j") or {})["status"]["completedIndexes"] == "0,1"


def test_a_job_fails_with_its_first_rank(cluster: FakeCluster) -> None:
    cluster.put(job())
    other = cluster.rank("j", 0).run().name
    cluster.rank("j", 1).run().exit(7)
    assert ended(cluster) == ("Failed", "BackoffLimitExceeded")
    assert cluster.get(PODS, other) is None


def test_success_of_index_0_is_enough_where_the_policy_says_so(cluster: FakeCluster) -> None:
    cluster.put(job(successPolicy={"rules": [{"succeededIndexes": "0"}]}))
    other = cluster.rank("j", 1).run().name
    cluster.rank("j", 0).run().exit(0)
    assert ended(cluster) == ("Complete", "SuccessPolicy")
    assert cluster.get(PODS, other) is None


def test_a_failure_policy_decides(cluster: FakeCluster) -> None:
    condition = {"type": "DisruptionTarget", "status": "True"}
    rules = [
        {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
        {"action": "Ignore", "onPodConditions": [condition]},
    ]
    cluster.put(job(podFailurePolicy={"rules": rules}, backoffLimit=3))
    first = cluster.rank("j", 0).run()
    name = first.name
    first.evict()
    cluster.wait(lambda: cluster.store.find("pods", "default", name) is None)
    again = cluster.rank("j", 0).run()
    assert again.name != name
    again.exit(42)
    assert ended(cluster) == ("Failed", "PodFailurePolicy")


def test_deadline_suspension_and_time_to_live(cluster: FakeCluster) -> None:
    cluster.put(job("late", activeDeadlineSeconds=1))
    assert ended(cluster, "late") == ("Failed", "DeadlineExceeded")
    cluster.put(job("held", suspend=True, ttlSecondsAfterFinished=0))
    time.sleep(0.4)
    assert [p for p in cluster.objects(PODS) if p["metadata"]["name"].startswith("held")] == []
    cluster.change(JOBS, "held", lambda item: item["spec"].update(suspend=False))
    for index in (0, 1):
        cluster.rank("held", index).run().exit(0)
    cluster.wait(lambda: cluster.store.find("jobs", "default", "held") is None)
    cluster.wait(lambda: not [p for p in cluster.store.all("pods") if p["metadata"]["name"].startswith("held")])


def test_the_schedulers_message(cluster: FakeCluster) -> None:
    cluster.node("node-2").taint("team", "b")
    gpus = {"containers": [{"name": "m", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "16"}}}]}
    cluster.put(job(ranks=1, pod=gpus))
    (said,) = cluster.wait(lambda: cluster_messages(cluster))
    assert "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint {team: b}." in said


def cluster_messages(cluster: FakeCluster) -> list[str]:
    return [e["message"] for e in cluster.store.all("events") if e["reason"] == "FailedScheduling"]


def test_anti_affinity_spreads_and_a_third_rank_waits(cluster: FakeCluster) -> None:
    term = {"labelSelector": {"matchLabels": {"job-name": "j"}}, "topologyKey": "kubernetes.io/hostname"}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    cluster.put(job(ranks=3, pod={"affinity": affinity}))
    (said,) = cluster.wait(lambda: cluster_messages(cluster))
    assert "2 node(s) didn't match pod anti-affinity rules" in said
    placed = {p["spec"].get("nodeName") for p in cluster.objects(PODS)}
    assert placed == {"node-1", "node-2", None}


def test_a_quota_is_told_by_an_event_of_the_job(cluster: FakeCluster) -> None:
    cluster.put(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}}
    )
    cluster.put(job())
    cluster.wait(lambda: [e for e in cluster.store.all("events") if e["reason"] == "FailedCreate"])
    assert "exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1" in cluster.messages("FailedCreate")[0]


def test_what_a_job_owns_goes_with_it(cluster: FakeCluster) -> None:
    made = cluster.put(job())
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": made["metadata"]["uid"]}
    metadata = {"name": "c", "ownerReferences": [owner]}
    cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    cluster.rank("j", 0).run()
    assert {key[0] for key in cluster.store.objects} >= {"jobs", "pods", "configmaps"}
    cluster.remove(JOBS, "j", propagationPolicy="Background")
    cluster.wait(lambda: not [key for key in cluster.store.objects if key[0] in ("jobs", "pods", "configmaps")])


def test_a_node_that_is_lost_keeps_its_pods_terminating(cluster: FakeCluster) -> None:
    cluster.put(job(ranks=1))
    rank = cluster.rank("j", 0).run()
    node = rank.object["spec"]["nodeName"]
    cluster.node(node).down()
    assert [c["status"] for c in rank.object["status"]["conditions"] if c["type"] == "Ready"] == ["False"]
    cluster.node(node).evict_lost()
    time.sleep(0.3)
    assert "deletionTimestamp" in rank.object["metadata"]
    cluster.node(node).remove()
    assert ended(cluster) == ("Failed", "BackoffLimitExceeded")


# The process mode.

pytestmark_process = pytest.mark.skipif(usable() is not None, reason=str(usable()))


@pytest.fixture
def real() -> Iterator[FakeCluster]:
    with FakeCluster([FakeNode("n1", external_ip="127.0.0.1"), FakeNode("n2")], mode="process") as found:
        yield found


def log_of(cluster: FakeCluster, target: Target, name: str) -> str:
    async def inside() -> str:
        async with open_client(target) as client:
            return b"".join([chunk async for chunk in client.follow_log(name)]).decode()

    return asyncio.run(asyncio.wait_for(inside(), 60))


@pytestmark_process
def test_pods_are_real_processes(real: FakeCluster, tmp_path: Path) -> None:
    """Own address, host name, files, environment and exit code; nothing of the machine is changed."""
    real.put(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"run.sh": "echo from a file\n"}}
    )
    volumes = [
        {"name": "c", "configMap": {"name": "c", "defaultMode": 0o755}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "data", "hostPath": {"path": "/data", "type": "DirectoryOrCreate"}},
    ]
    mounts = [
        {"name": "c", "mountPath": "/cfg"}, {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "data", "mountPath": "/data"},
    ]  # fmt: skip
    text = "sh /cfg/run.sh; hostname; echo $POD_IP; df -k /dev/shm | tail -1; echo x > /data/x; "
    text += "echo pid $$; exit $JOB_COMPLETION_INDEX"
    env = [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    container = {"name": "main", "image": "x", "command": ["sh", "-c", text], "env": env, "volumeMounts": mounts}
    real.put(job(pod={"containers": [container], "volumes": volumes}))
    assert ended(real) == ("Failed", "BackoffLimitExceeded")
    pod = real.rank("j", 1).object
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    lines = log_of(real, real.target(tmp_path), pod["metadata"]["name"]).splitlines()
    assert lines[:3] == ["from a file", "j-1", pod["status"]["podIP"]]
    assert lines[3].split()[1] == "8192"
    assert lines[4] == "pid 1"
    assert not Path("/data/x").exists()


@pytestmark_process
def test_exec_port_forward_and_node_ports(real: FakeCluster, tmp_path: Path) -> None:
    server = (
        "import socket\ns = socket.create_server(('', 2222))\nwhile True:\n    c, a = s.accept()\n"
        "    c.sendall(b'hello ' + c.recv(100))\n    c.close()\n"
    )
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
           "containers": [{"name": "main", "image": "x", "command": ["/usr/bin/python3", "-c", server]}]}  # fmt: skip
    real.put({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "spec": pod})
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as held:
        number = 30000 + held.getsockname()[1] % 2700
    ports = [{"port": 22, "targetPort": 2222, "nodePort": number}]
    service = {"type": "NodePort", "selector": {"a": "b"}, "ports": ports}
    real.put({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": service})
    real.wait(lambda: (real.store.find("pods", "default", "p") or {})["status"].get("phase") == "Running")

    async def inside() -> None:
        async with open_client(limited(real, tmp_path)) as client:
            done = await client.exec("p", ["sh", "-c", "cat; hostname; echo e >&2; exit 3"], stdin=b"in\n")
            assert (done.rc, done.stdout, done.stderr) == (3, b"in\np\n", b"e\n")
            assert (await client.exec("p", ["true"])).rc == 0
            for _ in range(100):  # python3 starts to listen a moment after the pod runs
                try:
                    async with client.port_forward("p", 2222) as stream:
                        await stream.write(b"there")
                        assert await stream.read() == b"hello there"
                        break
                except Unavailable:
                    await asyncio.sleep(0.1)
            with pytest.raises(Unavailable, match="nothing listens on port 9 in the pod 'p'"):
                async with client.port_forward("p", 9) as stream:
                    await stream.read()

    asyncio.run(asyncio.wait_for(inside(), 60))
    with socket.create_connection(("127.0.0.1", number), timeout=30) as connection:
        connection.sendall(b"node")
        assert connection.recv(100) == b"hello node"


@pytestmark_process
def test_deletion_is_sigterm_a_grace_time_and_sigkill(real: FakeCluster, tmp_path: Path) -> None:
    def put(name: str, text: str, grace: int) -> None:
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": grace,
                "containers": [{"name": "main", "image": "x", "command": ["sh", "-c", text]}]}  # fmt: skip
        real.put({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        real.wait(lambda: (real.store.find("pods", "default", name) or {})["status"].get("phase") == "Running")

    put("polite", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done", 60)
    put("deaf", "echo up; sleep 1000 & wait", 1)
    real.wait(lambda: all(log.lines for log in real.kubelet.logs.values()))
    for name in ("polite", "deaf"):
        uid = real.pod(name).object["metadata"]["uid"]
        real.pod(name).delete()
        real.wait(lambda name=name: real.store.find("pods", "default", name) is None)
        log = b"".join(line for _, line in real.kubelet.logs[uid, "main"].lines)
        assert log == (b"up\nbye\n" if name == "polite" else b"up\n")
    # Without a grace time the object is gone at once, and its container killed.
    put("forced", "echo up; sleep 1000 & wait", 60)
    uid = real.pod("forced").object["metadata"]["uid"]
    real.pod("forced").delete(grace=0)
    assert real.store.find("pods", "default", "forced") is None
    real.wait(lambda: uid not in real.kubelet.pods)


@pytestmark_process
def test_an_image_that_is_not_there_and_a_volume_that_is_missing(tmp_path: Path) -> None:
    with FakeCluster([FakeNode("n")], mode="process", images={"here": Path("/")}) as cluster:
        cluster.put(job("a", "true", image="elsewhere", ranks=1))
        cluster.wait(lambda: [e for e in cluster.store.all("events") if "elsewhere" in e["message"]])
        volume = {"volumes": [{"name": "v", "configMap": {"name": "missing"}}]}
        cluster.put(
            job(
                "b",
                "true",
                image="here",
                ranks=1,
                pod={
                    **volume,
                    "containers": [
                        {
                            "name": "main",
                            "image": "here",
                            "command": ["true"],
                            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                        }
                    ],
                },
            )
        )
        cluster.wait(
            lambda: [
                e
                for e in cluster.store.all("events")
                if 'configMap "missing" not found' in e["message"] or 'configmap "missing" not found' in e["message"]
            ]
        )
        cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "missing"}})
        assert ended(cluster, "b")[0] == "Complete"
