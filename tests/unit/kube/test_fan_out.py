"""Files from rank to rank, and by the files volume: real entrypoints, real sshd, as many ranks as there are addresses.

`exec` alone is stood for: the script runs here, with the folder of its pod, and what it is given is counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes import delivery
from lambdactl.backends.kubernetes.archive import items
from lambdactl.backends.kubernetes.client import Listing
from lambdactl.backends.kubernetes.errors import Forbidden, Unavailable
from lambdactl.backends.kubernetes.filestore import FileStore
from lambdactl.backends.kubernetes.labels import SCHEDULE, SCHEDULE_FACTS
from lambdactl.backends.kubernetes.receiver import Receiver
from lambdactl.backends.kubernetes.resources import Resource
from lambdactl.backends.kubernetes.settings import FilesVolume
from lambdactl.backends.kubernetes.sockets import Completed
from lambdactl.run.content import RunContent
from lambdactl.run.deliver import Progress
from lambdactl.run.tree import Source, build, walk
from tests.bed.sshd import SSHD
from tests.unit.kube.pod_bed import Pod, kube_run
from tests.unit.kube.test_delivery import same

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path(SSHD).exists(), reason="needs root, and sshd (scripts/bootstrap unit installs it)"
)
SIZE = 3 << 20


class Gang:
    """Ranks that wait for their start, and the way to them."""

    def __init__(self, content: RunContent, ranks: int, *, volume: Path | None = None) -> None:
        self.run = kube_run("nodes: 8\ncommands: [ls]", keys=True, run_id=str(uuid.uuid4()), content=content)
        self.pods = {f"rank-{rank}": Pod(self.run, rank, f"127.0.4.{rank + 10}") for rank in range(ranks)}
        self.content = content
        self.sent: dict[str, int] = dict.fromkeys(self.pods, 0)
        self.environ: dict[str, dict[str, str]] = {}
        self.trouble: Callable[[str, str], None] = lambda _pod, _word: None
        for pod in self.pods.values():
            if volume is not None:
                (pod.base / "store").symlink_to(volume)
        self.notes: list[str] = []
        self.schedules: tuple[Any, ...] = ()

    async def exec(self, pod: str, command: list[str], *, stdin: bytes, timeout: float) -> Completed:
        self.trouble(pod, command[2])
        self.sent[pod] += len(stdin)
        base = self.pods[pod].base
        env = self.pods[pod].env | {"HOSTNAME": pod} | self.environ.get(pod, {})
        argv = ["/bin/sh", str(base / "bin" / "receive"), *command[2:]]
        done = await asyncio.to_thread(
            subprocess.run, argv, input=stdin, env=env, capture_output=True, check=False, timeout=timeout
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    async def list(self, _resource: Resource, *, labels: str) -> Listing:
        """Schedules."""
        assert labels
        for one in self.schedules:
            if isinstance(one, Forbidden):
                raise one
        return Listing(list(self.schedules), "1")

    def deliver(self, files: FilesVolume | None = None) -> Progress:
        seen: list[int] = []
        done = asyncio.run(
            delivery.deliver(
                self, list(self.pods), self.content, "tiny:1", files=files, notify=self.notes.append,  # type: ignore[arg-type]  # a stand-in with what is asked of it
                on_progress=lambda told: seen.append(told.sent + told.passed_on),
            )
        )  # fmt: skip
        assert seen == sorted(seen)
        assert not seen or seen[-1] == done.total
        return done

    def place(self, rank: int) -> Path:
        return self.pods[f"rank-{rank}"].base / "home" / "there"


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Callable[..., Gang]]:
    made: list[Gang] = []

    def start(ranks: int, folder: Path, volume: Path | None = None) -> Gang:
        tree = build(walk(str(folder)))
        made.append(Gang(RunContent(files=((tree, "there"),), blobs=tree.blobs), ranks, volume=volume))
        return made[-1]

    yield start
    for one in made:
        for pod in one.pods.values():
            pod.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "large").write_bytes(os.urandom(SIZE))
    (tmp_path / "from" / "deep" / "small").write_text("small\n")
    return tmp_path / "from"


def test_one_copy_leaves_this_machine_for_eight_ranks(gang: Any, folder: Path) -> None:
    eight = gang(8, folder)
    done = eight.deliver()
    assert all(same(folder, eight.place(rank)) for rank in range(8))
    listing = 8 << 10  # what one rank is told to pass on, in all
    assert SIZE < sum(eight.sent.values()) < SIZE + (64 << 10)
    assert sum(eight.sent[f"rank-{rank}"] for rank in range(1, 8)) < listing
    assert (done.sent, done.passed_on) == (SIZE + 6, 7 * (SIZE + 6))
    # Nobody may bring anything once it is there.
    assert "lambdactl-receive" in (eight.pods["rank-0"].base / "bin" / "login").read_text()
    assert all((pod.base / "run" / "delivered").exists() for pod in eight.pods.values())


def test_a_rank_that_others_do_not_reach_is_sent_to(gang: Any, folder: Path) -> None:
    three = gang(3, folder)
    three.environ["rank-2"] = {"LAMBDACTL_NODE_IP": "127.0.4.99"}  # nobody listens there
    three.environ["rank-1"] = {"PATH": "/nowhere"}
    three.deliver()
    assert all(same(folder, three.place(rank)) for rank in range(3))
    assert three.sent["rank-0"] > SIZE
    assert three.sent["rank-2"] > SIZE
    assert three.sent["rank-1"] < SIZE


def test_where_no_rank_reaches_another_not_all_of_them_try(gang: Any, folder: Path) -> None:
    four = gang(4, folder)
    for pod in ("rank-1", "rank-2", "rank-3"):
        four.environ[pod] = {"LAMBDACTL_NODE_IP": "127.0.4.99"}
    tries: list[str] = []
    four.trouble = lambda _pod, word: tries.append(word) if word == "pass" else None
    done = four.deliver()
    assert len(tries) == 2
    assert all(same(folder, four.place(rank)) for rank in range(4))
    assert (done.sent, done.passed_on) == (4 * (SIZE + 6), 0)


def test_ranks_without_ssh_are_all_sent_to(gang: Any, folder: Path) -> None:
    two = gang(2, folder)
    for pod in two.pods.values():
        pod.until_file("places")
        (pod.base / "run" / "reachable").unlink()
    two.deliver()
    assert all(same(folder, two.place(rank)) for rank in range(2))
    assert min(two.sent.values()) > SIZE


def test_what_was_cut_on_the_way_between_ranks_goes_on(
    gang: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PASS", 1 << 20)
    monkeypatch.setattr("lambdactl.backends.kubernetes.archive.PIECE", 1 << 20)
    two = gang(2, folder)
    cuts = iter([False, True, False, True])

    def trouble(_pod: str, word: str) -> None:
        if word == "pass" and next(cuts, False):
            raise Unavailable("the connection was cut.")

    two.trouble = trouble
    two.deliver()
    assert same(folder, two.place(1))
    assert two.sent["rank-1"] == 0


def test_a_volume_has_every_file_already(gang: Any, folder: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    files = FilesVolume(claim="shared")
    first = gang(2, folder, volume)
    done = first.deliver(files)
    assert all(same(folder, first.place(rank)) for rank in range(2))
    assert SIZE < sum(first.sent.values()) < SIZE + (64 << 10)
    assert (done.sent, done.passed_on) == (SIZE + 6, 0)
    again = gang(2, folder, volume)
    done = again.deliver(files)
    assert all(same(folder, again.place(rank)) for rank in range(2))
    assert (sum(again.sent.values()), done.total) == (0, 0)
    # What changed is sent, and nothing else.
    (folder / "deep" / "small").write_text("changed\n")
    third = gang(2, folder, volume)
    third.deliver(files)
    assert all(same(folder, third.place(rank)) for rank in range(2))
    assert 0 < sum(third.sent.values()) < 64 << 10
    assert not third.notes


def test_what_somebody_has_changed_in_the_volume_is_brought_anew(gang: Any, folder: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    files = FilesVolume(claim="shared")
    gang(1, folder, volume).deliver(files)
    (large,) = [path for path in (volume / "trees").iterdir() if path.stat().st_size > 1 << 20]
    data = bytearray(large.read_bytes())
    data[1000] ^= 1
    large.write_bytes(data)
    two = gang(2, folder, volume)
    two.deliver(files)
    assert all(same(folder, two.place(rank)) for rank in range(2))
    assert not large.exists()
    healed = gang(1, folder, volume)
    healed.deliver(files)
    assert large.exists()


def test_a_volume_that_cannot_be_written_is_said_and_not_used(gang: Any, folder: Path, tmp_path: Path) -> None:
    two = gang(2, folder, tmp_path / "there-is-no-such-folder")
    two.deliver(FilesVolume(claim="shared"))
    assert two.notes == ["the files volume is not used: the run's user cannot write the files volume."]
    assert all(same(folder, two.place(rank)) for rank in range(2))
    assert two.sent["rank-1"] == 0


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def test_the_volume_is_bounded_by_age_and_size(gang: Any, folder: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume" / "trees"
    volume.mkdir(parents=True)
    for name, days in (("old", 15), ("used", 13), ("older", 12.5), ("new", 0)):
        (volume / name).write_bytes(bytes(SIZE))
        age(volume / name, days)
    (volume / ".new.gone.7").mkdir()
    age(volume / ".new.gone.7", 1)
    one = gang(1, folder, volume.parent)
    receiver = Receiver(one)

    def put(files: FilesVolume) -> str:
        store = FileStore(receiver, "rank-0", files)
        return asyncio.run(store.put(items(one.content)[0]))

    digest = put(FilesVolume(claim="shared"))
    assert {"used", "older", "new", digest} <= set(os.listdir(volume))
    assert not (volume / "old").exists()
    assert not (volume / ".new.gone.7").exists()
    # Of 3 x SIZE and what the tree has, the least used goes; what was used within the hour never does.
    put(FilesVolume(claim="shared", size=3.5 * SIZE / (1 << 30)))
    assert "used" not in os.listdir(volume)
    assert {"older", "new", digest} <= set(os.listdir(volume))
    put(FilesVolume(claim="shared", size=0.001))
    assert "older" not in os.listdir(volume)
    assert {"new", digest} <= set(os.listdir(volume))


def test_what_schedules_need_is_no_ones_to_remove(gang: Any, folder: Path, tmp_path: Path) -> None:
    """As old as it is, it counts as used; and who cannot know what they need removes nothing."""
    volume = tmp_path / "volume" / "trees"
    one = gang(1, folder, volume.parent)
    tree, piece, stray = (volume / (digit * 64) for digit in "abc")
    volume.mkdir(parents=True)
    tree.write_text(f"00000000 1 {piece.name}\n")
    piece.write_text("p")
    schedule = {
        "metadata": {
            "name": "nightly-cron",
            "labels": {SCHEDULE: "nightly"},
            "annotations": {SCHEDULE_FACTS: json.dumps({"trees": [tree.name, "; rm -rf /"]})},
        }
    }

    def put(*schedules: Any) -> None:
        stray.write_text("s")
        for path in volume.iterdir():
            age(path, 15)
        one.schedules = schedules
        store = FileStore(Receiver(one), "rank-0", FilesVolume(claim="shared"))
        asyncio.run(store.put(items(one.content)[0]))

    put(schedule)
    assert (tree.exists(), piece.exists(), stray.exists()) == (True, True, False)
    put(Forbidden("cronjobs is forbidden"))
    assert (tree.exists(), piece.exists(), stray.exists()) == (True, True, True)
    put()
    assert (tree.exists(), piece.exists(), stray.exists()) == (False, False, False)


def test_a_pod_takes_trees_from_the_volume_by_itself(gang: Any, folder: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    one = gang(1, folder, volume)
    store = FileStore(Receiver(one), "rank-0", FilesVolume(claim="shared"))
    digest = asyncio.run(store.put(items(one.content)[0]))
    pod = Pod(one.run, 1, "127.0.4.30", before={"bin/trees": f"{digest}\n", "store": volume})
    one.pods["rank-1"] = pod
    pod.until_file("delivered")
    assert same(folder, one.place(1))
    lost = Pod(one.run, 2, "127.0.4.31", before={"bin/trees": "0" * 64 + "\n", "store": volume})
    one.pods["rank-2"] = lost
    assert lost.wait() == 125
    assert "the files volume has not all of the files any more" in lost.text()
    lone = build([Source("", str(folder / "large"))])
    assert lone.size == SIZE
