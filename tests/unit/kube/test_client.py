"""The client on the fake: requests, watches and logs over every interruption, and what memory 200 ranks take."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes import logs
from lambdactl.backends.kubernetes.client import Client, open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    LogNotReady,
    NotFound,
    Unauthorized,
    Unavailable,
)
from lambdactl.backends.kubernetes.resources import CONFIGMAPS, PODS
from tests.fakes.kube import FakeCluster, FakeNode
from tests.unit.kube.bed import PEAK, limited, until


@pytest.fixture
def target(cluster: FakeCluster, tmp_path: Path) -> Target:
    """An administrator: the client can do more than lambdactl needs."""
    found: Target = cluster.target(tmp_path)
    return found


def run(target: Target, work: Any, *, patience: float = 60) -> Any:
    async def inside() -> Any:
        async with open_client(target, patience=patience) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(inside(), 120))


def config(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"a": "b"}}, "data": data}


def pod(name: str, **labels: str) -> dict[str, Any]:
    spec = {"containers": [{"name": "main", "image": "x"}], "restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def test_objects(cluster: FakeCluster, target: Target) -> None:
    async def work(client: Client) -> None:
        made = await client.create(CONFIGMAPS, config("c", x="1"))
        assert (await client.create(CONFIGMAPS, config("dry"), dry_run=True))["metadata"]["name"] == "dry"
        assert await client.find(CONFIGMAPS, "dry") is None
        with pytest.raises(AlreadyExists):
            await client.create(CONFIGMAPS, config("c"))
        await client.patch(CONFIGMAPS, "c", {"data": {"y": "2", "x": None}})
        await client.patch(CONFIGMAPS, "c", [{"op": "add", "path": "/data/z", "value": "3"}], kind="json")
        assert (await client.get(CONFIGMAPS, "c"))["data"] == {"y": "2", "z": "3"}
        with pytest.raises(Conflict):
            await client.replace(CONFIGMAPS, "c", made)
        with pytest.raises(Conflict):
            await client.delete(CONFIGMAPS, "c", uid="another")
        assert await client.delete(CONFIGMAPS, "c", uid=made["metadata"]["uid"])
        assert not await client.delete(CONFIGMAPS, "c")
        with pytest.raises(NotFound):
            await client.get(CONFIGMAPS, "c")

    run(target, work)


def test_lists_come_in_pages_and_by_selectors(
    cluster: FakeCluster, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lambdactl.backends.kubernetes.client.PAGE", 3)
    for number in range(8):
        cluster.put(pod(f"p{number}", part="odd" if number % 2 else "even"))

    async def work(client: Client) -> None:
        assert len((await client.list(PODS)).items) == 8
        assert len((await client.list(PODS, labels="part in (odd)")).items) == 4
        assert len((await client.list(PODS, fields="metadata.name!=p1")).items) == 7
        await client.delete_all(PODS, labels="part=odd")

    run(target, work)
    # Pods on nodes end gracefully; the kubelet takes them away.
    cluster.wait(lambda: len(cluster.store.all("pods")) == 4)


async def collect(client: Client, seen: list[tuple[str, str]], until: str) -> None:
    async for event in client.watch(CONFIGMAPS):
        name = event.object["metadata"]["name"] if event.object else ""
        seen.append((event.type, name))
        if name == until:
            return


def test_a_watch_goes_on_over_every_interruption(cluster: FakeCluster, target: Target) -> None:
    """Bookmarks, good ends, cut connections, a server that is away, and 410: nothing is missed, nothing told twice."""
    cluster.put(config("before"))

    async def work(client: Client) -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []
        task = asyncio.create_task(collect(client, seen, "last"))
        steps: list[Any] = [cluster.end_watches, cluster.cut_connections, cluster.expire_watches, cluster.restart]
        for number, step in enumerate(steps):
            before = ("ADDED", f"c{number - 1}" if number else "before")
            await until(lambda before=before: before in seen)
            await asyncio.to_thread(step)
            await asyncio.to_thread(cluster.put, config(f"c{number}"))
        await until(lambda: ("ADDED", "c3") in seen)
        await asyncio.to_thread(cluster.remove, CONFIGMAPS, "c0")
        await asyncio.to_thread(cluster.put, config("last"))
        await task
        return seen

    seen = run(target, work)
    added = [name for kind, name in seen if kind == "ADDED"]
    assert added == ["before", "c0", "c1", "c2", "c3", "last"]
    assert ("DELETED", "c0") in seen


def test_what_vanished_during_410_is_told(cluster: FakeCluster, target: Target) -> None:
    cluster.put(config("stays"))
    cluster.put(config("goes"))

    async def work(client: Client) -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []
        task = asyncio.create_task(collect(client, seen, "last"))
        await until(lambda: ("SYNCED", "") in seen)
        await asyncio.to_thread(cluster.down)
        await asyncio.to_thread(cluster.remove, CONFIGMAPS, "goes")
        await asyncio.to_thread(cluster.change, CONFIGMAPS, "stays", lambda item: item.update(data={"n": "1"}))
        await asyncio.to_thread(cluster.expire_watches)
        await asyncio.to_thread(cluster.up)
        await asyncio.to_thread(cluster.put, config("last"))
        await task
        return seen

    seen = run(target, work)
    assert seen[:3] == [("ADDED", "stays"), ("ADDED", "goes"), ("SYNCED", "")]
    assert {("DELETED", "goes"), ("MODIFIED", "stays"), ("ADDED", "last")} <= set(seen[3:])


def test_patience_ends(cluster: FakeCluster, target: Target) -> None:
    async def work(client: Client) -> None:
        await client.list(PODS)
        await asyncio.to_thread(cluster.down)
        with pytest.raises(Unavailable, match="refuses connections"):
            await client.list(PODS)
        with pytest.raises(Unavailable):
            async for _ in client.watch(PODS):
                pass

    run(target, work, patience=0.5)


def test_requests_wait_for_a_server_that_restarts(cluster: FakeCluster, target: Target) -> None:
    async def work(client: Client) -> None:
        await client.list(PODS)
        await asyncio.to_thread(cluster.down)
        threading.Timer(0.5, cluster.up).start()
        await client.create(CONFIGMAPS, config("c"))
        cluster.fail_next("delete", "configmaps", 503, times=2)
        assert await client.delete(CONFIGMAPS, "c")

    run(target, work)


# Logs.


async def read(client: Client, name: str, got: bytearray, **options: Any) -> None:
    async for chunk in client.follow_log(name, **options):
        got += chunk


def test_a_log_over_cuts_has_every_line_once(cluster: FakeCluster, target: Target) -> None:
    cluster.put(pod("p"))
    handle = cluster.pod("p").run()

    async def work(client: Client) -> bytes:
        got = bytearray()
        task = asyncio.create_task(read(client, "p", got))
        for number in range(60):
            await asyncio.to_thread(handle.write, b"".join(b"line %d.%d\n" % (number, part) for part in range(20)))
            if number % 7 == 0:
                await asyncio.to_thread(cluster.cut_connections)
            if number == 30:
                await asyncio.to_thread(cluster.restart)
        await asyncio.to_thread(handle.write, b"no end")
        await asyncio.to_thread(handle.exit, 0)
        await task
        return bytes(got)

    wanted = b"".join(b"line %d.%d\n" % (number, part) for number in range(60) for part in range(20))
    assert run(target, work) == wanted + b"no end"


def test_a_very_long_line_over_a_cut(cluster: FakeCluster, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LONGEST_LINE", 1000)
    cluster.put(pod("p"))
    handle = cluster.pod("p").run()
    line = b"x" * 500_000 + b"y" * 500_000

    async def work(client: Client) -> bytes:
        got = bytearray()
        task = asyncio.create_task(read(client, "p", got))
        await asyncio.to_thread(handle.write, b"first\n" + line + b"\nlast\n")
        await until(lambda: b"x" * 1000 in got)
        await asyncio.to_thread(cluster.cut_connections)
        await asyncio.to_thread(handle.exit, 0)
        await task
        return bytes(got)

    assert run(target, work) == b"first\n" + line + b"\nlast\n"


def test_logs_that_are_not_there(cluster: FakeCluster, target: Target) -> None:
    cluster.put(pod("waits"))
    cluster.pod("waits").placed()

    async def work(client: Client) -> None:
        for name, error in (("waits", LogNotReady), ("missing", NotFound)):
            with pytest.raises(error):
                await read(client, name, bytearray())

    run(target, work)


def test_a_log_without_following_and_since(cluster: FakeCluster, target: Target) -> None:
    cluster.put(pod("p"))
    cluster.pod("p").run(b"a\nb\n")

    async def work(client: Client) -> list[bytes]:
        results = []
        for since in (None, time.time() - 60, time.time() + 60):
            got = bytearray()
            await read(client, "p", got, follow=False, since=since)
            results.append(bytes(got))
        return results

    assert run(target, work) == [b"a\nb\n", b"a\nb\n", b""]


@pytest.mark.parametrize(
    ("line", "stamp", "text"),
    [
        (b"2026-11-25T19:40:00.123456789Z hello", 1_795_635_600_123_456_789, b"hello"),
        (b"2026-11-25T19:40:00Z ", 1_795_635_600_000_000_000, b""),
        (b"2026-11-25T20:40:00.5+01:00 x", 1_795_635_600_500_000_000, b"x"),
        (b"no time at all here, just text", 0, b"no time at all here, just text"),
        (b"", 0, b""),
    ],
)
def test_times_of_lines(line: bytes, stamp: int, text: bytes) -> None:
    assert logs._stamp(line) == (stamp, text)


FOLLOWER = (
    PEAK
    + """
import asyncio, sys
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import targets
from lambdactl.backends.kubernetes.resources import PODS

async def main():
    async with open_client(targets(sys.argv[1], environ={})[0]) as client:
        names = []
        async for event in client.watch(PODS, labels="run=big"):
            if event.type == "ADDED":
                names.append(event.object["metadata"]["name"])
            if len(names) == 200:
                break

        async def follow(name):
            return sum([len(chunk) async for chunk in client.follow_log(name)])

        totals = await asyncio.gather(*(follow(name) for name in names))
        print(len(names), set(totals), peak() >> 20)

asyncio.run(main())
"""
)


def test_two_hundred_ranks_in_one_process(tmp_path: Path) -> None:
    """The watch and the logs of 200 ranks, with cut connections, in at most 300 MB."""
    ranks, text = 200, b"x" * 999 + b"\n"
    with FakeCluster([FakeNode("n1"), FakeNode("n2")], auto=True) as cluster:
        for rank in range(ranks):
            cluster.put(pod(f"r{rank}", run="big"))
        cluster.wait(lambda: all(p["status"]["phase"] == "Running" for p in cluster.store.all("pods")))
        process = subprocess.Popen(
            [sys.executable, "-c", FOLLOWER, str(cluster.kubeconfig(tmp_path))], stdout=subprocess.PIPE, text=True
        )
        cluster.wait(lambda: sum(seen.resource == "pods/log" for seen in cluster.requests) >= ranks, timeout=120)
        for part in range(10):
            cluster.call(lambda: write(cluster, ranks, text * 20))
            if part == 5:
                cluster.cut_connections()
        cluster.call(lambda: end(cluster, ranks))
        out, _ = process.communicate(timeout=300)
    names, totals, megabytes = out.split(" ", 2)[0], out[out.index("{") : out.index("}") + 1], int(out.split()[-1])
    assert (names, totals) == ("200", f"{{{len(text) * 200}}}")
    assert megabytes < 300


def write(cluster: FakeCluster, ranks: int, text: bytes) -> None:
    for rank in range(ranks):
        cluster.kubelet.log(cluster.store.find("pods", "default", f"r{rank}") or {}).write(text)


def end(cluster: FakeCluster, ranks: int) -> None:
    for rank in range(ranks):
        cluster.kubelet.end(copy.deepcopy(cluster.store.find("pods", "default", f"r{rank}") or {}), 0)


def test_a_server_that_has_just_started_refuses_what_it_allows_a_moment_later(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    """As Kubernetes 1.36 does until it has read the roles: "RBAC: role.rbac.authorization.k8s.io ... not found"."""

    async def work(client: Client) -> None:
        seen = []
        watching = asyncio.create_task(_names(client, seen))
        await until(lambda: "SYNCED" in seen)
        await asyncio.to_thread(cluster.restart, 0.2, 1.0)
        await client.create(PODS, pod("late"))
        await until(lambda: "late" in seen)
        watching.cancel()
        assert "late" in seen

    run(limited(cluster, tmp_path), work)


async def _names(client: Client, seen: list[str]) -> None:
    async for event in client.watch(PODS):
        seen.append(event.object.get("metadata", {}).get("name", event.type))


@pytest.mark.parametrize(("status", "said"), [(401, "Unauthorized"), (403, 'User "u" cannot list resource "pods"')])
def test_a_right_that_was_taken_away_is_told_when_the_server_had_time_to_start(
    cluster: FakeCluster, target: Target, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    monkeypatch.setattr("lambdactl.backends.kubernetes.http.WARM_UP", 0.5)

    async def work(client: Client) -> None:
        await client.list(PODS)
        cluster.fail_next("list", "pods", status, times=1, message=said)
        with pytest.raises(Forbidden if status == 403 else Unauthorized):
            await client.list(PODS)  # the server was not away
        cluster.fail_next("list", "pods", 0, times=2)  # aiohttp itself tries once more
        cluster.fail_next("list", "pods", status, times=1, message=said)
        await client.list(PODS)
        cluster.fail_next("list", "pods", status, times=1000, message=said)
        with pytest.raises(Forbidden if status == 403 else Unauthorized):
            await client.list(PODS)

    run(target, work)
