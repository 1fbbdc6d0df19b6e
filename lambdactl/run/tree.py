"""Trees of files as nodes store them: a manifest, and blobs named by their sha256 (docs/architecture.md).

Data is cut into blobs: a large file into pieces of its own, small files side by side into packs, so that a folder of
100000 files is some hundred transfers. Packs end at places that the files' names choose: a changed file changes its
pack only. Nothing is held in memory: a blob remembers where its bytes are.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambdactl.errors import LambdactlError, SpecError
from lambdactl.run.ignore import Ignore

PIECE = 32 << 20  # bytes of one blob of a large file
SMALL = 1 << 20  # smaller files share blobs
PACK = 8 << 20  # bytes at which a pack ends
PACK_CUT = 64  # a pack also ends after one file in so many, chosen by its name
READ = 1 << 20


@dataclass(frozen=True)
class Span:
    """Bytes of a local file."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True)
class Blob:
    """Bytes with a digest: of local files, or at hand."""

    sha256: str
    size: int
    spans: tuple[Span, ...] = ()
    data: bytes | None = field(default=None, repr=False)

    def read(self) -> Iterator[bytes]:
        """The bytes in pieces.

        Raises:
            LambdactlError: a file was changed since it was looked at.
        """
        if self.data is not None:
            yield self.data
        for span in self.spans:
            left = span.length
            try:
                with Path(span.path).open("rb", buffering=0) as file:
                    file.seek(span.offset)
                    while left and (data := file.read(min(READ, left))):
                        left -= len(data)
                        yield data
            except OSError as error:
                raise LambdactlError(f"{span.path} cannot be read any more: {error.strerror}.") from None
            if left:
                raise LambdactlError(f"{span.path} became shorter while it was sent; submit the run again.")


@dataclass(frozen=True)
class Source:
    """One thing of a tree: a local file, folder or link, and the path that it gets in the tree."""

    path: str
    local: str
    mode: int | None = None  # None: the local one


@dataclass(frozen=True)
class Tree:
    """A finished tree: its manifest's digest, all its blobs (the manifest is one), and what it holds."""

    manifest: str
    blobs: Mapping[str, Blob]
    files: int
    size: int


def walk(folder: str) -> Iterator[Source]:
    """A folder's contents in a fixed order, without what its ignore files leave out, and without `.git`."""
    yield Source("", folder)
    yield from _walk(folder, "", None)


def _walk(folder: str, relative: str, above: Ignore | None) -> Iterator[Source]:
    rules = Ignore.of(Path(folder), relative, above)
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise SpecError(f"{folder} cannot be read: {error.strerror}.") from None
    for entry in entries:
        path = f"{relative}/{entry.name}" if relative else entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name == ".git" or rules.ignores(path, folder=is_folder):
            continue
        yield Source(path, entry.path)
        if is_folder:
            yield from _walk(entry.path, path, rules)


def build(sources: Iterable[Source], *, times: bool = True) -> Tree:
    """Read and digest everything once.

    Args:
        times: keep modification times (they are part of the manifest; data does not depend on them).

    Raises:
        SpecError: something cannot be read.
    """
    builder = _Builder(times=times)
    for source in sources:
        try:
            builder.add(source)
        except OSError as error:
            raise SpecError(f"{source.local} cannot be read: {error.strerror}.") from None
        except UnicodeEncodeError:
            raise SpecError(f"{source.local!r} has a name that is not UTF-8; rename or ignore it.") from None
    return builder.finish()


class _Builder:
    def __init__(self, *, times: bool) -> None:
        self._times = times
        self._entries: list[dict[str, Any]] = []
        self._blobs: dict[str, Blob] = {}
        self._pack: list[tuple[dict[str, Any], Span]] = []
        self._pack_digest = hashlib.sha256()
        self._pack_size = 0
        self._files = self._size = 0

    def add(self, source: Source) -> None:
        source.path.encode()
        status = os.lstat(source.local)
        entry: dict[str, Any] = {"path": source.path}
        if stat.S_ISLNK(status.st_mode):
            entry["link"] = os.readlink(source.local)  # noqa: PTH115 (Path would tidy the text of the link)
        elif stat.S_ISDIR(status.st_mode):
            entry |= {"dir": True, "mode": stat.S_IMODE(status.st_mode) if source.mode is None else source.mode}
        elif stat.S_ISREG(status.st_mode):
            entry["mode"] = stat.S_IMODE(status.st_mode) if source.mode is None else source.mode
            if self._times:
                entry["mtime"] = int(status.st_mtime)
            self._add_file(source, status.st_size, entry)
        else:
            return  # a socket, a pipe, a device: no contents that could be sent
        self._entries.append(entry)

    def _add_file(self, source: Source, size: int, entry: dict[str, Any]) -> None:
        self._files += 1
        self._size += size
        entry["parts"] = []
        if size < SMALL:
            if size:
                self._add_small(source, size, entry)
            return
        with Path(source.local).open("rb", buffering=0) as file:
            for offset in range(0, size, PIECE):
                length = min(PIECE, size - offset)
                digest = _digest(file, length, hashlib.sha256())
                self._blobs[digest] = Blob(digest, length, (Span(source.local, offset, length),))
                entry["parts"].append([digest, 0, length])

    def _add_small(self, source: Source, size: int, entry: dict[str, Any]) -> None:
        with Path(source.local).open("rb", buffering=0) as file:
            _digest(file, size, self._pack_digest)
        self._pack.append((entry, Span(source.local, 0, size)))
        self._pack_size += size
        cut = int.from_bytes(hashlib.sha256(source.path.encode()).digest()[:4], "big") % PACK_CUT == 0
        if cut or self._pack_size >= PACK:
            self._end_pack()

    def _end_pack(self) -> None:
        if not self._pack:
            return
        digest, offset = self._pack_digest.hexdigest(), 0
        self._blobs[digest] = Blob(digest, self._pack_size, tuple(span for _, span in self._pack))
        for entry, span in self._pack:
            entry["parts"].append([digest, offset, span.length])
            offset += span.length
        self._pack, self._pack_size, self._pack_digest = [], 0, hashlib.sha256()

    def finish(self) -> Tree:
        self._end_pack()
        data = json.dumps({"entries": self._entries}, separators=(",", ":")).encode()
        manifest = hashlib.sha256(data).hexdigest()
        self._blobs[manifest] = Blob(manifest, len(data), data=data)
        return Tree(manifest, self._blobs, self._files, self._size)


def _digest(file: Any, length: int, digest: Any) -> str:
    left = length
    while left:
        data = file.read(min(READ, left))
        if not data:
            raise SpecError(f"{file.name} became shorter while it was read; try again.")
        digest.update(data)
        left -= len(data)
    return str(digest.hexdigest())
