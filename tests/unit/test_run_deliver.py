"""Blobs on their way to the nodes of the wide bed: real sshd, real runners, real cuts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.errors import CapacityError, LambdactlError
from lambdactl.run import tree
from lambdactl.run.deliver import Progress, deliver
from lambdactl.transport import open_transport
from tests.bed.gang import GangBed

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def bed() -> Iterator[GangBed]:
    with GangBed(nodes=5) as bed:
        yield bed


def folder(tmp_path: Path, size: int = 5 << 20) -> tree.Tree:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "big").write_bytes(os.urandom(size))
    for number in range(50):
        (tmp_path / "up" / f"small{number}").write_text(str(number))
    return tree.build(tree.walk(str(tmp_path / "up")))


def send(
    bed: GangBed,
    made: tree.Tree,
    *,
    kind: Any = "auto",
    names: list[str] | None = None,
    while_at_it: Callable[[Progress], None] | None = None,
) -> Progress:
    places = [{"name": name, "ip": name, "ssh_user": bed.user} for name in names or bed.addresses]

    async def body() -> Progress:
        async with open_transport(bed.load(), kind=kind) as transport:
            return await deliver(transport, places, made.blobs, on_progress=while_at_it)

    return asyncio.run(body())


def stored(bed: GangBed, address: str) -> set[str]:
    place = bed.root(address) / "var/lib/lambdactl/blobs"
    return {file.name for file in place.iterdir()} if place.is_dir() else set()


@pytest.mark.parametrize("kind", ["asyncssh", "openssh"])
def test_what_is_missing_leaves_here_once_and_the_second_time_nothing_does(
    bed: GangBed, tmp_path: Path, kind: str
) -> None:
    made = folder(tmp_path)
    total = sum(blob.size for blob in made.blobs.values())
    done = send(bed, made, kind=kind)
    assert (done.sent, done.passed_on) == (total, total * 4)
    for address in bed.addresses:
        assert stored(bed, address) == set(made.blobs)
        assert all(
            (bed.root(address) / "var/lib/lambdactl/blobs" / blob.sha256).read_bytes() == b"".join(blob.read())
            for blob in made.blobs.values()
        )
    again = send(bed, made, kind=kind)
    assert (again.total, again.sent, again.passed_on) == (0, 0, 0)


def test_a_new_node_gets_it_from_another_one(bed: GangBed, tmp_path: Path) -> None:
    made = folder(tmp_path)
    send(bed, made, names=[bed.addresses[0]])
    done = send(bed, made)
    assert done.sent == 0
    assert done.passed_on == 4 * sum(blob.size for blob in made.blobs.values())


def test_where_nodes_cannot_reach_each_other_the_controller_sends(tmp_path: Path) -> None:
    bed = GangBed(nodes=3)
    for options in bed.node.matches.values():
        options["SetEnv"] = options["SetEnv"].replace("exec python3", "exit 255; exec python3")
    with bed:
        made = folder(tmp_path)
        done = send(bed, made)
        assert all(stored(bed, address) == set(made.blobs) for address in bed.addresses)
    assert done.sent == 3 * sum(blob.size for blob in made.blobs.values())


def test_a_cut_transfer_goes_on_where_it_was(bed: GangBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "PIECE", 1 << 20)
    made = folder(tmp_path, 24 << 20)
    cuts = []

    def cut(progress: Progress) -> None:
        if progress.sent > (8 << 20) and not cuts:
            cuts.append(progress.sent)
            bed.node.drop_sessions()

    done = send(bed, made, names=[bed.addresses[0]], while_at_it=cut)
    assert cuts
    assert stored(bed, bed.addresses[0]) >= set(made.blobs)
    assert done.sent == sum(blob.size for blob in made.blobs.values())


def test_a_disk_without_room_and_a_file_that_changes_are_one_sentence(bed: GangBed, tmp_path: Path) -> None:
    made = folder(tmp_path)
    huge = tree.Blob("0" * 64, 1 << 60, data=b"x")
    with pytest.raises(CapacityError, match=r"127\.1\.0\.1: .* are to be stored in .* make room"):
        send(bed, tree.Tree("0" * 64, {"0" * 64: huge}, 1, 1))
    (tmp_path / "up" / "big").write_bytes(os.urandom(5 << 20))
    with pytest.raises(LambdactlError, match="changed while it was sent"):
        send(bed, made)
    assert set(made.blobs) - stored(bed, bed.addresses[0])
