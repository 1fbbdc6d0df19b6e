"""Files and repositories on the controller: what is left out, how trees are cut, what Git is asked for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdactl import spec
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.run import tree
from lambdactl.run.content import RunContent, collect
from lambdactl.run.git import without_credentials
from lambdactl.run.ignore import Ignore, parse
from lambdactl.run.tree import Tree


def git(at: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", "-C", str(at), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def entries(made: Tree) -> dict[str, Any]:
    data = made.blobs[made.manifest].data
    assert data is not None
    return {entry["path"]: entry for entry in json.loads(data)["entries"]}


def content(made: Tree, path: str) -> bytes:
    parts = entries(made)[path]["parts"]
    blobs = {sha: b"".join(made.blobs[sha].read()) for sha, _, _ in parts}
    return b"".join(blobs[sha][offset : offset + length] for sha, offset, length in parts)


def task(folder: Path, **fields: Any) -> spec.TaskSpec:
    path = folder / "t.dstack.yml"
    path.write_text(yaml.safe_dump({"type": "task", "commands": ["true"], **fields}))
    loaded = spec.load(path)
    assert isinstance(loaded, spec.TaskSpec)
    return loaded


NAMES = st.sampled_from(["a", "b", "ab", "a.txt", "b.log", "build", "x y"])
PATTERNS = st.lists(
    st.sampled_from(
        ["a", "*.log", "/a", "a/", "!a", "!*.log", "build/", "a/b", "**/ab", "a/**", "a/**/b", "?", "[ab]",
         "[!a]b", "\\!x", "# no", "", "*", "!a.txt", "/*",
         "x y", "b.log ", "**", "ab*", "!build/", "*/b", "[a-", "/a/b/"]
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(paths=st.lists(st.lists(NAMES, min_size=1, max_size=3), min_size=1, max_size=6), top=PATTERNS, below=PATTERNS)
def test_what_is_ignored_is_what_git_ignores(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]], top: list[str], below: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("ignore")
    git(folder, "init", "-q")
    for words in paths:
        place = folder.joinpath(*words)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("x")
        except OSError:  # a file of that name is where a folder is wanted
            continue
    (folder / ".gitignore").write_text("\n".join(top) + "\n")
    if (folder / "a").is_dir():
        (folder / "a" / ".gitignore").write_text("\n".join(below) + "\n")
    wanted = {name for name in git(folder, "ls-files", "-z", "--others", "--exclude-standard").split("\0") if name}
    made = tree.build(tree.walk(str(folder)))
    assert {path for path, entry in entries(made).items() if "parts" in entry} == wanted, (top, below)


def test_dstackignore_comes_after_gitignore(tmp_path: Path) -> None:
    make(
        tmp_path,
        {".gitignore": "data\n", ".dstackignore": "!data\nsecret/\n", "data": "1", "secret/key": "2", "kept": ""},
    )
    found = entries(tree.build(tree.walk(str(tmp_path))))
    assert set(found) == {"", ".gitignore", ".dstackignore", "data", "kept"}
    assert parse("[\n\\\n") == () or Ignore(None, "", parse("[\n\\\n")).ignores("x", folder=False) is False


def test_a_tree_keeps_modes_links_times_and_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "PIECE", 1 << 20)
    big = os.urandom((5 << 19) + 7)
    (tmp_path / "sub").mkdir(mode=0o750)
    (tmp_path / "big").write_bytes(big)
    (tmp_path / "sub" / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "sub" / "tool").chmod(0o755)
    os.utime(tmp_path / "sub" / "tool", (1_700_000_000, 1_700_000_000))
    (tmp_path / "link").symlink_to("./sub/tool")
    os.mkfifo(tmp_path / "pipe")
    make(tmp_path, {f"many/{number}": f"{number}" for number in range(500)} | {"empty": ""})
    made = tree.build(tree.walk(str(tmp_path)))
    found = entries(made)
    assert content(made, "big") == big
    assert [part[2] for part in found["big"]["parts"]] == [1 << 20, 1 << 20, (1 << 19) + 7]
    assert content(made, "many/77") == b"77"
    assert found["empty"]["parts"] == []
    assert found["link"]["link"] == "./sub/tool"
    assert (found["sub/tool"]["mode"], found["sub/tool"]["mtime"]) == (0o755, 1_700_000_000)
    assert found["sub"] == {"path": "sub", "dir": True, "mode": 0o750}
    assert "pipe" not in found
    assert len(made.blobs) < 40
    assert made.manifest == tree.build(tree.walk(str(tmp_path))).manifest


def test_a_changed_file_changes_few_blobs(tmp_path: Path) -> None:
    make(tmp_path, {f"f{number:04}": f"{number} " * 500 for number in range(3000)})
    before = tree.build(tree.walk(str(tmp_path)))
    (tmp_path / "f1500").write_text("changed, and of another length")
    (tmp_path / "f0001a").write_text("new")
    after = tree.build(tree.walk(str(tmp_path)))
    new = set(after.blobs) - set(before.blobs)
    assert len(before.blobs) > 20
    assert len(new) <= 3, "the manifest and a pack for each change"


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    make(tmp_path, {"a": "x" * 100})
    made = tree.build([tree.Source("", str(tmp_path / "a"))])
    blob = next(blob for blob in made.blobs.values() if blob.data is None)
    (tmp_path / "a").write_text("x")
    with pytest.raises(LambdactlError, match="became shorter"):
        list(blob.read())


def test_files_are_found_from_the_task_files_folder(tmp_path: Path) -> None:
    make(tmp_path, {"conf/a.ini": "a", "tool": "t"})
    wanted = task(tmp_path, files=["conf:/etc/app", "tool", {"local_path": str(tmp_path / "tool"), "path": "~/t"}])
    keys = collect(wanted).job_keys()
    assert [item["path"] for item in keys["files"]] == ["/etc/app", "tool", "~/t"]
    assert keys["files"][1]["manifest"] == keys["files"][2]["manifest"]
    with pytest.raises(SpecError, match=r"t.dstack.yml:3: 'files' names nowhere, which is not a file or folder"):
        collect(task(tmp_path, files=["nowhere"]))
    assert RunContent().job_keys() == {}


@pytest.fixture
def repo(tmp_path: Path, home: Path) -> Path:
    folder = make(tmp_path / "code", {"main.py": "print(1)\n", "run.sh": "true\n", ".gitignore": "*.tmp\n"})
    (folder / "run.sh").chmod(0o755)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    git(folder, "remote", "add", "origin", "https://me:token@example.org/group/code.git")
    return folder


def place(made: Tree, target: Path) -> Path:
    """What a node does, in a few lines."""
    for path, entry in entries(made).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        if entry.get("dir"):
            (target / path).mkdir(exist_ok=True)
        elif "link" in entry:
            (target / path).symlink_to(entry["link"])
        else:
            (target / path).write_bytes(content(made, path))
            (target / path).chmod(entry["mode"])
    return target


def test_a_local_repository_comes_with_history_and_uncommitted_changes(repo: Path, tmp_path: Path) -> None:
    head = git(repo, "rev-parse", "HEAD").strip()
    (repo / "main.py").write_text("print(2)\n")
    make(repo, {"new.py": "new", "junk.tmp": "ignored", "sub/deep.py": "deep"})
    (repo / "run.sh").unlink()
    found = collect(task(tmp_path, repos=["code"])).repo
    assert found is not None
    assert (found.commit, found.changed, found.title) == (head, 4, "https://example.org/group/code.git")
    assert found.repo_id.startswith("code-")
    there = place(found.tree, tmp_path / "there")
    assert git(there, "rev-parse", "HEAD").strip() == head
    assert git(there, "status", "--porcelain").split() == ["M", "main.py", "D", "run.sh", "??", "new.py", "??", "sub/"]
    assert git(there, "log", "--format=%s").strip() == "one"
    assert git(there, "branch", "--show-current").strip() == "main"
    assert (there / "main.py").read_text() == "print(2)\n"
    assert not (there / "junk.tmp").exists()
    assert "token" not in (there / ".git/config").read_text()
    assert git(there, "remote", "get-url", "origin").strip() == "https://example.org/group/code.git"
    assert git(there, "fsck").strip() == ""


def test_the_same_commit_is_the_same_tree_and_a_new_one_sends_little(repo: Path, tmp_path: Path) -> None:
    first = collect(task(tmp_path, repos=["code"])).repo
    again = collect(task(tmp_path, repos=["code"])).repo
    assert first is not None
    assert again is not None
    assert first.tree.manifest == again.tree.manifest
    make(repo, {"more.py": "m"})
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "two")
    later = collect(task(tmp_path, repos=["code"])).repo
    assert later is not None
    there = place(later.tree, tmp_path / "there")
    assert git(there, "log", "--format=%s").split() == ["two", "one"]
    assert git(there, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("fields", "log"),
    [
        ({}, "two\none\n"),
        ({"branch": "side"}, "side\none\n"),
        ({"hash": "FIRST"}, "one\n"),
        ({"hash": "SHORT"}, "one\n"),
    ],
)
def test_a_remote_repository_at_a_branch_or_commit(
    repo: Path, tmp_path: Path, fields: dict[str, str], log: str
) -> None:
    first = git(repo, "rev-parse", "HEAD").strip()
    git(repo, "checkout", "-qb", "side")
    git(repo, "commit", "-qm", "side", "--allow-empty")
    git(repo, "checkout", "-q", "main")
    git(repo, "commit", "-qm", "two", "--allow-empty")
    (repo / "main.py").write_text("never committed")
    given = {key: {"FIRST": first, "SHORT": first[:10]}.get(value, value) for key, value in fields.items()}
    found = collect(task(tmp_path, repos=[{"url": f"file://{repo}", "path": "/code", **given}])).repo
    assert found is not None
    there = place(found.tree, tmp_path / "there")
    assert git(there, "log", "--format=%s") == log
    assert git(there, "status", "--porcelain") == ""
    assert git(there, "branch", "--show-current").strip() == ("" if "hash" in fields else fields.get("branch", "main"))


def test_what_git_cannot_get_is_one_sentence(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for entry, kind, words in (
        ("plain", SpecError, "is not a Git repository"),
        ("absent", SpecError, "is not a Git repository"),
        ({"local_path": "code", "branch": "nope"}, SpecError, "has no branch or commit nope"),
        ({"url": f"file://{repo}", "branch": "nope"}, SpecError, "has no branch or commit nope"),
        ({"url": f"file://{repo}", "hash": "0" * 40}, LambdactlError, "cannot be had|no branch or commit"),
        ({"url": f"file://{tmp_path}/none.git"}, LambdactlError, "cannot be had: .*check that `git fetch`"),
    ):
        with pytest.raises(kind, match=words):
            collect(task(tmp_path, repos=[entry]))
    for entry in ("https://me:pw12@127.0.0.1:9/x.git", {"url": "https://me:pw12@127.0.0.1:9/x.git"}):
        with pytest.raises(LambdactlError) as caught:
            collect(task(tmp_path, repos=[entry]))
        assert "pw12" not in str(caught.value)
    assert without_credentials("git@example.org:a/b.git") == "git@example.org:a/b.git"


def test_a_worktree_a_repository_without_commits_and_submodules(repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "-q", "-b", "wt", str(tmp_path / "wt"))
    found = collect(task(tmp_path, repos=["wt"])).repo
    assert found is not None
    assert git(place(found.tree, tmp_path / "one"), "branch", "--show-current").strip() == "wt"
    blank = make(tmp_path / "blank", {"a": "1"})
    git(blank, "init", "-q")
    found = collect(task(tmp_path, repos=["blank"])).repo
    assert found is not None
    assert git(place(found.tree, tmp_path / "two"), "status", "--porcelain").split() == ["??", "a"]
    git(repo, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repo), "module")
    found = collect(task(tmp_path, repos=["code"])).repo
    assert found is not None
    assert "module/main.py" in entries(found.tree)
    assert not any(path.startswith("module/.git/") for path in entries(found.tree))
