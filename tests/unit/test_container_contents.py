"""Files and repositories of runs in containers: where they go, whose they are, and when a repository stays out."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lambdactl.node import blobs, container_argv, container_contents, container_dirs, container_env, paths
from lambdactl.node.container_contents import ContainerFiles, find_owner
from lambdactl.node.container_engine import Engine
from lambdactl.node.errors import NodeError
from lambdactl.node.spec import Job

RUN = "3f0f3c5e-6a30-4b8f-9a52-0d6b1c1f7e11"
FAKE = Path(__file__).resolve().parents[1] / "fakes/docker_cp"
PASSWD = f"root:x:0:0:root:/root:/bin/sh\nann:x:{os.getuid()}:{os.getgid()}::/home/ann:/bin/sh\nbroken\n:x::\n"
GROUP = "root:x:0:\nvideo:x:44:ann\n"


@pytest.mark.parametrize(
    ("base", "path", "joined", "at"),
    [
        ("/work", ".", "/work", "/work"),
        ("/work", "a/../b", "/work/a/../b", "/work/b"),
        ("~/x", "data", "~/x/data", "/home/ann/x/data"),
        ("/work", "~", "~", "/home/ann"),
        ("/work", "~/p", "~/p", "/home/ann/p"),
        ("/", "p", "/p", "/p"),
        ("/work", "/etc/project", "/etc/project", "/etc/project"),
        ("/work", "~ann", "/work/~ann", "/work/~ann"),
        ("/work", "../../../up", "/work/../../../up", "/up"),
    ],
)
def test_where_a_path_leads(base: str, path: str, joined: str, at: str) -> None:
    assert container_dirs.join(base, path) == joined
    assert container_dirs.expand(joined, "/home/ann") == at


@pytest.mark.parametrize(
    ("working_dir", "image_dir", "path", "directory", "repo", "told"),
    [
        (None, "/app", ".", "/app", "/app", None),
        ("/mine", "/app", "src", "/mine", "/mine/src", "/mine"),
        (None, "/app", "~/p", "/app", "~/p", None),
        (None, "", ".", "/workflow", "/workflow", "/workflow"),
        (None, "/", "", "/workflow", "/workflow", "/workflow"),
        (None, "", "/src", "/", "/src", None),
        ("~/w", "", ".", "~/w", "~/w", "~/w"),
    ],
)
def test_working_directory_and_repository(
    working_dir: str | None, image_dir: str, path: str, directory: str, repo: str, told: str | None
) -> None:
    made = job(repo={"manifest": "0" * 64, "path": path}, container={"working_dir": working_dir})
    assert made.container is not None
    assert container_dirs.working_dir(made, made.container, image_dir) == directory
    assert container_dirs.repo_dir(made, made.container, image_dir) == repo
    assert container_dirs.told_working_dir(made, made.container, image_dir) == told
    variables = container_env.environment(made, made.container, gpus=False, image_dir=image_dir)
    assert (variables["DSTACK_WORKING_DIR"], variables["DSTACK_REPO_DIR"]) == (directory, repo)


@pytest.mark.parametrize(
    ("user", "uid", "gid", "home"),
    [("", 0, 0, "/root"), ("root", 0, 0, "/root"), ("4321", 4321, 0, "/"), ("4321:video", 4321, 44, "/"),
     ("ann", os.getuid(), os.getgid(), "/home/ann"), ("ann:7", os.getuid(), 7, "/home/ann")],
)  # fmt: skip
def test_who_the_files_belong_to(user: str, uid: int, gid: int, home: str) -> None:
    owner = find_owner(user, PASSWD, GROUP, None)
    assert (owner.uid, owner.gid) == (uid, gid)
    if user != "ann" or os.getuid():
        assert owner.home == home
    assert find_owner(user, PASSWD, GROUP, "/set").home == "/set"


def test_an_image_without_users_has_root_and_no_others() -> None:
    assert find_owner("0", "", "", None).home == "/root"
    for user, words in (("ann", "no user ann"), ("0:video", "no group video")):
        with pytest.raises(NodeError, match=words):
            find_owner(user, "", "", None)


def job(**fields: Any) -> Job:
    container = {"image": "x", **fields.pop("container", {})}
    nodes = [{"name": "n0", "ip": "10.0.0.1", "ssh_user": "ubuntu"}]
    return Job({"run_id": RUN, "run_name": "t", "nodes": nodes, "script": "id", "container": container, **fields})


class Lab:
    """A content store, and a container's folder under the fake."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "container"
        (self.root / "etc").mkdir(parents=True)
        (self.root / "etc/passwd").write_text(PASSWD)
        monkeypatch.setattr(paths, "STATE", str(root))
        blobs.make_folder()
        env = {**os.environ, "FAKE_CONTAINER": str(self.root)}
        self.files = ContainerFiles(Engine("docker", str(FAKE), {}), "c", env)

    def blob(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        Path(blobs.path(name)).write_bytes(data)
        return name

    def tree(self, *entries: dict[str, Any]) -> str:
        return self.blob(json.dumps({"entries": list(entries)}).encode())

    def place(self, made: Job, image_dir: str = "/app") -> None:
        assert made.container is not None
        image = {"Config": {"WorkingDir": image_dir, "Env": ["PATH=/bin"], "User": "ann"}}
        container_contents.place(made, made.container, image, self.files)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def test_trees_land_with_their_modes_and_what_was_there_stays(lab: Lab) -> None:
    whole = lab.blob(b"#!/bin/sh\n" + b"settings\n")
    (lab.root / "etc/project").mkdir()
    (lab.root / "etc/project/old").write_text("old")
    tool = {"path": "", "mode": 0o755, "mtime": 1_600_000_000, "parts": [[whole, 0, 10]]}
    conf = (
        {"path": "", "dir": True, "mode": 0o700},
        {"path": "deep", "dir": True, "mode": 0o750},
        {"path": "deep/settings.ini", "mode": 0o640, "parts": [[whole, 10, 4], [whole, 14, 5]]},
        {"path": "link", "link": "deep/settings.ini"},
    )
    files = [
        {"manifest": lab.tree(tool), "path": "bin/tool"},
        {"manifest": lab.tree(*conf), "path": "/etc/project"},
        {"manifest": lab.tree(*conf), "path": "~/conf"},
    ]
    lab.place(job(files=files))
    placed = lab.root / "app/bin/tool"
    assert (placed.read_bytes(), placed.stat().st_mode & 0o777) == (b"#!/bin/sh\n", 0o755)
    assert int(placed.stat().st_mtime) == 1_600_000_000
    project = lab.root / "etc/project"
    assert (project / "link").read_text() == "settings\n"
    assert (project / "old").read_text() == "old"
    assert (project / "deep").stat().st_mode & 0o777 == 0o750
    home = find_owner("ann", PASSWD, "", None).home
    assert (lab.root / home[1:] / "conf/link").read_text() == "settings\n"


def test_a_repository_goes_into_an_empty_place_only(lab: Lab) -> None:
    (lab.root / "app/lost+found").mkdir(parents=True)
    manifest = lab.tree({"path": ".git/HEAD", "mode": 0o644, "parts": [[lab.blob(b"ref\n"), 0, 4]]})
    made = job(repo={"manifest": manifest, "path": "."})
    lab.place(made)
    lab.place(made)  # another rank of the run on a volume that both see
    assert (lab.root / "app/.git/HEAD").read_text() == "ref\n"
    (lab.root / "app/.git/lambdactl-run").write_text("another\n")
    with pytest.raises(NodeError, match="/app exists and is not empty; remove it, choose another 'path'"):
        lab.place(made)
    (lab.root / "app/.git/HEAD").write_text("kept")
    lab.place(job(repo={"manifest": manifest, "path": ".", "if_exists": "skip"}))
    assert (lab.root / "app/.git/HEAD").read_text() == "kept"


def test_what_cannot_be_placed_is_one_sentence(lab: Lab) -> None:
    evil = lab.tree({"path": "../evil", "parts": []})
    with pytest.raises(NodeError, match="leads outside"):
        lab.place(job(files=[{"manifest": evil, "path": "x"}]))
    short = lab.tree({"path": "", "parts": [[lab.blob(b"abc"), 0, 9]]})
    with pytest.raises(NodeError, match="too short"):
        lab.place(job(files=[{"manifest": short, "path": "x"}]))
    (lab.root / "file").write_text("a file")
    good = lab.tree({"path": "", "parts": []})
    with pytest.raises(NodeError, match="the run's files cannot be put into the container: no such directory"):
        lab.place(job(files=[{"manifest": good, "path": "/file/x"}]))
    assert not (lab.root / "evil").exists()


def test_the_engines_words() -> None:
    podman = Engine("podman", "/usr/bin/podman", {})
    assert container_argv.copy_out(podman, "c", "/a b")[-3:] == ["cp", "c:/a b", "-"]
    assert container_argv.copy_in(podman, "c", "/a:b") == [*container_argv.client(podman), "cp", "-", "c:/a:b"]
