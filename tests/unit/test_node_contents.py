"""Files, repositories and volumes on a node: the content store, and a run that gets its trees before it starts."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.node_bed import PYTHONS, Bed, Node, Refused

ROOT = os.geteuid() == 0


@pytest.fixture(params=PYTHONS, ids=lambda path: "py38" if "3.8" in path else "py")
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 2)
    yield bed
    bed.close()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def frames(*blobs: bytes) -> bytes:
    return b"".join(b"B %s %d\n" % (sha(data).encode(), len(data)) + data for data in blobs)


def receive(node: Node, stream: bytes) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(node.argv("receive"), env=node.env, input=stream, capture_output=True, timeout=60)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def tree(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"entries": list(entries)}).encode()


def file(path: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"path": path, "mode": 0o644, "parts": [[sha(data), 0, len(data)]], **more}


def store(bed: Bed, manifest: bytes, *blobs: bytes) -> str:
    for node in bed.nodes:
        assert receive(node, frames(manifest, *blobs))[0] == 0
    return sha(manifest)


def test_the_store_keeps_what_is_right_and_says_what_is_missing(bed: Bed) -> None:
    node = bed.nodes[0]
    good, other = b"good" * 1000, b"other"
    code, said = receive(node, frames(good))
    assert (code, said) == (0, [{"stored": sha(good)}])
    answer = node.call("have", blobs=[[sha(good), len(good)], [sha(other), len(other)]])
    assert answer["missing"] == [sha(other)]
    assert answer["free"] > 0
    assert (node.state / "blobs").stat().st_mode & 0o777 == 0o700
    lie = b"B %s 5\nwrong" % sha(other).encode()
    cut = b"B %s 500\nshort" % sha(other).encode()
    for stream in (lie, cut):
        code, said = receive(node, stream)
        assert code == 1
        assert said[0]["error"]["code"] == "damaged"
    assert os.listdir(node.state / "blobs") == [sha(good)]
    code, said = receive(node, b"B ../../etc 1\nx")
    assert said[0]["error"]["code"] == "bad-request"
    huge = b"B %s %d\n" % (sha(other).encode(), 1 << 60)
    code, said = receive(node, huge)
    assert said[0]["error"]["code"] == "no-space"
    assert "is full" in said[0]["error"]["message"]


def test_a_node_passes_blobs_on_to_its_peer(bed: Bed) -> None:
    data = os.urandom(3 << 20)
    assert receive(bed.nodes[0], frames(data, b"two"))[0] == 0
    peer = {"name": "n1", "ip": "127.0.0.2", "ssh_user": "root"}
    request = json.dumps({"to": peer, "blobs": [sha(data), sha(b"two")]}).encode() + b"\n"
    done = subprocess.run(bed.nodes[0].argv("push"), env=bed.nodes[0].env, input=request, capture_output=True)
    assert done.returncode == 0, done.stdout
    assert (bed.nodes[1].state / "blobs" / sha(data)).read_bytes() == data
    assert bed.nodes[1].call("have", blobs=[[sha(b"two"), 3]])["missing"] == []


def test_unused_blobs_go_and_those_of_active_runs_stay(bed: Bed) -> None:
    node = bed.nodes[0]
    manifest = store(bed, tree(file("a", b"needed")), b"needed", b"stale", b"fresh")
    run = bed.start("sleep 1000", 1, files=[{"manifest": manifest, "path": "x"}])
    bed.running(run)
    blobs = node.state / "blobs"
    long_ago = 1_600_000_000
    for name in (sha(b"needed"), sha(b"stale"), manifest):
        os.utime(blobs / name, (long_ago, long_ago))
    (blobs / ".new-cut").write_bytes(b"x")
    os.utime(blobs / ".new-cut", (long_ago, long_ago))
    node.call("gc")
    assert set(os.listdir(blobs)) == {sha(b"needed"), sha(b"fresh"), manifest}
    node.call("stop", run=run, abort=True)
    bed.finish(run)
    for name in (sha(b"needed"), manifest):
        os.utime(blobs / name, (long_ago, long_ago))
    node.call("gc")
    assert os.listdir(blobs) == [sha(b"fresh")]


def test_files_land_with_modes_links_and_folders_before_any_rank_starts(bed: Bed, tmp_path: Path) -> None:
    big = os.urandom(300_000)
    entries = [
        {"path": "", "dir": True},
        {"path": "sub", "dir": True, "mode": 0o750},
        file("sub/tool", b"#!/bin/sh\necho tool\n", mode=0o755, mtime=1_700_000_000),
        {"path": "sub/link", "link": "tool"},
        {"path": "big", "mode": 0o600, "parts": [[sha(big), 0, 100_000], [sha(big), 100_000, 200_000]]},
        {"path": "empty", "mode": 0o644, "parts": []},
    ]
    manifest = store(bed, tree(*entries), b"#!/bin/sh\necho tool\n", big)
    one = store(bed, tree(file("", b"alone")), b"alone")
    script = "up/sub/link; sha256sum < up/big; cat single; stat -c %a up/sub up/big up/empty; stat -c %Y up/sub/tool"
    uploads = [{"manifest": manifest, "path": "up"}, {"manifest": one, "path": "single"}]
    run = bed.start(script, 2, files=uploads, working_dir=str(tmp_path / "wd"))
    assert bed.finish(run)["state"] == "done"
    log = bed.nodes[1].log(run).decode()
    assert log == f"tool\n{sha(big)}  -\nalone750\n600\n644\n1700000000\n"


@pytest.mark.parametrize("order", ["any", "master-first", "workers-first"])
def test_no_rank_starts_before_all_are_prepared_and_a_stop_is_obeyed_meanwhile(bed: Bed, order: str) -> None:
    manifest = store(bed, tree(file("a", b"x")), b"x")
    job = {"files": [{"manifest": manifest, "path": "f"}], "startup_order": order}
    run = bed.start("echo started", 2, **job)
    assert bed.finish(run)["gang"]["state"] == "done"
    blob = bed.nodes[1].state / "blobs" / sha(b"x")
    blob.unlink()
    os.mkfifo(blob)  # nobody ever writes to it: rank 1 stays in its preparation
    run = bed.start("echo started", 2, **job)
    value = bed.until(run, 0, lambda value: value["prepared"])
    assert (value["state"], bed.nodes[1].rank(run)["state"]) == ("waiting", "waiting")
    assert not bed.nodes[1].rank(run)["prepared"]
    bed.nodes[0].call("stop", run=run)
    assert [bed.finish(run, rank)["state"] for rank in (0, 1)] == ["stopped", "stopped"]
    assert bed.nodes[0].log(run) == b""
    bed.no_runner(run)


def test_a_repository_is_the_working_directory_and_belongs_to_the_run(bed: Bed) -> None:
    manifest = store(bed, tree({"path": ".git", "dir": True}, file("code.py", b"print(1)")), b"print(1)")
    job = {"repo": {"manifest": manifest, "path": "."}, "repo_id": "mine-1", "working_dir": None}
    run = bed.start('pwd; ls; echo "$DSTACK_REPO_DIR $DSTACK_REPO_ID $DSTACK_WORKING_DIR"', 1, **job)
    assert bed.finish(run)["state"] == "done"
    place = str(bed.nodes[0].run_dir(run) / "work")
    assert bed.nodes[0].log(run).decode() == f"{place}\ncode.py\n{place} mine-1 {place}\n"
    bed.nodes[0].call("forget", run=run)
    assert not os.path.exists(place)


def test_a_folder_that_exists_is_an_error_or_skipped(bed: Bed, tmp_path: Path) -> None:
    manifest = store(bed, tree(file("code.py", b"new")), b"new")
    target = tmp_path / "there"
    target.mkdir()
    (target / "old").write_text("old")
    repo = {"manifest": manifest, "path": str(target)}
    run = bed.start("true", 1, repo=repo)
    value = bed.finish(run)
    assert (value["state"], value["reason"]) == ("failed", "start-failed")
    assert f"{target} exists and is not empty" in value["message"]
    run = bed.start("ls", 1, repo={**repo, "if_exists": "skip"}, working_dir=str(target))
    assert bed.finish(run)["state"] == "done"
    assert bed.nodes[0].log(run) == b"old\n"
    # What an interrupted checkout left is gone on with; on a shared file system, the second rank finds it done.
    (target / "old").unlink()
    (target / ".git").mkdir()
    (target / ".git/lambdactl-partial").write_text("x")
    run = bed.start("cat code.py", 2, repo=repo, working_dir=str(target))
    assert bed.finish(run)["gang"]["state"] == "done"
    assert bed.nodes[1].log(run) == b"new"


def test_what_is_wrong_with_a_job_is_said_before_it_starts(bed: Bed) -> None:
    absent = sha(b"absent")
    for fields, words in (
        ({"files": [{"manifest": "x", "path": "y"}]}, "sha256"),
        ({"volumes": [{"source": "data", "target": "/x"}]}, "absolute path"),
        ({"volumes": [{"source": "/x", "target": "/proc"}]}, "cannot be mounted over"),
    ):
        with pytest.raises(Refused, match=words):
            bed.start("true", 1, **fields)
        bed.nodes[0].call("release", run_id=bed.runs[-1])
    with pytest.raises(Refused, match="not in this node's store"):
        bed.start("true", 1, files=[{"manifest": absent, "path": "y"}])


def test_a_path_that_leads_outside_or_cannot_be_written_fails_the_run(bed: Bed, tmp_path: Path) -> None:
    manifest = store(bed, tree(file("../../evil", b"x")), b"x")
    run = bed.start("true", 1, files=[{"manifest": manifest, "path": "t"}])
    assert "leads outside" in bed.finish(run)["message"]
    (tmp_path / "plain").write_text("")
    manifest = store(bed, tree(file("", b"x")), b"x")
    run = bed.start("true", 1, files=[{"manifest": manifest, "path": str(tmp_path / "plain" / "below")}])
    value = bed.finish(run)
    assert value["reason"] == "start-failed"
    assert "plain" in value["message"]


@pytest.mark.skipif(not ROOT, reason="mounting needs root")
def test_volumes_are_seen_by_the_run_only(bed: Bed, tmp_path: Path) -> None:
    source, target = tmp_path / "data", tmp_path / "mnt"
    volumes = [{"source": str(source), "target": str(target)}]
    run = bed.start("echo hello > $T/file; cat $T/file", 1, volumes=volumes, env={"T": str(target)})
    assert bed.finish(run)["state"] == "done"
    assert bed.nodes[0].log(run) == b"hello\n"
    assert (source / "file").read_text() == "hello\n"
    assert source.stat().st_mode & 0o777 == 0o777
    assert list(target.iterdir()) == []
    (tmp_path / "blocked").write_text("")
    wrong = [{"source": str(tmp_path / "blocked/x"), "target": str(target)}]
    run = bed.start("true", 1, volumes=wrong)
    assert "cannot be made" in bed.finish(run)["message"]
    run = bed.start("echo on", 1, volumes=[{**wrong[0], "optional": True}])
    assert bed.finish(run)["state"] == "done"
