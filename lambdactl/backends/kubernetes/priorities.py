"""`priority` of a task file: Kubernetes' own word for it is a PriorityClass, which only an administrator can make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import Forbidden, NotFound
from .resources import PRIORITY_CLASSES

if TYPE_CHECKING:
    from .client import Client


async def priority_class(client: Client, priority: int) -> str | None:
    """The class of that value, the first by name; None where there is none, or it may not be looked for."""
    try:
        found = (await client.list(PRIORITY_CLASSES)).items
    except (Forbidden, NotFound):
        return None
    return min((str(one["metadata"]["name"]) for one in found if one.get("value") == priority), default=None)


def not_honoured(priority: int) -> str:
    """What the user is told where there is none."""
    return (
        f"priority {priority} is not honoured in this cluster: no PriorityClass with the value {priority} can be seen; "
        f"an administrator makes one by `kubectl create priorityclass lambdactl-{priority} --value={priority}`."
    )
