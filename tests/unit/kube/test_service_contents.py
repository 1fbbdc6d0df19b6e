"""What replicas take with them: packed into Secrets or named in the files volume, and placed by real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambdactl import spec
from lambdactl.backends.kubernetes import packing, service_contents, services
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.fleet import KubeFleet
from lambdactl.backends.kubernetes.resources import NODES, PODS
from lambdactl.backends.kubernetes.service_contents import Contents, prepare
from lambdactl.backends.kubernetes.service_objects import deployment, owned
from lambdactl.backends.kubernetes.service_plan import KubeServicePlan, make_plan
from lambdactl.backends.kubernetes.settings import FilesVolume
from lambdactl.errors import SpecError
from lambdactl.run.content import collect
from lambdactl.run.plan import Overrides
from lambdactl.run.service import ServiceOverrides, replica_task
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live.desk import FLEET, Desk, environment
from tests.unit.kube.bed import limited
from tests.unit.kube.test_services import KINDS, Attached, Bed, fetch

TEXT = """type: service
name: aa
image: any
port: 8000
commands: [c]
files: ["stuff:/tmp/there"]
"""


def planned(
    cluster: FakeCluster, target: Target, folder: Path, text: str = TEXT, *, old: Any = None
) -> tuple[KubeServicePlan, Contents | None]:
    (folder / "service.yml").write_text(text)
    service = spec.load(folder / "service.yml")
    contents = prepare(collect(replica_task(service)))
    fleet = KubeFleet.from_spec(spec.loads(FLEET, kind="fleet"), path=None)
    plan = make_plan(
        service, fleet, target, ServiceOverrides(Overrides()), node_items=cluster.objects(NODES), pods=[],
        contents=contents, old=old,
    )  # fmt: skip
    return plan, contents


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch, target: Target, tmp_path: Path) -> Target:
    monkeypatch.setenv("LAMBDACTL_KUBECONFIG", str(tmp_path / "kubeconfig"))
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "page").write_text("one")
    return target


def names(plan: KubeServicePlan) -> set[str]:
    owner = {"name": "aa", "uid": "1"}
    return {item["metadata"]["name"] for item in owned(plan.service, plan.revision, owner) if item["kind"] == "Secret"}


def template(plan: KubeServicePlan) -> Any:
    return deployment(plan.service, plan.revision)["spec"]["template"]["spec"]


def test_small_ones_are_secrets_of_the_revision(cluster: FakeCluster, anywhere: Target, tmp_path: Path) -> None:
    first, contents = planned(cluster, anywhere, tmp_path)
    assert contents is not None
    assert names(first) == {f"aa-{first.revision}-content-0"}
    (mount,) = [m for m in template(first)["containers"][0]["volumeMounts"] if m["name"] == "lambdactl-content"]
    assert mount["mountPath"] == "/lambdactl/content"
    old = deployment(first.service, first.revision)
    assert planned(cluster, anywhere, tmp_path, old=old)[0].revision == first.revision
    (tmp_path / "stuff" / "page").write_text("two")
    assert planned(cluster, anywhere, tmp_path, old=old)[0].revision != first.revision


def test_more_than_one_secret_holds(cluster: FakeCluster, anywhere: Target, tmp_path: Path) -> None:
    (tmp_path / "stuff" / "noise").write_bytes(os.urandom(2_000_000))
    plan, contents = planned(cluster, anywhere, tmp_path)
    assert contents is not None
    assert contents.parts is not None
    assert len(contents.parts) == 3
    assert all(sum(map(len, part.values())) <= packing.PART for part in contents.parts)
    assert len(names(plan)) == 3


def test_too_much_is_refused_or_in_the_files_volume(
    cluster: FakeCluster, anywhere: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "PARTS", 1)
    (tmp_path / "stuff" / "noise").write_bytes(os.urandom(3 << 20))
    with pytest.raises(SpecError, match=r"'files' bring 3 MB, and more than 0 MB when compressed.*files_volume") as why:
        planned(cluster, anywhere, tmp_path)
    assert why.value.line == 6
    plan, contents = planned(cluster, replace(anywhere, files_volume=FilesVolume(claim="shared")), tmp_path)
    assert contents is not None
    assert names(plan) == set()
    volumes = {volume["name"] for volume in template(plan)["volumes"]}
    assert "lambdactl-store" in volumes
    assert "lambdactl-content" not in volumes
    (config,) = [item for item in owned(plan.service, plan.revision, {"name": "a", "uid": "1"}) if "data" in item][:1]
    assert config["data"]["trees"] == f"{contents.trees[0]}\n"


def test_an_images_own_command_gets_none(cluster: FakeCluster, anywhere: Target, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="need 'commands' or an 'entrypoint'"):
        planned(cluster, anywhere, tmp_path, TEXT.replace("commands: [c]\n", ""))


WEB = """type: service
name: web
image: any
port: 8000
auth: false
files: ["page:/tmp/extra/page"]
repos: ["."]
commands:
  - cp /tmp/extra/page index.html
  - cat >>index.html word
  - exec python3 -m http.server 8000
probes:
  - {type: http, url: /, interval: 1s}
stop_duration: 1s
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    if (why := usable()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("contents")
    with FakeCluster([FakeNode("node-1"), FakeNode("node-2")], mode="process") as cluster:
        env = environment(folder, str(folder), LAMBDACTL_KUBECONFIG=str(folder / "kubeconfig"))
        desk = Desk(folder, limited(cluster, folder), env, "any", fake=True)
        desk.fleet()
        yield Bed(cluster, desk)


def test_replicas_have_them_and_get_changed_ones_by_an_update(bed: Bed) -> None:
    project = bed.desk.folder / "project"
    project.mkdir()
    for words in (["init", "-q"], ["config", "user.email", "a@b"], ["config", "user.name", "a"]):
        git(project, *words)
    (project / "word").write_text("committed")
    (project / "page").write_text("a page, ")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    (project / "word").write_text("and a change")
    (project / "web.yml").write_text(WEB)
    said = bed.desk.run("apply", "-f", "project/web.yml", "-y").stderr
    assert "2 changed files" in said  # the service file is new
    with Attached(bed.desk) as attached:
        assert fetch(attached.port) == "a page, and a change"
    # What the container has written is gone at its next start, and what it brought is there again.
    first = bed.pods()[0]["metadata"]["name"]
    kill(bed, first)
    bed.until(lambda: bed.cluster.pod(first).object["status"]["containerStatuses"][0]["restartCount"])
    bed.until(lambda: bed.get()["state"] == "running")
    (project / "word").write_text("and another")
    bed.desk.run("apply", "-f", "project/web.yml", "-y")
    with Attached(bed.desk) as attached:
        assert fetch(attached.port) == "a page, and another"
    assert len(bed.cluster.left("secrets")) == 1
    bed.desk.run("stop", "web", "-y")
    assert bed.cluster.left(*KINDS) == []


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True)


def kill(bed: Bed, pod: str) -> None:
    uid = bed.cluster.pod(pod).object["metadata"]["uid"]
    bed.cluster.call(lambda: bed.cluster.kubelet.pods[uid].containers["main"].kill(9))  # type: ignore[attr-defined]  # the fake's kubelet that runs processes


@pytest.mark.skipif(usable() is not None, reason=str(usable()))
def test_replicas_take_them_from_the_files_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PARTS", 0)
    monkeypatch.setenv("LAMBDACTL_KUBECONFIG", str(tmp_path / "kubeconfig"))
    (tmp_path / "page").write_text("from the volume")
    # Two trees: what the first has brought is still there when the second has.
    (tmp_path / "word").write_text(" twice")
    text = WEB.replace('repos: ["."]\n', "").replace(
        '["page:/tmp/extra/page"]', '["page:/tmp/extra/page", "word:/root/word"]'
    )

    async def whole(cluster: FakeCluster) -> None:
        target = replace(limited(cluster, tmp_path), files_volume=FilesVolume(claim="shared"))
        plan, _ = planned(cluster, target, tmp_path, text.replace("cp /tmp", "cd /root && cp /tmp"))
        async with open_client(target) as client:
            assert await service_contents.bring(client, plan.service) != 0
            assert await service_contents.bring(client, plan.service) == 0
            await services.create(client, plan.service, plan.revision)
            status = await services.wait_ready(client, plan.service, plan.revision, None, lambda _: None)
            assert status.state == "running"
            (pod,) = [pod["metadata"]["name"] for pod in (await client.list(PODS)).items]
            done = await client.exec(pod, ["sh", "-c", "cat /root/index.html && sh /lambdactl/bin/receive keep"])
            assert (done.rc, done.stdout) == (0, b"from the volume twice")
            assert await services.stop(client, "web")

    with FakeCluster([FakeNode("node-1"), FakeNode("node-2")], mode="process") as cluster:
        cluster.claim("shared")
        asyncio.run(whole(cluster))
