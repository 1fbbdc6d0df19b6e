"""Bad days of runs on Kubernetes, on the scripted fake cluster: one sentence, the right exit code, nothing left."""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lambdactl.backends.kubernetes import start, strays
from lambdactl.backends.kubernetes.client import Client, open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.errors import Forbidden
from lambdactl.backends.kubernetes.following import KubeFollower
from lambdactl.backends.kubernetes.model import KubeRun
from lambdactl.backends.kubernetes.podstate import pull_cause, unplaced
from lambdactl.backends.kubernetes.resources import CONFIGMAPS, JOBS
from lambdactl.backends.kubernetes.session import open_session
from lambdactl.backends.kubernetes.start import Starter, submit
from lambdactl.backends.kubernetes.view import view_of
from lambdactl.errors import LambdactlError
from lambdactl.run.screen import LogOutput
from lambdactl.run.status import RunStatus
from tests.fakes.kube import FakeCluster
from tests.unit.kube.pod_bed import kube_run

KINDS = ("jobs", "pods", "configmaps", "secrets", "services")
TWO = "name: demo\nnodes: 2\ncommands: [train]\n"


def a_run(text: str = TWO, **changes: Any) -> KubeRun:
    return kube_run(text, **{"run_id": str(uuid.uuid4()), "image": "registry.example/tool:1", **changes})


class Told:
    """What the user sees: the log, the notes and the end."""

    def __init__(self) -> None:
        self.stream = io.BytesIO()
        self.notes: list[str] = []
        self.status: RunStatus | None = None


def follow(
    cluster: FakeCluster, target: Target, run: KubeRun, happens: Callable[[], object], *, wait: bool = False
) -> Told:
    """Submit a run and follow it to its end, while `happens` does to the cluster what the test is about."""
    told = Told()

    async def body() -> None:
        async with open_client(target) as client:
            await submit(client, run)
            async with open_session(client, run.run_id, run.run_name) as session:
                output = LogOutput(list(range(run.nodes)), stream=told.stream)  # type: ignore[arg-type]  # a stand-in with what is asked of it
                starter = Starter(session, wait=wait, notify=told.notes.append)
                ranks = list(range(run.nodes))
                follower = KubeFollower(
                    session, output, show=ranks, notify=told.notes.append, starter=starter, tidy=True
                )
                other = asyncio.create_task(asyncio.to_thread(happens))
                try:
                    await asyncio.wait_for(follower.run(), 120)
                finally:
                    await other
                told.status = await follower.status()

    asyncio.run(body())
    return told


def nothing_left(cluster: FakeCluster) -> None:
    deadline = time.monotonic() + 60
    while left := cluster.left(*KINDS):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def refusal(cluster: FakeCluster, target: Target, run: KubeRun, happens: Callable[[], object] = lambda: None) -> Any:
    with pytest.raises(LambdactlError) as caught:
        follow(cluster, target, run, happens)
    nothing_left(cluster)
    assert "Traceback" not in str(caught.value)
    return caught.value


def both_run(cluster: FakeCluster) -> None:
    """Both ranks' containers run, and have been told to go."""
    for rank in (0, 1):
        cluster.rank("demo", rank).run(f"hello from {rank}\n".encode())
    cluster.wait(lambda: all("lambdactl.dev/go" in p["metadata"]["annotations"] for p in cluster.store.all("pods")))


def test_all_is_well(cluster: FakeCluster, target: Target) -> None:
    def happens() -> None:
        both_run(cluster)
        for rank in (1, 0):
            cluster.rank("demo", rank).exit(0)

    told = follow(cluster, target, a_run(), happens)
    assert told.status is not None
    assert (told.status.state, told.status.exit_code) == ("done", 0)
    assert sorted(told.stream.getvalue().decode().splitlines()) == ["0: hello from 0", "1: hello from 1"]
    nothing_left(cluster)


def test_an_unknown_image(cluster: FakeCluster, target: Target) -> None:
    text = 'failed to resolve reference "registry.example/tool:1": not found'
    error = refusal(cluster, target, a_run(), lambda: cluster.rank("demo", 0).image_error("ErrImagePull", text))
    assert "demo cannot start: the image" in str(error)
    assert "cannot be pulled on node-" in str(error)
    assert error.exit_code == 1


def test_a_registry_that_does_not_answer_is_given_up_when_the_kubelet_backs_off(
    cluster: FakeCluster, target: Target
) -> None:
    def happens() -> None:
        cluster.rank("demo", 0).image_error("ErrImagePull", "dial tcp: i/o timeout")
        cluster.rank("demo", 0).image_error("ImagePullBackOff", "Back-off pulling image: dial tcp: i/o timeout")

    assert "i/o timeout" in str(refusal(cluster, target, a_run(), happens))


def test_quota_exceeded(cluster: FakeCluster, target: Target) -> None:
    spec = {"hard": {"pods": "1"}}
    cluster.put({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": spec})
    error = refusal(cluster, target, a_run())
    assert "small" in str(error)
    assert "quota" in str(error)
    assert error.exit_code == 3


def test_a_forbidden_verb(cluster: FakeCluster, target: Target) -> None:
    cluster.fail_next("create", "configmaps", 403, message='configmaps is forbidden: User "x" cannot create')
    error = refusal(cluster, target, a_run())
    assert "configmaps" in str(error)
    assert error.exit_code == 4


@pytest.mark.parametrize(("verb", "resource"), [("patch", "pods"), ("watch", "pods"), ("list", "events")])
def test_a_run_that_may_be_made_but_not_started_is_taken_back(
    cluster: FakeCluster, target: Target, verb: str, resource: str
) -> None:
    said = f'events is forbidden: User "u" cannot {verb} resource "{resource}" in API group ""'

    async def begin(client: Client, run: KubeRun, uid: str) -> None:
        async with (
            start.taken_back_where_forbidden(client, run.run_name, uid, run.run_id),
            open_session(client, run.run_id, run.run_name) as session,
        ):
            other = asyncio.create_task(asyncio.to_thread(both_are_there, cluster))
            try:
                await Starter(session).run()
            finally:
                await other

    async def body() -> None:
        async with open_client(target) as client:
            run = a_run()
            job = await submit(client, run)
            cluster.fail_next(verb, resource, 403, times=1000, message=said)
            with pytest.raises(Forbidden):
                await begin(client, run, job["metadata"]["uid"])

    asyncio.run(asyncio.wait_for(body(), 100))
    nothing_left(cluster)


def both_are_there(cluster: FakeCluster) -> None:
    """Both ranks' containers run."""
    for rank in (0, 1):
        cluster.rank("demo", rank).run()


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (
            'Back-off pulling image "r.io/x:1": ErrImagePull: failed to pull and unpack image "r.io/x:1": failed to '
            'resolve reference "r.io/x:1": failed to do request: Head "https://r.io/v2/x": dial tcp: no such host',
            'Head "https://r.io/v2/x": dial tcp: no such host',
        ),
        (
            'rpc error: code = NotFound desc = failed to pull and unpack image "r.io/x:1": failed to resolve reference '
            '"r.io/x:1": r.io/x:1: not found',
            "r.io/x:1: not found",
        ),
        ("manifest unknown", "manifest unknown"),
    ],
)
def test_the_cause_of_a_failed_pull_without_what_is_around_it(said: str, cause: str) -> None:
    assert pull_cause(said) == cause


def test_a_pod_that_somebody_deletes_ends_by_that_and_not_by_our_own_stop_signal(
    cluster: FakeCluster, target: Target
) -> None:
    def happens() -> None:
        both_run(cluster)
        cluster.rank("demo", 1).delete()

    told = follow(cluster, target, a_run(), happens)
    assert told.status is not None
    assert (told.status.state, told.status.reason, told.status.exit_code) == ("failed", "disrupted", 5)
    assert str(told.status.message).endswith("its pod was deleted")
    nothing_left(cluster)


def test_what_the_scheduler_says_without_preemption() -> None:
    said = (
        "0/2 nodes are available: 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/2 nodes are "
        "available: 1 Preemption is not helpful for scheduling."
    )
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
    assert unplaced({"metadata": {}, "status": {"conditions": [condition]}}) == (
        "0/2 nodes are available: 1 node(s) were unschedulable"
    )


def test_a_login_that_expired(cluster: FakeCluster, target: Target) -> None:
    cluster.server.users.clear()
    assert refusal(cluster, target, a_run()).exit_code == 4


def test_a_gang_that_does_not_fit_is_taken_back_whole(
    cluster: FakeCluster, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "UNSCHEDULABLE_PATIENCE", 0.5)
    cluster.node("node-2").cordon()
    error = refusal(cluster, target, a_run(), lambda: cluster.rank("demo", 0).placed())
    assert "demo does not fit: 1 of 2 ranks found a node; rank 1: " in str(error)
    assert "pass --wait" in str(error)
    assert error.exit_code == 3


def test_with_wait_it_stays_until_there_is_room(
    cluster: FakeCluster, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "UNSCHEDULABLE_PATIENCE", 0.1)
    cluster.node("node-2").cordon()

    def happens() -> None:
        cluster.rank("demo", 0).run()
        time.sleep(1)
        cluster.node("node-2").cordon(False)
        both_run(cluster)
        for rank in (0, 1):
            cluster.rank("demo", rank).exit(0)

    told = follow(cluster, target, a_run(), happens, wait=True)
    assert told.status is not None
    assert told.status.exit_code == 0
    assert any("waits for a node" in text for text in told.notes)


def test_two_runs_of_one_name(cluster: FakeCluster, target: Target) -> None:
    async def body() -> LambdactlError:
        async with open_client(target) as client:
            await submit(client, a_run())
            with pytest.raises(LambdactlError) as caught:
                await submit(client, a_run())
            await start.take_back(client, "demo")
            return caught.value

    error = asyncio.run(body())
    assert "a run named demo of ada@laptop is active in the namespace default; stop it with" in str(error)
    assert error.exit_code == 3
    nothing_left(cluster)


def test_a_foreign_job_of_that_name_is_left_alone(cluster: FakeCluster, target: Target) -> None:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    cluster.put(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "demo"}, "spec": {"template": {"spec": pod}}}
    )

    async def body() -> LambdactlError:
        async with open_client(target) as client:
            with pytest.raises(LambdactlError) as caught:
                await submit(client, a_run())
            return caught.value

    assert "has a Job named demo that is not of lambdactl" in str(asyncio.run(body()))
    assert cluster.get(JOBS, "demo") is not None


@pytest.mark.parametrize(
    ("ends", "reason", "code", "words"),
    [
        (lambda pod: pod.exit(7), "exited", 7, "the commands exited with code 7"),
        (lambda pod: pod.exit(139), "signalled", 139, "the commands were killed by SIGSEGV"),
        (lambda pod: pod.oom(), "oom", 137, "lack of memory"),
        (lambda pod: pod.fail("Evicted", "The node was low on resource: memory."), "disrupted", 5, "low on resource"),
    ],
)
def test_how_a_rank_ends_is_the_runs_reason(
    cluster: FakeCluster, target: Target, ends: Callable[[Any], object], reason: str, code: int, words: str
) -> None:
    def happens() -> None:
        both_run(cluster)
        ends(cluster.rank("demo", 1))

    told = follow(cluster, target, a_run(), happens)
    assert told.status is not None
    assert (told.status.state, told.status.reason, told.status.exit_code) == ("failed", reason, code)
    assert told.status.first_failed_rank == 1
    assert words in str(told.status.message)
    assert str(told.status.message).startswith("rank 1 on node-")
    nothing_left(cluster)


def test_a_drained_node(cluster: FakeCluster, target: Target) -> None:
    def happens() -> None:
        both_run(cluster)
        cluster.node("node-2").drain()

    told = follow(cluster, target, a_run(), happens)
    assert told.status is not None
    assert (told.status.state, told.status.reason, told.status.exit_code) == ("failed", "disrupted", 5)
    assert "its node was drained" in str(told.status.message)
    nothing_left(cluster)


def test_a_drain_that_somebody_looks_at_later() -> None:
    """A real Job controller lets the pods of a drained node, and those that it ends itself, go from the API."""
    job = {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "demo", "labels": {"lambdactl.dev/run": "demo", "lambdactl.dev/run-id": "x"}},
        "spec": {"completions": 2},
        "status": {"startTime": "2026-01-01T00:00:00Z", "conditions": [{
            "type": "Failed", "status": "True", "reason": "PodFailurePolicy",
            "message": "Pod ml/demo-1-qt85z has condition DisruptionTarget matching FailJob rule at index 0",
        }]},
    }  # fmt: skip
    status = view_of(job, []).status()
    assert status is not None
    assert (status.state, status.reason, status.exit_code, status.first_failed_rank) == ("failed", "disrupted", 5, 1)
    assert status.message == "rank 1: its pod was taken away from its node (drained, preempted, or deleted)"
    assert [(rank["state"], rank["reason"]) for rank in status.ranks] == [
        ("stopped", "gang-failed"), ("failed", "disrupted"),
    ]  # fmt: skip


def test_ranks_that_the_success_policy_ended_are_done() -> None:
    job = {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "demo", "labels": {"lambdactl.dev/run": "demo", "lambdactl.dev/run-id": "x"}},
        "spec": {"completions": 2},
        "status": {"startTime": "2026-01-01T00:00:00Z", "conditions": [
            {"type": "Complete", "status": "True", "reason": "SuccessPolicy"},
        ]},
    }  # fmt: skip
    status = view_of(job, []).status()
    assert status is not None
    assert (status.state, status.reason, status.ranks[1]["state"]) == ("done", "master-done", "done")


def test_a_lost_node(cluster: FakeCluster, target: Target) -> None:
    def happens() -> None:
        both_run(cluster)
        cluster.node("node-2").down()
        cluster.node("node-2").evict_lost()

    told = follow(cluster, target, a_run(), happens)
    assert told.status is not None
    assert (told.status.state, told.status.reason, told.status.exit_code) == ("failed", "node-unreachable", 5)
    assert "its node does not answer" in str(told.status.message)
    nothing_left(cluster)


def test_an_api_server_that_restarts_mid_run(cluster: FakeCluster, target: Target) -> None:
    def happens() -> None:
        both_run(cluster)
        cluster.rank("demo", 0).write(b"before\n")
        cluster.down()
        cluster.rank("demo", 0).write(b"while it was away\n")
        time.sleep(0.5)
        cluster.up()
        cluster.expire_watches()
        cluster.rank("demo", 0).write(b"after\n")
        cluster.cut_connections()
        for rank in (0, 1):
            cluster.rank("demo", rank).exit(0)

    told = follow(cluster, target, a_run(), happens)
    assert told.status is not None
    assert told.status.exit_code == 0
    lines = [line for line in told.stream.getvalue().decode().splitlines() if line.startswith("0: ")]
    assert lines == ["0: hello from 0", "0: before", "0: while it was away", "0: after"]
    nothing_left(cluster)


def test_garbage_that_a_controller_has_left(cluster: FakeCluster, target: Target) -> None:
    run = a_run()
    orphan = {
        "apiVersion": "v1", "kind": "ConfigMap", "data": {},
        "metadata": {"name": "old-files", "labels": run.labels},
    }  # fmt: skip
    cluster.put(orphan)

    async def body() -> list[str]:
        async with open_client(target) as client:
            await submit(client, a_run("name: alive\ncommands: [x]"))
            fleet = SimpleNamespace(targets=(target,), name="f")
            now = time.time()
            assert (await strays.strays(fleet, older_than=3600.0, now=now)).objects == []  # type: ignore[arg-type]  # a stand-in with what is asked of it
            seen = await strays.strays(fleet, older_than=3600.0, now=now + 7300)  # type: ignore[arg-type]  # a stand-in with what is asked of it
            assert seen.active == ["alive"]
            await strays.remove(fleet, seen)  # type: ignore[arg-type]  # a stand-in with what is asked of it
            await start.take_back(client, "alive")
            return [f"{stray.title} {stray.why}" for stray in seen.objects]

    assert asyncio.run(body()) == ["configmaps/old-files is of demo, which is gone (2 h ago)"]
    assert cluster.get(CONFIGMAPS, "old-files") is None
