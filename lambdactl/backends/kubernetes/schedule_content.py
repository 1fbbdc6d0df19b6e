"""What a schedule's runs take with them from the machine that hands it over: kept in the cluster, and taken from there.

With a files volume all of it is there (filestore.py), so that unchanged files are not sent again; else Secrets of the
schedule have it (packing.py). A run gets archives as they were made: nothing is unpacked in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdactl.errors import LambdactlError
from lambdactl.run.content import RunContent
from lambdactl.run.repos import Checkout
from lambdactl.run.tree import Blob, Span

from .archive import LOST, PIECE, Archived, Item, Piece, digest, items, pieces
from .packing import Parts, pack, too_much, unpack
from .payload import BASE

if TYPE_CHECKING:
    from lambdactl.spec import TaskSpec

    from .config import Target

STORE = Path(BASE) / "store" / "trees"
_OF_REPO = ("repo_id", "if_exists", "title", "commit", "changed")


@dataclass(frozen=True, slots=True)
class Brought:
    """What is handed over.

    Attributes:
        about: what is to be known of each tree; JSON.
        parts: what Secrets carry.
        stored: the trees that the files volume has, where there is one, each with the pieces of its archive.
    """

    about: tuple[Mapping[str, Any], ...]
    parts: Parts
    stored: tuple[tuple[Item, tuple[Piece, ...]], ...]

    @property
    def trees(self) -> tuple[str, ...]:
        """The trees' names in the files volume, where that has them."""
        return tuple(one["tree"] for one in self.about if one["tree"])


def bring(content: RunContent, task: TaskSpec, target: Target) -> Brought:
    """Pack what a schedule takes with it; reads all of it, and may take a while.

    A repository that the file gives by its URL is left out: it is fetched at each time.

    Raises:
        SpecError: it is too much for Secrets, and there is no files volume.
    """
    if content.repo is not None and task.repos[0].url:
        content = RunContent(content.files)
    found = tuple(items(content))
    volume = target.files_volume is not None
    stored = tuple((item, pieces(item)) for item in found) if volume else ()
    if (parts := () if volume else pack(found)) is None:
        raise too_much(task, "files" if task.files else "repos", found)
    about = []
    for index, item in enumerate(found):
        one: dict[str, Any] = {
            "kind": item.kind, "path": item.path, "files": item.tree.files, "size": item.tree.size,
            "tree": digest(stored[index][1]) if volume else None,
        }  # fmt: skip
        if item.kind == "repo":
            one |= {name: getattr(content.repo, name) for name in _OF_REPO}
        about.append(one)
    return Brought(tuple(about), parts, stored)


def taken(about: list[Mapping[str, Any]], folder: Path, scratch: Path, store: Path = STORE) -> RunContent:
    """The trees again, of which there are only archives.

    Args:
        folder: where the Secrets' files are.
        scratch: gets what is unpacked of them.
        store: where the files volume has trees and their pieces.

    Raises:
        LambdactlError: the files volume has lost one.
    """
    found: list[tuple[Archived, str]] = []
    repo: Checkout | None = None
    for index, one in enumerate(about):
        tree = _in_volume(one, store) if one["tree"] else _in_secrets(one, folder, scratch, index)
        if one["kind"] == "repo":
            repo = Checkout(tree, path=str(one["path"]), **{name: one[name] for name in _OF_REPO})
        else:
            found.append((tree, str(one["path"])))
    every = [*(tree for tree, _ in found), *([repo.tree] if repo else [])]
    return RunContent(tuple(found), repo, {key: blob for tree in every for key, blob in tree.blobs.items()})


def _in_volume(one: Mapping[str, Any], store: Path) -> Archived:
    """A tree by the list of its pieces; the pieces are read only where a rank cannot take them itself."""
    try:
        lines = (store / one["tree"]).read_bytes()
    except OSError:
        lines = b""
    # Anybody who may run pods in the namespace can write the volume.
    if hashlib.sha256(lines).hexdigest() != one["tree"]:
        raise LambdactlError(LOST)
    found = [Piece(name, int(size), sha256) for name, size, sha256 in map(str.split, lines.decode().splitlines())]
    blobs = {piece.sha256: Blob(piece.sha256, piece.size, (Span(str(store / piece.sha256), 0, piece.size),))
             for piece in found}  # fmt: skip
    return Archived(one["tree"], blobs, one["files"], one["size"], one["kind"], tuple(found))


def _in_secrets(one: Mapping[str, Any], folder: Path, scratch: Path, index: int) -> Archived:
    scratch.mkdir(parents=True, exist_ok=True)
    place, found = scratch / f"{index}.tar", list[Piece]()
    blobs: dict[str, Blob] = {}
    with place.open("wb") as file:
        for number, data in enumerate(_cut(unpack(folder, index))):
            piece = Piece.of(f"{number:08}", data)
            blobs[piece.sha256] = Blob(piece.sha256, piece.size, (Span(str(place), file.tell(), piece.size),))
            found.append(piece)
            file.write(data)
    return Archived(place.name, blobs, one["files"], one["size"], one["kind"], tuple(found))


def _cut(found: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size."""
    held = bytearray()
    for data in found:
        held += data
        while len(held) >= PIECE:
            yield bytes(held[:PIECE])
            del held[:PIECE]
    if held:
        yield bytes(held)
