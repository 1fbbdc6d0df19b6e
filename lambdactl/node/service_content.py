"""What the replicas of a service take with them (`files`, `repos`): a host that lacks it gets it from the ingress.

The controller brings it to the ingress' content store when the service is applied, where it stays as long as the
service (blobs.collect). So a replica can come to any host at any time, by the nodes' own SSH, and needs nobody else.
"""

from __future__ import annotations

import os
import threading

from . import blobs, transfer
from .errors import NodeError
from .spec import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    import queue
    from typing import Any

    from .service_doc import Host


def wanted(job: dict[str, Any]) -> list[list[Any]]:
    """The blobs of a replica's job with their sizes, as the op `have` takes them.

    Raises NodeError (start-failed) when this node's store lacks one.
    """
    try:
        return [[sha256, os.stat(blobs.path(sha256)).st_size] for sha256 in sorted(blobs.needed(job))]
    except FileNotFoundError:
        text = "the service's files are not in the ingress' store any more; apply the service again"
        raise NodeError("start-failed", text) from None


def send(host: Host, run: str, missing: list[str], inbox: queue.Queue[tuple[Any, ...]]) -> None:
    """Send blobs to a host, in a thread; puts ("sent", run, problem | None) into the inbox at its end."""
    node = Node({"name": host.name, "ip": host.ip, "ssh_user": host.ssh_user, "ssh_port": host.ssh_port}, 0)

    def work() -> None:
        try:
            problem = transfer.send(node, missing)
        except (NodeError, OSError) as error:
            problem = str(error)
        inbox.put(("sent", run, problem))

    threading.Thread(target=work, daemon=True).start()
