"""What a schedule's runs bring: from the files volume, and from a repository that the pod fetches at each time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from lambdactl.backends.kubernetes import schedules
from lambdactl.backends.kubernetes.archive import archive, items, pieces
from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.schedule_content import bring, taken
from lambdactl.backends.kubernetes.schedule_task import content_of
from lambdactl.backends.kubernetes.settings import FilesVolume
from lambdactl.errors import LambdactlError
from lambdactl.run.content import RunContent, collect
from lambdactl.spec import loads
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live.desk import Desk, environment
from tests.unit.kube.bed import ROOT, limited
from tests.unit.kube.test_schedules import message

AGE = 30 * 86400


def test_archives_come_out_as_they_were_made(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes, links, large and empty files, through Secrets and through the volume."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data" / "below"
    data.mkdir(parents=True)
    (data / "large").write_bytes(os.urandom(3 << 20))
    (data / "program").write_text("x")
    (data / "program").chmod(0o755)
    (data / "link").symlink_to("program")
    task = loads('type: task\ncommands: [x]\nfiles: ["data:there", "data/below/program:/bin/one"]', kind="task")
    content = collect(task)
    whole = [b"".join(data for _, data in archive(item)) for item in items(content)]

    brought = bring(content, task, target)
    folder = tmp_path / "secrets"
    folder.mkdir()
    for part in brought.parts:
        for key, value in part.items():
            (folder / key).write_bytes(value)
    again = taken(list(brought.about), folder, tmp_path / "scratch")
    assert [b"".join(data for _, data in archive(item)) for item in items(again)] == whole
    assert [(item.kind, item.path, item.tree.size) for item in items(again)] == [
        (item.kind, item.path, item.tree.size) for item in items(content)
    ]

    target = replace(target, files_volume=FilesVolume(claim="shared"))
    brought = bring(content, task, target)
    assert (brought.parts, len(brought.trees)) == ((), 2)
    store = tmp_path / "store"
    store.mkdir()
    for name, item in zip(brought.trees, items(content), strict=True):
        (store / name).write_text("".join(piece.line for piece in pieces(item)))
        for piece, value in archive(item):
            (store / piece.sha256).write_bytes(value)
    again = taken(list(brought.about), tmp_path, tmp_path, store)
    assert [b"".join(data for _, data in archive(item)) for item in items(again)] == whole
    assert [list(pieces(item)) for item in items(again)] == [list(pieces(item)) for item in items(content)]
    (store / pieces(items(content)[1])[0].sha256).write_text("of somebody else")
    with pytest.raises(LambdactlError, match="not all in the files volume any more; hand the task over again"):
        list(archive(items(again)[1]))
    (store / brought.trees[0]).write_text("of somebody else")
    with pytest.raises(LambdactlError, match="not all in the files volume any more; hand the task over again"):
        taken(list(brought.about), tmp_path, tmp_path, store)


def test_who_cannot_look_at_schedules_removes_nothing(cluster: FakeCluster, target: Target) -> None:
    async def body() -> list[str] | None:
        async with open_client(target) as client:
            return await schedules.trees(client)

    assert asyncio.run(body()) == []
    cluster.fail_next("list", "cronjobs", 403, message='cronjobs is forbidden: User "x" cannot list resource')
    assert asyncio.run(body()) is None


class Bed:
    """A cluster with a claim `shared`, whose image `controller` has this checkout's lambdactl.

    Attributes:
        store: the claim's folder of trees and pieces.
        served: a folder that the pods of that image see, at its own path.
    """

    def __init__(self, desk: Desk, cluster: FakeCluster, store: Path, served: Path) -> None:
        self.desk, self.cluster, self.store, self.served = desk, cluster, store, served

    def age(self) -> None:
        """Nothing in the volume has been used for a month."""
        for path in self.store.iterdir():
            os.utime(path, (time.time() - AGE, time.time() - AGE))

    def said(self, name: str, part: str) -> str:
        """What `ps` says of a schedule, as soon as it has this part."""
        return message(self.desk, name, part)

    def logged(self, name: str, text: str) -> None:
        """Wait until the log of the schedule's run is this."""
        deadline = time.monotonic() + 60
        while (done := self.desk.run("logs", name, rc=None)).stdout != text:
            assert time.monotonic() < deadline, done
            time.sleep(0.3)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    if (why := usable()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("schedules")
    layer, served, pods = folder / "layer", folder / "served", folder / "pods"
    for made in (layer, served, pods):
        made.mkdir()
    (layer / "lambdactl").write_text(f'#!/bin/sh\nexec {sys.executable} -m lambdactl "$@"\n')
    (layer / "lambdactl").chmod(0o755)
    here = list(dict.fromkeys([ROOT, Path(sys.base_prefix), Path(sys.prefix)]))
    shares = {"controller": [*here, (layer, "/usr/local/sbin"), served]}
    images = {"any": Path("/"), "controller": Path("/")}
    nodes = [FakeNode("node-1"), FakeNode("node-2")]
    with FakeCluster(nodes, mode="process", tls=True, images=images, shares=shares, root=pods) as cluster:
        target = limited(cluster, folder)
        cluster.claim("shared")
        config = folder / "config" / "lambdactl" / "config.yml"
        config.parent.mkdir(parents=True)
        backend = {"type": "kubernetes", "kubeconfig": {"filename": str(folder / "kubeconfig")}, "image": "any"}
        backend |= {"controller_image": "controller", "files_volume": "shared"}
        config.write_text(json.dumps({"backends": [backend]}))
        desk = Desk(folder, target, environment(folder, str(folder)), "any", fake=True)
        desk.fleet()
        yield Bed(desk, cluster, pods / "claims" / "default-shared" / "trees", served)


def crons() -> tuple[list[str], list[float]]:
    """Two expressions, due in this minute and in ten of them, and these minutes."""
    moments = [time.time() // 60 * 60 + 600 * number for number in range(2)]
    return [time.strftime("%M %H * * *", time.gmtime(moment)) for moment in moments], moments


def test_the_files_volume_has_them_for_as_long_as_the_schedule_is_there(bed: Bed) -> None:
    at = bed.desk
    (at.folder / "data").mkdir()
    (at.folder / "data" / "word").write_text("from the volume\n")
    (at.folder / "data" / "noise").write_bytes(os.urandom(3 << 20))
    (at.folder / "other").write_text("of another run")
    times, moments = crons()
    text = f"""
schedule: {{cron: {json.dumps(times)}}}
nodes: 2
files: ["data:/there"]
commands: ["wc -c </there/noise; cat /there/word"]
"""
    name, file = at.name("stored"), at.task("stored", text)
    assert "sent 3MB." in at.run("apply", "-f", file, "-y").stderr
    assert bed.cluster.left("secrets") == [f"secrets/{name}-cron"]
    mine = {path.name for path in bed.store.iterdir()}
    # Unchanged files cost nothing, and a changed one its own piece.
    at.run("stop", name, "-y")
    assert "the files volume has every file already." in at.run("apply", "-f", file, "-y").stderr

    assert bed.cluster.fire(f"{name}-cron", at=moments[0])
    assert bed.said(name, "was started at")
    log = "3145728\nfrom the volume\n"
    bed.logged(name, log)
    assert {path.name for path in bed.store.iterdir()} == mine  # nothing was sent by the pod, neither

    # Whoever removes what is unused leaves it.
    other = at.task("other", 'files: ["other:/other"]\ncommands: ["cat /other"]')
    bed.age()
    (bed.store / ("f" * 64)).write_text("of nobody")
    bed.age()
    at.run("apply", "-f", other, "-y")
    left = {path.name for path in bed.store.iterdir()}
    assert mine <= left
    assert "f" * 64 not in left
    of_other = left - mine | {hashlib.sha256(bytes(1024)).hexdigest()}  # every archive ends alike

    # What somebody has removed is said.
    for path in bed.store.iterdir():
        if path.name in mine:
            path.unlink()
    assert bed.cluster.fire(f"{name}-cron-1", at=moments[1])
    text = bed.said(name, "was missed at")
    assert "the files that were handed over are not all in the files volume any more; hand the task over again" in text
    at.run("stop", name, "-y")
    assert "sent 3MB." in at.run("apply", "-f", file, "-y").stderr

    # Without the schedule they are nobody's.
    at.run("stop", name, "-y")
    bed.age()
    at.run("apply", "-f", other, "-y")
    assert {path.name for path in bed.store.iterdir()} == of_other


def git(folder: Path, *words: str) -> str:
    argv = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, word: str) -> str:
    (folder / "word").write_text(f"{word}\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", word)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with the branches main and dev."""
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "main")
    git(folder, "checkout", "-q", "-b", "dev")
    commit(folder, "dev")
    return folder


def test_a_branch_moves_and_a_hash_does_not(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "about.json").write_text('{"content": []}')
    first, url = git(repository, "rev-parse", "dev"), f"file://{repository}"
    number = iter(range(9))

    def fetched(entry: str) -> str:
        """The commit that a pod gets; each pod has a cache of its own."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{next(number)}"))
        task = loads(f"type: task\ncommands: [x]\nrepos: [{{url: {url}{entry}}}]", kind="task")
        content = content_of(SimpleNamespace(task=task), tmp_path, tmp_path)  # type: ignore[arg-type]  # a stand-in with what is asked of it
        assert content.repo is not None
        return content.repo.commit

    assert fetched(", branch: dev") == first
    second = commit(repository, "later")
    assert fetched(", branch: dev") == second
    assert fetched(f", hash: {first}") == first
    assert fetched(", branch: main") == git(repository, "rev-parse", "main")
    with pytest.raises(LambdactlError, match="has no branch or commit gone"):
        fetched(", branch: gone")


class WithLogin(SimpleHTTPRequestHandler):
    """A server of files that asks for the login ada:pw12."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Basic " + base64.b64encode(b"ada:pw12").decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_args: object) -> None:
        pass


def test_a_login_in_the_url_is_used_and_not_told(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "about.json").write_text('{"content": []}')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    git(repository, "update-server-info")
    handler = partial(WithLogin, directory=str(repository / ".git"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def fetched(login: str) -> RunContent:
            url = f"http://{login}127.0.0.1:{server.server_port}/"
            task = loads(f"type: task\ncommands: [x]\nrepos: [{{url: '{url}', branch: dev}}]", kind="task")
            return content_of(SimpleNamespace(task=task), tmp_path, tmp_path)  # type: ignore[arg-type]  # a stand-in with what is asked of it

        try:
            found = fetched("ada:pw12@").repo
            assert found is not None
            assert (found.commit, found.title) == (
                git(repository, "rev-parse", "dev"), f"http://127.0.0.1:{server.server_port}/",
            )  # fmt: skip
            for login in ("ada:wrong-pw@", ""):
                with pytest.raises(LambdactlError, match="cannot be had: ") as why:
                    fetched(login)
                assert "wrong-pw" not in str(why.value)
        finally:
            server.shutdown()


def test_a_repository_is_fetched_anew_at_each_time(bed: Bed, repository: Path) -> None:
    at = bed.desk
    served = bed.served / "code"
    shutil.move(repository, served)
    times, moments = crons()
    text = f"""
schedule: {{cron: {json.dumps(times)}}}
repos: [{{url: "file://{served}", branch: dev}}]
commands: ["cat word .git/HEAD"]
"""
    name = at.name("fetched")
    at.run("apply", "-f", at.task("fetched", text), "-y")
    commit(served, "after it was handed over")
    assert bed.cluster.fire(f"{name}-cron", at=moments[0])
    assert bed.said(name, "was started at")
    log = "after it was handed over\nref: refs/heads/dev\n"
    bed.logged(name, log)
    served.rename(bed.served / "away")
    assert bed.cluster.fire(f"{name}-cron-1", at=moments[1])
    text = bed.said(name, "was missed at")
    assert f"the repository file://{served} cannot be had: " in text
    assert "does not appear to be a git repository" in text
    at.run("stop", name, "-y")
