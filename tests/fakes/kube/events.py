"""The fake's Event objects."""

from __future__ import annotations

import uuid

from lambdactl.backends.kubernetes.resources import EVENTS

from .store import Object, Store, now


class Events:
    """Writes events about objects."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def tell(self, about: Object, reason: str, message: str, component: str, *, warning: bool = False) -> None:
        metadata = about["metadata"]
        namespace = metadata.get("namespace") or "default"
        reference = {
            "kind": about.get("kind"), "apiVersion": about.get("apiVersion"), "name": metadata["name"],
            "namespace": namespace, "uid": metadata.get("uid"), "resourceVersion": metadata.get("resourceVersion"),
        }  # fmt: skip
        event = {
            "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}"}, "involvedObject": reference,
            "reason": reason, "message": message, "type": "Warning" if warning else "Normal", "count": 1,
            "firstTimestamp": now(), "lastTimestamp": now(), "source": {"component": component},
            "reportingComponent": component, "reportingInstance": "",
        }  # fmt: skip
        self.store.create(EVENTS, namespace, event)
