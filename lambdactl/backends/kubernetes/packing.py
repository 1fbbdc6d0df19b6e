"""Contents in Secrets: what services and schedules keep in the cluster, because nobody is there when it is needed.

As much as fits is compressed into Secrets, which go with their owner. More is in the files volume (filestore.py).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lambdactl.errors import SpecError
from lambdactl.spec import Spec, line_in

from .archive import Item, archive

PART = 900 << 10
"""Bytes in one Secret; Kubernetes takes 1 MiB."""
PARTS = 8
_GZIP = 31  # zlib's window bits for a gzip file; its header has no time
_READ = 1 << 20
Object = dict[str, Any]
Parts = tuple[dict[str, bytes], ...]
"""The data of one Secret each; their keys are ``INDEX.NUMBER`` (of which tree, in which order)."""


def pack(found: Sequence[Item]) -> Parts | None:
    """The trees' archives, each a gzip file in pieces; reads all of it. None: it is too much."""
    data: list[bytes] = []
    for item in found:
        packed = _packed(item, PART * PARTS - sum(map(len, data)))
        if packed is None:
            return None
        data.append(packed)
    parts: list[dict[str, bytes]] = []
    room = 0
    for index, whole in enumerate(data):
        for number, start in enumerate(range(0, len(whole), PART)):
            piece = whole[start : start + PART]
            if len(piece) > room:
                parts.append({})
                room = PART
            parts[-1][f"{index}.{number:04}"] = piece
            room -= len(piece)
    return tuple(parts)


def _packed(item: Item, most: int) -> bytes | None:
    """A tree's archive as a gzip file; None where it is larger."""
    size, result = 0, []
    for data in _compressed(item):
        size += len(data)
        if size > most:
            return None
        result.append(data)
    return b"".join(result)


def _compressed(item: Item) -> Iterator[bytes]:
    engine = zlib.compressobj(9, zlib.DEFLATED, _GZIP)
    for _, data in archive(item):
        yield engine.compress(data)
    yield engine.flush()


def unpack(folder: Path, index: int) -> Iterator[bytes]:
    """A tree's archive again, where its pieces are mounted."""
    engine = zlib.decompressobj(_GZIP)
    for path in sorted(folder.glob(f"{index}.*")):
        data = path.read_bytes()
        while data:
            yield engine.decompress(data, _READ)
            data = engine.unconsumed_tail
    yield engine.flush()


def too_much(spec: Spec, field: str, found: Sequence[Item]) -> SpecError:
    """What to say where Secrets do not carry it, and there is no files volume."""
    size = sum(item.tree.size for item in found) >> 20
    return SpecError(
        f"'{field}' bring {size} MB, and more than {PART * PARTS >> 20} MB when compressed, which is what Secrets "
        "carry; name a volume for them by `files_volume` in the backend's configuration "
        "(docs/kubernetes.md), bring less, or put them into the image.",
        filename=spec.source.filename,
        line=line_in(spec, field),
    )


def secret(metadata: Mapping[str, Any], data: Mapping[str, bytes]) -> Object:
    """A Secret of these files."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": True,
        "metadata": dict(metadata),
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }
