"""A service's status from its Deployment and pods: what people see of crash loops, lost nodes, quotas and updates."""

from __future__ import annotations

import json
from typing import Any

from lambdactl.backends.kubernetes.service_session import remark
from lambdactl.backends.kubernetes.service_view import beyond_hope, complete, status_of
from lambdactl.run.service_control import ServiceStatus


def pod(name: str, revision: str = "b" * 10, *, ready: bool = True, **status: Any) -> dict[str, Any]:
    state = status.pop("state", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    container = {"name": "main", "state": state, "started": True, "restartCount": 0} | status.pop("container", {})
    conditions = [{"type": "Ready", "status": str(ready)}, *status.pop("conditions", [])]
    meta = {"name": name, "uid": name, "labels": {"lambdactl.dev/revision": revision}, **status.pop("metadata", {})}
    meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
    return {
        "metadata": meta,
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "any"}]},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [container], **status},
    }


def deployment(wanted: int = 2, *, update: Any = None, conditions: Any = (), **status: Any) -> dict[str, Any]:
    annotations = {"lambdactl.dev/service-facts": json.dumps({"port": 80, "probes": 1, "owner": "ada"})}
    if update:
        annotations["lambdactl.dev/service-update"] = json.dumps(update)
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), wanted)
    return {
        "metadata": {"name": "web", "namespace": "ml", "generation": 2, "annotations": annotations},
        "spec": {
            "replicas": wanted,
            "template": {"metadata": {"labels": {"lambdactl.dev/revision": "b" * 10}}},
        },
        "status": {"observedGeneration": 2, "conditions": list(conditions), **counts, **status},
    }


def look(item: dict[str, Any], *pods: dict[str, Any], **remarks: str) -> ServiceStatus:
    return status_of(item, pods, remarks, cluster="mk8s")


def test_whole() -> None:
    status = look(deployment(), pod("web-1"), pod("web-2"))
    assert (status.state, status.ready, status.trouble(), status.ingress) == ("running", 2, "", "web.ml.svc")
    assert status.as_json()["path"] == "/"


def test_a_crash_loop_says_how_it_ended_and_how_often() -> None:
    ended = {"terminated": {"exitCode": 3}}
    broken = pod(
        "web-2", ready=False, state={"waiting": {"reason": "CrashLoopBackOff"}},
        container={"lastState": ended, "restartCount": 2, "started": False},
    )  # fmt: skip
    status = look(deployment(), pod("web-1"), broken)
    assert status.state == "degraded"
    assert status.trouble() == (
        "replica 1 on node-1: the commands exited with code 3, 3 times; it is started again after a pause"
    )
    assert status.data["failures"] == {"1": {"count": 3, "reason": "the commands exited with code 3"}}
    assert beyond_hope([broken], "b" * 10) == (
        "a replica on node-1 has failed 3 times (the commands exited with code 3)"
    )
    assert beyond_hope([broken], "a" * 10) is None


def test_a_lost_node() -> None:
    away = pod("web-2", conditions=[{"type": "Ready", "status": "Unknown"}])
    disrupted = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]
    deleted = {"deletionTimestamp": "2026-01-01T00:01:00Z"}
    gone = pod("web-2", ready=False, conditions=disrupted, metadata=deleted)
    for lost in (away, gone):
        status = look(deployment(), pod("web-1"), lost)
        assert [replica["state"] for replica in status.data["replicas"]] == ["ready", "lost"]
        assert "replica 1 on node-1: its node does not answer" in status.trouble()
    # The replica that took its place makes the service whole, whatever becomes of the lost one.
    assert look(deployment(), pod("web-1"), gone, pod("web-3")).state == "running"


def test_a_probe_that_fails_is_shown_in_its_own_words() -> None:
    said = "Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 503"
    status = look(deployment(), pod("web-1", ready=False), pod("web-2"), **{"web-1": said})
    assert [replica["state"] for replica in status.data["replicas"]] == ["unready", "ready"]
    assert "Readiness probe failed: HTTP probe failed with statuscode: 503" in status.trouble()


def test_a_quota_is_why_a_replica_has_no_pod() -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: small"}
    status = look(deployment(conditions=[refused], replicas=1), pod("web-1"))
    assert status.trouble() == "replica 1: exceeded quota: small"


def test_updates() -> None:
    running = {"state": "running", "from": "a" * 10}
    old = pod("web-0", "a" * 10)
    half = look(deployment(update=running, updatedReplicas=1), old, pod("web-1"))
    assert (half.state, half.data["update"]["state"]) == ("updating", "running")
    # Nobody waited for its end.
    assert look(deployment(update=running), pod("web-1"), pod("web-2")).data["update"]["state"] == "done"
    failed = look(deployment(update={"state": "failed", "message": "why"}), pod("web-1"), pod("web-2"))
    assert failed.trouble() == "the update was taken back: why"
    assert not complete(deployment(observedGeneration=1), [pod("web-1"), pod("web-2")])
    assert not complete(deployment(), [old, pod("web-1"), pod("web-2")])


def test_what_keeps_the_container_that_asks_the_probes_from_it() -> None:
    def beside(**status: Any) -> dict[str, Any]:
        waits = {"waiting": {"reason": "PodInitializing"}}
        return pod("web-1", ready=False, state=waits, initContainerStatuses=[{"name": "probes", "state": {}, **status}])

    ended = {"exitCode": 125, "message": "start-failed: the image a has no python3; name one"}
    assert beyond_hope([beside(lastState={"terminated": ended})], "b" * 10) == "the image a has no python3; name one"
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "a:1": not found'}
    gone = beside(image="a:1", state={"waiting": waiting})
    assert "the image a:1 cannot be pulled on node-1" in (look(deployment(), gone).trouble() or "")
    assert beyond_hope([beside(state={"running": {}})], "b" * 10) is None
    again = beside(restartCount=3, state={"waiting": {}}, lastState={"terminated": {"exitCode": 1}})
    assert beyond_hope([again], "b" * 10) == "the container that asks its probes has failed 3 times (exit code 1)"


def test_events_of_the_probes_container_speak_when_they_say_something() -> None:
    def said(message: str) -> str | None:
        return remark({"reason": "Unhealthy", "message": message})

    assert said("Liveness probe failed: HTTP probe failed with statuscode: 599") is None
    assert said("Readiness probe failed: not asked yet") is None
    assert (
        said("Readiness probe failed: POST /b answered 500")
        == "Unhealthy: Readiness probe failed: POST /b answered 500"
    )


def test_a_replica_that_was_ended_for_its_idle_gpus_says_so() -> None:
    ended = {"terminated": {"exitCode": 130, "message": "utilization-policy: GPU 0 was below 10% for 300 s"}}
    idle = pod("web-1", ready=False, container={"lastState": ended, "restartCount": 1, "started": False})
    assert "GPU 0 was below 10% for 300 s" in look(deployment(), idle).trouble()
