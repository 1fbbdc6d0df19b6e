"""What a service's replicas take with them (`files`, `repos`): in the cluster, because replicas start without us.

As much as fits is compressed into Secrets, which go with the service. More is in the files volume (filestore.py),
where `apply` brings it once. Either way the entrypoint places it before the commands, at each start of the container.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambdactl.errors import SpecError
from lambdactl.run.content import RunContent
from lambdactl.spec import ServiceSpec, line_in

from . import filesvolume
from .archive import Piece, digest, items, pieces
from .filestore import fill
from .packing import Object, Parts, pack, secret, too_much
from .payload import BASE, numbered_user

if TYPE_CHECKING:
    from .client import Client
    from .config import Target
    from .service_model import KubeService


@dataclass(frozen=True, slots=True)
class Contents:
    """What is brought, and how.

    Attributes:
        parts: what Secrets carry; None: it is too much for them.
        pieces: those of each tree's archive; only where Secrets do not do.
    """

    content: RunContent
    parts: Parts | None
    pieces: tuple[tuple[Piece, ...], ...] = ()

    @property
    def trees(self) -> tuple[str, ...]:
        """The trees' names in the files volume; only where Secrets do not do."""
        return tuple(map(digest, self.pieces))

    @property
    def identity(self) -> list[str]:
        """The same for the same contents, whatever compresses them."""
        return [item.tree.manifest for item in items(self.content)]


def prepare(content: RunContent) -> Contents | None:
    """Pack what a service brings; reads all of it, and may take a while. None where there is nothing."""
    if not content.blobs:
        return None
    found = items(content)
    if (parts := pack(found)) is not None:
        return Contents(content, parts)
    return Contents(content, None, tuple(map(pieces, found)))


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
        raise too_much(service, field, items(contents.content))


def secrets(run_name: str, contents: Contents) -> list[Object]:
    """The Secrets, without their owner."""
    found = zip(_names(run_name, contents), contents.parts or (), strict=True)
    return [secret({"name": name}, part) for name, part in found]


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
    image = run.image if run.task.registry_auth is None else client.target.image or run.image
    found = zip(items(contents.content), contents.pieces, strict=True)
    return await fill(client, run.files_volume, image, found, security=numbered_user(run))
