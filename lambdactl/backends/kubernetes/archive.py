"""What a run brings along as tar archives, one a tree, made piece by piece from the trees' manifests and blobs.

Any image with a tar can unpack them; GNU's format is what GNU tar, busybox and bsdtar have in common for long names.
A piece ends where the files' names say so, not at a fixed size: a changed file changes its own piece, and all others
are what they were, so that a store which names them by their sha256 has them already.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lambdactl.errors import LambdactlError
from lambdactl.run.content import RunContent
from lambdactl.run.tree import PACK, PACK_CUT, SMALL, Blob, Span, Tree

PIECE = 16 << 20
"""Bytes of the largest piece."""
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Item:
    """One tree on its way to a rank.

    Attributes:
        kind: ``repo``, ``dir`` or ``file``.
        path: where it goes, as the file says; the rank resolves it.
        if_exists: of a repository, ``error`` or ``skip``.
    """

    tree: Tree
    kind: str
    path: str
    if_exists: str = "-"

    @property
    def name(self) -> str:
        """A single file's name in its archive."""
        return self.path.rstrip("/").rpartition("/")[2]


def items(content: RunContent) -> list[Item]:
    """The trees in the order in which they are placed: the repository first, as on SSH hosts."""
    found = [] if content.repo is None else [Item(content.repo.tree, "repo", content.repo.path, content.repo.if_exists)]
    return found + [Item(tree, _kind(tree), path) for tree, path in content.files]


def _kind(tree: Tree) -> str:
    if isinstance(tree, Archived):
        return tree.kind
    first = _entries(tree)[0]
    return "dir" if first.get("dir") else "file"


def _entries(tree: Tree) -> list[dict[str, Any]]:
    data = tree.blobs[tree.manifest].data
    assert data is not None  # noqa: S101 - a manifest is always at hand
    return list(json.loads(data)["entries"])


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of an archive's bytes; all pieces of a tree in their order are the archive.

    Attributes:
        name: ``NUMBER``, or ``INDEX.NUMBER`` of several trees.
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> Piece:
        """A piece's description."""
        return cls(name, len(data), hashlib.sha256(data).hexdigest())

    @property
    def line(self) -> str:
        """As the script reads it."""
        return f"{self.name} {self.size} {self.sha256}\n"


@dataclass(frozen=True)
class Archived(Tree):
    """A tree of which there is the archive only; its blobs are the archive's pieces, and `manifest` is their digest.

    Attributes:
        kind: as an Item's.
    """

    kind: str = "dir"
    pieces: tuple[Piece, ...] = ()

    def archive(self) -> Iterator[tuple[Piece, bytes]]:
        """The pieces as they are.

        Raises:
            LambdactlError: they are not there any more.
        """
        for piece in self.pieces:
            try:
                data = b"".join(self.blobs[piece.sha256].read())
            except LambdactlError:
                data = b""
            if Piece.of(piece.name, data) != piece:
                raise LambdactlError(LOST)
            yield piece, data


LOST = "the files that were handed over are not all in the files volume any more; hand the task over again."


def pieces(item: Item) -> tuple[Piece, ...]:
    """The pieces of its archive; reads all of it, where that has to be made."""
    return item.tree.pieces if isinstance(item.tree, Archived) else tuple(piece for piece, _ in archive(item))


def listed(found: Sequence[Piece]) -> bytes:
    """A tree as the files volume has it: the list of its pieces."""
    return "".join(piece.line for piece in found).encode()


def digest(found: Sequence[Piece]) -> str:
    """A tree's name in the files volume, by the pieces of its archive."""
    return hashlib.sha256(listed(found)).hexdigest()


def archive(item: Item) -> Iterator[tuple[Piece, bytes]]:
    """The tar archive in pieces, owned by root; only one of them is held in memory.

    Raises:
        LambdactlError: a file was changed since it was looked at.
    """
    if isinstance(item.tree, Archived):
        yield from item.tree.archive()
        return
    for number, data in enumerate(_cut(item)):
        yield Piece.of(f"{number:08}", data), data


def _cut(item: Item) -> Iterator[bytes]:
    held = bytearray()
    for entry in _entries(item.tree):
        if not entry["path"] and entry.get("dir"):
            continue  # the place itself, which may be there already
        info = _header(entry, item)
        large = info.size >= SMALL
        if large and held:
            yield bytes(held)
            held.clear()
        held += info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        for data in _contents(item.tree, entry):
            held += data
            while len(held) > PIECE:
                yield bytes(held[:PIECE])
                del held[:PIECE]
        held += bytes(-info.size % _BLOCK)
        if large or len(held) >= PACK or _ends(entry["path"]):
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
    yield bytes(2 * _BLOCK)


def _ends(path: str) -> bool:
    """Whether a piece ends after this file: one in so many, by its name alone."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % PACK_CUT == 0


def _header(entry: dict[str, Any], item: Item) -> tarfile.TarInfo:
    info = tarfile.TarInfo(entry["path"] or item.name)
    info.mode, info.mtime = int(entry.get("mode") or 0o755) & 0o777, int(entry.get("mtime") or 0)
    if "link" in entry:
        info.type, info.linkname = tarfile.SYMTYPE, str(entry["link"])
    elif entry.get("dir"):
        info.type = tarfile.DIRTYPE
    else:
        info.size = sum(int(length) for _, _, length in entry["parts"])
    return info


def _contents(tree: Tree, entry: dict[str, Any]) -> Iterator[bytes]:
    for sha256, offset, length in entry.get("parts") or ():
        yield from _part(tree.blobs[sha256], int(offset), int(length))


def _part(blob: Blob, offset: int, length: int) -> Iterator[bytes]:
    """Bytes of a blob; a pack of many small files is not read from its beginning for each of them."""
    if blob.data is not None:
        yield blob.data[offset : offset + length]
        return
    starts = [0, *accumulate(span.length for span in blob.spans)]
    index = bisect_right(starts, offset) - 1
    while length:
        span, skip = blob.spans[index], offset - starts[index]
        take = min(length, span.length - skip)
        yield from Blob(blob.sha256, take, (Span(span.path, span.offset + skip, take),)).read()
        offset, length, index = offset + take, length - take, index + 1


LIST = "list"
"""The file in a bundle that says what the others are."""


def bundle(pieces: Sequence[tuple[Piece, bytes]]) -> bytes:
    """Pieces on their way, as a tar of them and of their list (container/receive.sh, `parts`)."""
    made = io.BytesIO()
    lines = "".join(piece.line for piece, _ in pieces).encode()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in [(LIST, lines), *((piece.name, data) for piece, data in pieces)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def listing(found: Sequence[Item]) -> str:
    """What a rank must know of the trees: index, kind, what to do where it exists, and the path; a line each."""
    return "".join(f"{index} {item.kind} {item.if_exists} {item.path}\n" for index, item in enumerate(found))
