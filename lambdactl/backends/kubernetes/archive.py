"""What a run brings along as tar archives, one a tree, made piece by piece from the trees' manifests and blobs.

Any image with a tar can unpack them; GNU's format is what GNU tar, busybox and bsdtar have in common for long names.
"""

from __future__ import annotations

import json
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lambdactl.run.content import RunContent
from lambdactl.run.tree import Blob, Span, Tree

_BLOCK, _RECORD = 512, 10240


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
    first = _entries(tree)[0]
    return "dir" if first.get("dir") else "file"


def _entries(tree: Tree) -> list[dict[str, Any]]:
    data = tree.blobs[tree.manifest].data
    assert data is not None  # noqa: S101 - a manifest is always at hand
    return list(json.loads(data)["entries"])


def archive(item: Item, *, uid: int, gid: int) -> Iterator[bytes]:
    """The tar archive, owned by that user; nothing of it is held in memory.

    Raises:
        LambdactlError: a file was changed since it was looked at.
    """
    size = 0
    for entry in _entries(item.tree):
        if not entry["path"] and entry.get("dir"):
            continue  # the place itself, which may be there already
        info = _header(entry, item, uid, gid)
        header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        size += len(header)
        yield header
        for data in _contents(item.tree, entry):
            size += len(data)
            yield data
        if rest := -size % _BLOCK:
            size += rest
            yield bytes(rest)
    yield bytes(2 * _BLOCK + -(size + 2 * _BLOCK) % _RECORD)


def _header(entry: dict[str, Any], item: Item, uid: int, gid: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(entry["path"] or item.name)
    info.uid, info.gid = uid, gid
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


def pieces(data: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of that size; the last one may be smaller."""
    held: list[bytes] = []
    amount = 0
    for part in data:
        held.append(part)
        amount += len(part)
        while amount >= size:
            whole = b"".join(held)
            yield whole[:size]
            held, amount = [whole[size:]], len(whole) - size
    if amount:
        yield b"".join(held)


def listing(found: Sequence[Item]) -> str:
    """What a rank must know of the trees: index, kind, what to do where it exists, and the path; a line each."""
    return "".join(f"{index} {item.kind} {item.if_exists} {item.path}\n" for index, item in enumerate(found))
