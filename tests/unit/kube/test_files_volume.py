"""The files volume in the configuration, in `backend check`, in objects, and with pods that are real processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from lambdactl.backends.kubernetes import delivery
from lambdactl.backends.kubernetes.archive import items
from lambdactl.backends.kubernetes.check import check
from lambdactl.backends.kubernetes.client import Client, open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.filestore import open_store
from lambdactl.backends.kubernetes.filesvolume import claim_problem
from lambdactl.backends.kubernetes.objects import job
from lambdactl.backends.kubernetes.resources import PODS
from lambdactl.backends.kubernetes.schedule_task import config
from lambdactl.backends.kubernetes.session import open_session
from lambdactl.backends.kubernetes.settings import FilesVolume, read_settings
from lambdactl.backends.kubernetes.start import Starter, submit
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.run.content import RunContent
from lambdactl.run.deliver import Progress
from lambdactl.run.tree import build, walk
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.unit.kube.bed import limited
from tests.unit.kube.pod_bed import kube_run

FILES = FilesVolume(claim="shared")


def configured(folder: Path, text: str) -> FilesVolume | None:
    file = folder / "config.yml"
    file.write_text(f"backends:\n- type: kubernetes\n  files_volume: {text}\n")
    settings = read_settings(file, ours=True)
    assert settings is not None
    return settings.files_volume


def test_a_claim_alone_or_with_its_bounds(tmp_path: Path) -> None:
    assert configured(tmp_path, "shared") == FilesVolume(claim="shared", unused=14 * 86400, size=None)
    given = configured(tmp_path, "{claim: shared, unused: 30d, size: 100GB}")
    assert given == FilesVolume(claim="shared", unused=30 * 86400, size=100.0)
    with pytest.raises(SpecError, match=r"config\.yml:3: .*files_volume.*name of a PersistentVolumeClaim"):
        configured(tmp_path, "Shared!")
    with pytest.raises(SpecError, match=r"config\.yml:3: .*unused.*at least 3600s"):
        configured(tmp_path, "{claim: shared, unused: 1m}")


def test_the_pods_of_a_schedule_have_the_same_volume(cluster: FakeCluster, target: Target, tmp_path: Path) -> None:
    files = FilesVolume(claim="shared", unused=30 * 86400, size=1.5)
    (tmp_path / "config.yml").write_text(config(replace(target, files_volume=files)))
    settings = read_settings(tmp_path / "config.yml", ours=True)
    assert settings is not None
    assert settings.files_volume == files


@pytest.mark.parametrize(
    ("mode", "phase", "said"),
    [
        (None, "", "the namespace default has no PersistentVolumeClaim shared"),
        ("ReadWriteOnce", "Bound", "is ReadWriteOnce, so pods on several nodes cannot share it"),
        ("ReadWriteMany", "Pending", "is Pending, because no volume fits it"),
        ("ReadWriteMany", "Lost", "is lost"),
    ],
)
def test_check_says_why_a_claim_will_not_do(
    cluster: FakeCluster, target: Target, mode: str | None, phase: str, said: str
) -> None:
    if mode is not None:
        cluster.claim("shared", mode, phase)
    checked = asyncio.run(check(replace(target, files_volume=FILES)))
    (found,) = [finding for finding in checked.findings if finding.check == "files volume"]
    assert (found.status, checked.exit_code) == ("fail", 2)
    assert said in found.value
    assert found.remedy


def test_a_claim_that_nodes_can_share_is_well(cluster: FakeCluster, target: Target) -> None:
    cluster.claim("shared")
    checked = asyncio.run(check(replace(target, files_volume=FILES)))
    assert [f.status for f in checked.findings if f.check == "files volume"] == ["pass"]


def test_only_runs_that_bring_something_mount_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    tree = build(walk(str(tmp_path)))
    content = RunContent(files=((tree, "there"),), blobs=tree.blobs)
    claim = {"name": "lambdactl-store", "persistentVolumeClaim": {"claimName": "shared"}}
    for given, wanted in ((content, True), (RunContent(), False)):
        pod = job(kube_run("commands: [ls]", content=given, files_volume=FILES))["spec"]["template"]["spec"]
        assert (claim in pod["volumes"]) is wanted
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert ("lambdactl-store" in mounts) is wanted


@pytest.mark.skipif(usable() is not None, reason=str(usable()))
def test_runs_and_loaders_share_what_is_there(tmp_path: Path) -> None:
    """A loader brings a tree; a run of two ranks on two nodes then has nothing to send."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "words").write_text("from the volume\n")
    tree = build(walk(str(tmp_path / "from")))
    content = RunContent(files=((tree, "/tmp/there"),), blobs=tree.blobs)
    done: list[Progress] = []

    async def bring(client: Client, pods: list[str]) -> None:
        done.append(await delivery.deliver(client, pods, content, "x", files=FILES, on_progress=lambda _: None))

    async def whole(cluster: FakeCluster) -> None:
        async with open_client(limited(cluster, tmp_path)) as client:
            with pytest.raises(LambdactlError, match="has no PersistentVolumeClaim shared; make it"):
                async with open_store(client, FILES, "x"):
                    pass
            cluster.claim("shared")
            assert await claim_problem(client, FILES) is None
            sent: list[int] = []
            async with open_store(client, FILES, "x", on_sent=sent.append) as store:
                await store.put(items(content)[0])
                await store.put(items(content)[0])
            assert len(sent) == 1
            assert (await client.list(PODS)).items == []
            run = kube_run("nodes: 2\ncommands: [cat /tmp/there/words]", content=content, files_volume=FILES)
            await submit(client, run)
            async with open_session(client, run.run_id, run.run_name) as session:
                assert await asyncio.wait_for(Starter(session, bring=bring).run(), 90)
                while not session.view.ended:
                    await session.change(timeout=1.0)
                status = session.view.status()
                assert status is not None
                assert status.state == "done"

    with FakeCluster([FakeNode("node-1"), FakeNode("node-2")], mode="process") as cluster:
        asyncio.run(whole(cluster))
    assert [one.total for one in done] == [0]
