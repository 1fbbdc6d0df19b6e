"""The fake's watches: events of one kind, bookmarks, 410 and the end after timeoutSeconds."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

from aiohttp import web

from .server import ApiServer, Ask, selected
from .store import Object, Refused

EXPIRED = Refused(410, "Expired", "too old resource version")


@dataclass(eq=False)
class _Watch:
    queue: asyncio.Queue[tuple[str, Object] | None] = field(default_factory=asyncio.Queue)
    matched: set[str] = field(default_factory=set)


class Watches:
    """All open watches of a server."""

    def __init__(self, server: ApiServer, *, bookmarks: float = 1.0) -> None:
        self.server = server
        self.bookmarks = bookmarks
        self.open: set[_Watch] = set()
        server.watch = self.serve

    def expire(self) -> None:
        """Every open watch gets 410 and ends, and none can go on from before now."""
        self.server.store.oldest = self.server.store.version + 1
        self.server.store.version += 1
        for watch in self.open:
            watch.queue.put_nowait(("ERROR", EXPIRED.status()))

    def end(self) -> None:
        """Every open watch ends as if its time were over."""
        for watch in self.open:
            watch.queue.put_nowait(None)

    async def serve(self, ask: Ask) -> web.StreamResponse:
        query = ask.request.query
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(ask.request)
        watch, store = _Watch(), self.server.store
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")

        def hear(kind: str, plural: str, item: Object) -> None:
            if plural != ask.resource.plural or ask.namespace not in (None, item["metadata"].get("namespace")):
                return
            uid, fits = item["metadata"]["uid"], selected(item, labels, fields)
            if fits and kind != "DELETED":
                watch.queue.put_nowait(("MODIFIED" if uid in watch.matched else "ADDED", item))
                watch.matched.add(uid)
            elif uid in watch.matched:
                watch.matched.discard(uid)
                watch.queue.put_nowait(("DELETED", item))

        self._begin(ask, watch, hear, int(query.get("resourceVersion") or 0), labels, fields)
        store.listeners.append(hear)
        self.open.add(watch)
        try:
            await self._send(response, watch, ask, float(query.get("timeoutSeconds") or 1800))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            store.listeners.remove(hear)
            self.open.discard(watch)
        return response

    def _begin(self, ask: Ask, watch: _Watch, hear, version: int, labels: str, fields: str) -> None:
        store = self.server.store
        if version == 0:
            for item in self.server.chosen(ask):
                hear("ADDED", ask.resource.plural, item)
            return
        if version < store.oldest:
            watch.queue.put_nowait(("ERROR", EXPIRED.status()))
            return
        # What matched at that version is not kept; what matches now, and is older, did.
        for item in store.all(ask.resource.plural, ask.namespace):
            if int(item["metadata"]["resourceVersion"]) <= version and selected(item, labels, fields):
                watch.matched.add(item["metadata"]["uid"])
        changed = list(store.since(version, ask.resource.plural))
        first: dict[str, str] = {}
        for _, kind, item in changed:
            first.setdefault(item["metadata"]["uid"], kind)
        watch.matched |= {uid for uid, kind in first.items() if kind != "ADDED"}
        for _, kind, item in changed:
            hear(kind, ask.resource.plural, item)

    async def _send(self, response: web.StreamResponse, watch: _Watch, ask: Ask, timeout: float) -> None:
        end = time.monotonic() + timeout
        marks = ask.request.query.get("allowWatchBookmarks") == "true"
        while (left := end - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(watch.queue.get(), min(left, self.bookmarks))
            except TimeoutError:
                if not marks:
                    continue
                mark = {"kind": ask.resource.kind, "apiVersion": ask.resource.api_version}
                version = {"metadata": {"resourceVersion": str(self.server.store.version)}}
                message = ("BOOKMARK", mark | version)
            if message is None:
                return
            kind, item = message
            await response.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")
            if kind == "ERROR":
                return
