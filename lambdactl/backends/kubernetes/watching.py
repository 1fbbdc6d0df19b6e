"""Watching objects of one kind: a list, then its changes for as long as the caller likes, over every interruption."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import Asked, Gone, Unavailable, explain, unreachable
from .resources import Resource

if TYPE_CHECKING:
    import aiohttp

    from .client import Client

ROUND = 60
"""Seconds after which the server ends a watch, which then goes on where it was."""
SILENCE = ROUND + 15
"""Seconds without a byte after which a connection counts as dead: a watch's own end comes before."""
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0

ADDED, MODIFIED, DELETED, SYNCED = "ADDED", "MODIFIED", "DELETED", "SYNCED"


@dataclass(frozen=True, slots=True)
class Event:
    """A change. SYNCED (without an object) follows when a list has been told whole."""

    type: str
    object: dict[str, Any]


def selectors(labels: str, fields: str) -> dict[str, str]:
    """The query of a selection."""
    return {name: value for name, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}


async def watch(
    client: Client, resource: Resource, *, labels: str = "", fields: str = "", namespace: str | None = None
) -> AsyncGenerator[Event, None]:
    """What the selectors choose: first ADDED for all that there is, SYNCED, then every change as it comes.

    Without a namespace it is that of all of them.
    It goes on where it was when the server ends the connection, and lists again when the server no longer knows that
    place (410): the caller then gets only what differs from what it was told (a vanished object is DELETED, with its
    last metadata), and SYNCED again. ``managedFields`` are left out.

    Raises:
        Unavailable: the server has not answered for ``client.patience`` seconds.
        APIError: the login or a right was taken away.
    """
    follower = _Follower(client, resource, labels, fields, namespace)
    quiet_since: float | None = None
    delay = FIRST_DELAY
    while True:
        began, listing = time.monotonic(), not follower.version
        try:
            async with aclosing(follower.round()) as events:
                async for event in events:
                    quiet_since, delay = None, FIRST_DELAY
                    yield event
            quiet_since = None
            if listing or time.monotonic() - began > 1:
                continue
        except Gone:
            follower.version = ""
        except Unavailable as error:
            if error.status is None:
                client.troubled()
            quiet_since = quiet_since or time.monotonic()
            if not client.answered or time.monotonic() - quiet_since > client.patience:
                raise
        await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        delay = min(delay * 2, LONGEST_DELAY)


class _Follower:
    """One watch's memory: where it is, and which objects the caller knows (only what identifies them)."""

    def __init__(self, client: Client, resource: Resource, labels: str, fields: str, namespace: str | None) -> None:
        self.client = client
        self.resource = resource
        self.labels, self.fields = labels, fields
        self.namespace = namespace
        self.version = ""
        self.known: dict[str, dict[str, Any]] = {}

    async def round(self) -> AsyncGenerator[Event, None]:
        """A list where the place is not known, else the changes until the connection ends."""
        if not self.version:
            listing = await self.client.list(
                self.resource,
                labels=self.labels,
                fields=self.fields,
                namespace=self.namespace,
                everywhere=self.namespace is None,
            )
            for event in self._compare(listing.items):
                yield event
            self.version = listing.resource_version
            yield Event(SYNCED, {})
            return
        query = selectors(self.labels, self.fields) | {
            "watch": "1",
            "resourceVersion": self.version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(ROUND),
        }
        asked = self.client.asked("watch", self.resource, None, self.namespace, everywhere=self.namespace is None)
        path = self.resource.path(self.namespace)
        async with self.client.request("GET", path, asked, query=query, sock_read=SILENCE) as response:
            async for line in lines(response, asked):
                if (change := self._read(json.loads(line), asked)) is not None:
                    yield change

    def _compare(self, items: list[dict[str, Any]]) -> list[Event]:
        events = []
        present = {}
        for item in items:
            uid = str(item["metadata"].get("uid"))
            before = self.known.get(uid)
            present[uid] = _identity(item)
            if before is None:
                events.append(Event(ADDED, self._whole(item)))
            elif before["metadata"].get("resourceVersion") != item["metadata"].get("resourceVersion"):
                events.append(Event(MODIFIED, self._whole(item)))
        gone = [Event(DELETED, self._whole(item)) for uid, item in self.known.items() if uid not in present]
        self.known = present
        return gone + events

    def _read(self, message: dict[str, Any], asked: Asked) -> Event | None:
        kind, item = message.get("type"), message.get("object") or {}
        if kind == "ERROR":
            raise explain(int(item.get("code") or 500), item, asked)
        metadata = item.get("metadata") or {}
        self.version = str(metadata.get("resourceVersion") or self.version)
        if kind == "BOOKMARK":
            return None
        uid = str(metadata.get("uid"))
        if kind == DELETED:
            self.known.pop(uid, None)
        else:
            self.known[uid] = _identity(item)
        return Event(str(kind), self._whole(item))

    def _whole(self, item: dict[str, Any]) -> dict[str, Any]:
        """Lists leave out what each item is."""
        item.get("metadata", {}).pop("managedFields", None)
        return {"apiVersion": self.resource.api_version, "kind": self.resource.kind} | item


_IDENTITY = ("name", "namespace", "uid", "resourceVersion", "labels")


def _identity(item: dict[str, Any]) -> dict[str, Any]:
    metadata = item.get("metadata") or {}
    return {"metadata": {name: metadata[name] for name in _IDENTITY if name in metadata}}


async def lines(response: aiohttp.ClientResponse, asked: Asked) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, however long they are; a last line without an end is dropped.

    Raises:
        Unavailable: the connection was cut.
    """
    import aiohttp

    rest: list[bytes] = []
    try:
        async for chunk in response.content.iter_any():
            *whole, last = chunk.split(b"\n")
            if whole:
                whole[0] = b"".join([*rest, whole[0]])
                rest = []
            for line in whole:
                if line:
                    yield line
            if last:
                rest.append(last)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise unreachable(error, asked) from None
