"""What a service's replicas take with them (`files`, `repos`): in the cluster, because replicas start without us.

As much as fits is compressed into Secrets, which go with the service. More is in the files volume (filestore.py),
where `apply` brings it once. Either way the entrypoint places it before the commands, at each start of the container.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambdactl.errors import SpecError
from lambdactl.run.content import RunContent
from lambdactl.spec import ServiceSpec, line_in

from . import filesvolume
from .archive import Item, archive, items
from .filestore import open_store
from .payload import BASE, numbered_user

if TYPE_CHECKING:
    from .client import Client
    from .config import Target
    from .service_model import KubeService

PART = 900 << 10
"""Bytes in one Secret; Kubernetes takes 1 MiB."""
PARTS = 8
_GZIP = 31  # zlib's window bits for a gzip file; its header has no time
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contents:
    """What is brought, and how.

    Attributes:
        parts: the data of one Secret each; None: it is too much for them.
        trees: the trees' names in the files volume; only where Secrets do not do.
    """

    content: RunContent
    parts: tuple[dict[str, bytes], ...] | None
    trees: tuple[str, ...] = ()

    @property
    def identity(self) -> list[str]:
        """The same for the same contents, whatever compresses them."""
        return [item.tree.manifest for item in items(self.content)]


def prepare(content: RunContent) -> Contents | None:
    """Pack what a service brings; reads all of it, and may take a while. None where there is nothing."""
    if not content.blobs:
        return None
    found = items(content)
    data: list[bytes] = []
    for item in found:
        packed = _packed(item, PART * PARTS - sum(map(len, data)))
        if packed is None:
            return Contents(content, None, tuple(_tree(item) for item in found))
        data.append(packed)
    pieces = [
        (f"{index}.{number:04}", whole[start : start + PART])
        for index, whole in enumerate(data)
        for number, start in enumerate(range(0, len(whole), PART))
    ]
    parts: list[dict[str, bytes]] = []
    room = 0
    for name, piece in pieces:
        if len(piece) > room:
            parts.append({})
            room = PART
        parts[-1][name] = piece
        room -= len(piece)
    return Contents(content, tuple(parts))


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


def _tree(item: Item) -> str:
    return hashlib.sha256("".join(piece.line for piece, _ in archive(item)).encode()).hexdigest()


def refuse_contents(service: ServiceSpec, contents: Contents | None, target: Target) -> None:
    """Refuse contents that cannot get to the replicas.

    Raises:
        SpecError: with what to do.
    """
    if contents is None:
        return
    field = "files" if service.files else "repos"
    if not service.commands and not service.entrypoint:
        raise SpecError(
            f"'{field}' of a service on Kubernetes need 'commands' or an 'entrypoint': nothing can place them "
            "before an image's own command.",
            filename=service.source.filename,
            line=line_in(service, field),
        )
    if contents.parts is None and target.files_volume is None:
        size = sum(item.tree.size for item in items(contents.content)) >> 20
        raise SpecError(
            f"'{field}' bring {size} MB, and more than {PART * PARTS >> 20} MB when compressed, which is what Secrets "
            "carry; name a volume for them by `files_volume` in the backend's configuration "
            "(docs/kubernetes.md), bring less, or put them into the image.",
            filename=service.source.filename,
            line=line_in(service, field),
        )


def secrets(run_name: str, contents: Contents) -> list[Object]:
    """The Secrets, without their owner."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "type": "Opaque",
            "immutable": True,
            "data": {key: base64.b64encode(value).decode() for key, value in part.items()},
        }
        for name, part in zip(_names(run_name, contents), contents.parts or (), strict=True)
    ]


def config_data(contents: Contents) -> dict[str, str]:
    """What the ConfigMap has more."""
    return {} if contents.parts is not None else {"trees": filesvolume.trees(contents.trees)}


def volumes(run_name: str, contents: Contents) -> list[Object]:
    """The volume of the Secrets; that of the files volume is every run's."""
    sources = [{"secret": {"name": name}} for name in _names(run_name, contents)]
    return [{"name": "lambdactl-content", "projected": {"sources": sources, "defaultMode": 0o444}}] if sources else []


def mounts(contents: Contents) -> list[Object]:
    """Where the replica's container has it."""
    place = {"name": "lambdactl-content", "mountPath": f"{BASE}/content", "readOnly": True}
    return [place] if contents.parts is not None else []


def _names(run_name: str, contents: Contents) -> list[str]:
    return [f"{run_name}-content-{number}" for number in range(len(contents.parts or ()))]


async def bring(client: Client, service: KubeService) -> int | None:
    """Bring to the files volume what it lacks; bytes that were sent, None where nothing goes there.

    Raises:
        LambdactlError: the volume cannot be used.
    """
    run, contents = service.run, service.contents
    if contents is None or contents.parts is not None or run.files_volume is None:
        return None
    sent: list[int] = []
    image = run.image if run.task.registry_auth is None else client.target.image or run.image
    async with open_store(client, run.files_volume, image, on_sent=sent.append, security=numbered_user(run)) as store:
        for item in items(contents.content):
            await store.put(item)
    return sum(sent)
