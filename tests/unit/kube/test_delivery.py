"""Files and repositories on their way to ranks: archives, and the real script that takes them, in two shells."""

from __future__ import annotations

import asyncio
import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes import archive as archives
from lambdactl.backends.kubernetes import delivery, receiver
from lambdactl.backends.kubernetes.archive import archive, items
from lambdactl.backends.kubernetes.errors import Unavailable
from lambdactl.backends.kubernetes.payload import container_file
from lambdactl.backends.kubernetes.sockets import Completed
from lambdactl.errors import CapacityError, LambdactlError
from lambdactl.run.content import RunContent
from lambdactl.run.tree import Source, build, walk
from tests.unit.kube.pod_bed import kube_run

SHELLS = [("dash",), ("busybox", "ash")]


def tree_of(folder: Path) -> Any:
    numbers = random.Random(7)
    for name in ("a", "deep/b", "deep/er/" + "long-" * 30, "with blank", "empty"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(numbers.randbytes(numbers.randrange(3000)) if name != "empty" else b"")
    (folder / "large").write_bytes(numbers.randbytes(3 << 20))
    (folder / "a").chmod(0o755)
    (folder / "link").symlink_to("deep/b")
    return build(walk(str(folder)))


def same(one: Path, two: Path) -> bool:
    """Whether two folders have the same contents and modes."""

    def told(folder: Path) -> dict[str, Any]:
        return {
            str(path.relative_to(folder)): (
                os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes(), path.lstat().st_mode
            )
            for path in folder.rglob("*")
        }  # fmt: skip

    return told(one) == told(two)


class Ranks:
    """Stands for `exec` alone: the script runs here, with a folder for each pod; `trouble` may spoil its input."""

    def __init__(self, folder: Path, content: RunContent, shell: tuple[str, ...]) -> None:
        self.folder, self.shell = folder, shell
        self.trouble: Callable[[str, bytes], bytes] = lambda _word, data: data
        self.path = os.environ["PATH"]
        self.calls: list[str] = []
        self.bundles: list[bytes] = []
        listing = delivery.items(content)
        from lambdactl.backends.kubernetes.archive import listing as lines

        for pod in ("demo-0", "demo-1"):
            for name in ("bin", "run", "home", "work"):
                (folder / pod / name).mkdir(parents=True)
            (folder / pod / "bin" / "receive").write_text(container_file("receive.sh"))
            (folder / pod / "bin" / "content").write_text(lines(listing))
            places = [folder / pod / "work", folder / pod / "repo", folder / pod / "home", os.getuid(), os.getgid()]
            (folder / pod / "run" / "places").write_text("".join(f"{place}\n" for place in places))

    async def exec(self, pod: str, command: list[str], *, stdin: bytes, timeout: float) -> Completed:
        self.calls.append(" ".join(command[2:]))
        if command[2] == "parts":
            self.bundles.append(stdin)
        stdin = self.trouble(command[2], stdin)
        base = self.folder / pod
        argv = [*self.shell, str(base / "bin" / "receive"), *command[2:]]
        env = {"LAMBDACTL_DIR": str(base), "PATH": self.path}
        done = await asyncio.to_thread(
            subprocess.run, argv, input=stdin, env=env, capture_output=True, check=False, timeout=timeout
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    async def deliver(self, content: RunContent) -> Any:
        return await delivery.deliver(
            self, list(os.listdir(self.folder)), content, "tiny:1", on_progress=lambda _: None  # type: ignore[arg-type]  # a stand-in with what is asked of it
        )  # fmt: skip


@pytest.fixture(params=SHELLS, ids=["dash", "busybox"])
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    if shutil.which(request.param[0]) is None:
        pytest.skip(f"{request.param[0]} is not installed (scripts/bootstrap unit installs it)")
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (archives, delivery):
        monkeypatch.setattr(module, "PIECE", 1 << 20)


def test_an_archive_is_a_tar_of_the_tree(tmp_path: Path) -> None:
    tree = tree_of(tmp_path / "from")
    (item,) = items(RunContent(files=((tree, "there"),)))
    data = b"".join(data for _, data in archive(item))
    with tarfile.open(fileobj=io.BytesIO(data)) as made:
        assert {(member.uid, member.gid) for member in made} == {(0, 0)}
        made.extractall(tmp_path / "to", filter="tar")
    assert same(tmp_path / "from", tmp_path / "to")


def test_a_changed_file_changes_its_own_piece(tmp_path: Path) -> None:
    folder = tmp_path / "from"
    tree_of(folder)
    for number in range(500):
        (folder / f"small-{number}").write_bytes(bytes([number % 256]) * 2000)

    def pieces() -> set[str]:
        (item,) = items(RunContent(files=((build(walk(str(folder))), "there"),)))
        found = [piece for piece, _ in archive(item)]
        assert max(piece.size for piece in found) <= 1 << 20
        return {piece.sha256 for piece in found}

    before = pieces()
    (folder / "small-77").write_bytes(b"longer than it was before" * 200)
    assert len(pieces() - before) == 1
    assert len(before) > 8


def test_folders_and_single_files_come_to_their_places(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = tree_of(tmp_path / "from")
    one = build([Source("", str(tmp_path / "from" / "a"))])
    content = RunContent(files=((tree, "sub/there"), (one, "~/x/one")), blobs=tree.blobs)
    ranks = Ranks(tmp_path / "pods", content, shell)
    done = asyncio.run(ranks.deliver(content))
    for pod in ("demo-0", "demo-1"):
        assert same(tmp_path / "from", tmp_path / "pods" / pod / "work" / "sub" / "there")
        assert (tmp_path / "pods" / pod / "home" / "x" / "one").read_bytes() == (tmp_path / "from" / "a").read_bytes()
        assert not list((tmp_path / "pods" / pod / "data" / "parts").iterdir())
        assert (tmp_path / "pods" / pod / "run" / "delivered").exists()
    assert done.sent > 6 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_a_user_that_the_image_knows_by_name_owns_what_comes(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = tree_of(tmp_path / "from")
    content = RunContent(files=((tree, "there"),), blobs=tree.blobs)
    ranks = Ranks(tmp_path / "pods", content, shell)
    for pod in ("demo-0", "demo-1"):
        places = tmp_path / "pods" / pod / "run" / "places"
        places.write_text("\n".join([*places.read_text().splitlines()[:3], "65534", "65533", ""]))
        (tmp_path / "pods" / pod / "work" / "there").mkdir()  # somebody else's
    asyncio.run(ranks.deliver(content))
    there = tmp_path / "pods" / "demo-1" / "work" / "there"
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in there.rglob("*")} == {(65534, 65533)}
    assert there.stat().st_uid == 0
    assert same(tmp_path / "from", there)


def test_a_damaged_or_cut_piece_is_sent_again_and_the_others_are_not(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = tree_of(tmp_path / "from")
    content = RunContent(files=((tree, "there"),), blobs=tree.blobs)
    ranks = Ranks(tmp_path / "pods", content, shell)
    bad = iter([b"short", None, b"x" * (1 << 20)])

    def trouble(word: str, data: bytes) -> bytes:
        if word == "parts" and (spoilt := next(bad, b"")) != b"":
            if spoilt is None:
                raise Unavailable("the connection was cut.")
            return spoilt
        return data

    ranks.trouble = trouble
    asyncio.run(ranks.deliver(content))
    assert same(tmp_path / "from", tmp_path / "pods" / "demo-1" / "work" / "there")
    calls = [call for call in ranks.calls if call.startswith("parts")]
    assert len(calls) == 2 * len(set(ranks.bundles)) + 3


def test_what_keeps_files_from_their_place_is_a_sentence(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = tree_of(tmp_path / "from")
    one = build([Source("", str(tmp_path / "from" / "a"))])
    content = RunContent(files=((one, str(tmp_path / "from")),), blobs=one.blobs)
    with pytest.raises(LambdactlError, match=r"demo-\d: .*/from is a folder on this rank, and the upload is a file\.$"):
        asyncio.run(Ranks(tmp_path / "pods", content, shell).deliver(content))

    content = RunContent(files=((tree, "there"),), blobs=tree.blobs)
    ranks = Ranks(tmp_path / "without", content, shell)
    (tmp_path / "tools").mkdir()
    for tool in ("cat", "mkdir", "rm", "mv", "ls", "wc", *{word for word in shell if word != "ash"}):
        (tmp_path / "tools" / tool).symlink_to(str(shutil.which(tool)))
    script = tmp_path / "without" / "demo-0" / "bin" / "receive"
    text = script.read_text().replace("PATH=${PATH:+$PATH:}/usr", "PATH=$PATH:/nowhere/usr")
    text = text.replace(":/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "")
    for pod in ("demo-0", "demo-1"):
        (tmp_path / "without" / pod / "bin" / "receive").write_text(text)
    ranks.path = str(tmp_path / "tools")
    ranks.shell = (str(shutil.which(shell[0])), *shell[1:])
    if shell == ("dash",):  # busybox' own shell has its tar built in
        with pytest.raises(LambdactlError, match="the image tiny:1 has no tar, which 'files' and 'repos' need"):
            asyncio.run(ranks.deliver(content))


def test_a_full_disk() -> None:
    said = Completed(1, b"", b"cat: write error: No space left on device\nwhat the run brings along cannot be stored\n")
    error = receiver.refused("demo-0", said)
    assert isinstance(error, CapacityError)
    assert str(error).startswith("demo-0: its node's disk has no room for the run's files (cat: write error: No space")


def test_the_objects_of_a_run_have_no_contents(tmp_path: Path) -> None:
    from lambdactl.backends.kubernetes.objects import job, owned

    tree = tree_of(tmp_path / "from")
    run = kube_run("commands: [ls]", content=RunContent(files=((tree, "there"),), blobs=tree.blobs), max_duration=60)
    made = job(run)
    names = [item["kind"] for item in owned(run, {"name": "demo", "uid": "1"})]
    assert names == ["ConfigMap", "Service"]
    volumes = made["spec"]["template"]["spec"]["volumes"]
    assert {"name": "lambdactl-data", "emptyDir": {}} in volumes
    assert made["spec"]["activeDeadlineSeconds"] > 86400
