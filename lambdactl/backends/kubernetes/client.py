"""The API as plain dictionaries: one session of HTTP requests, patient with a server that restarts.

Everything that streams is next door: `watching`, `logs`, `sockets`; their functions are methods here. Bodies are the
API's JSON as it stands: the generated models of the ``kubernetes`` package cost more memory than 200 ranks may take.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from . import logs, sockets, watching
from .config import Target
from .errors import Gone, NamespaceMissing, NotFound
from .http import CONNECT_TIMEOUT, Http, Object
from .kubeconfig import Login
from .resources import ACCESS_REVIEWS, Resource

PATIENCE = 60.0
PAGE = 500
_PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """A list, and the version of the whole that it shows."""

    items: list[Object]
    resource_version: str


@asynccontextmanager
async def open_client(target: Target, *, patience: float = PATIENCE) -> AsyncIterator[Client]:
    """Log in to a cluster; nothing is asked of it yet.

    Args:
        target: the cluster and the namespace.
        patience: how long (seconds) a server that has answered before may be away.

    Raises:
        SpecError: the kubeconfig is not usable.
        ConnectionFailed: its login program failed.
    """
    import aiohttp

    login = Login(target.kubeconfig, target.context)
    await login.renew()
    # No limit: 200 log streams and the watches each hold a connection.
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=30)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=1 << 16,
        trust_env=not _is_local(login.server),  # HTTPS_PROXY and NO_PROXY, as kubectl has it
    ) as session:
        yield Client(target, login, session, patience=patience)


class Client(Http):
    """One cluster; made by `open_client`.

    Every method raises an `APIError` (errors.py) whose text is a whole sentence. ``namespace`` is the target's unless
    a call names another one; ``labels`` and ``fields`` are selectors as kubectl takes them.
    """

    async def version(self) -> Object:
        """The server's version (``gitVersion``)."""
        return await self.json("GET", "/version", self.asked("get", "/version"))

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object:
        """One object; NotFound."""
        path = resource.path(namespace or self.namespace, name)
        return await self.json("GET", path, self.asked("get", resource, name, namespace))

    async def find(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object | None:
        """One object, or None."""
        try:
            return await self.get(resource, name, namespace=namespace)
        except NotFound:
            return None

    async def list(
        self,
        resource: Resource,
        *,
        labels: str = "",
        fields: str = "",
        namespace: str | None = None,
        everywhere: bool = False,
    ) -> Listing:
        """All objects that the selectors choose, in pages; ``everywhere`` is all namespaces."""
        space = None if everywhere else namespace or self.namespace
        asked = self.asked("list", resource, None, space, everywhere=everywhere)
        items: list[Object] = []
        more: str | None = None
        while True:
            query = watching.selectors(labels, fields) | {"limit": str(PAGE)} | ({"continue": more} if more else {})
            try:
                answer = await self.json("GET", resource.path(space), asked, query=query)
            except Gone:
                if more is None:
                    raise
                items, more = [], None  # the pages took too long: begin again
                continue
            for item in answer.get("items") or []:
                item.get("metadata", {}).pop("managedFields", None)
                items.append(item)
            more = (answer.get("metadata") or {}).get("continue")
            if not more:
                return Listing(items, str((answer.get("metadata") or {}).get("resourceVersion", "")))

    async def create(
        self, resource: Resource, body: Mapping[str, Any], *, namespace: str | None = None, dry_run: bool = False
    ) -> Object:
        """Make an object; ``dry_run`` lets the server check it and makes nothing."""
        name = (body.get("metadata") or {}).get("name")
        query = {"dryRun": "All"} if dry_run else {}
        path = resource.path(namespace or self.namespace)
        return await self.json("POST", path, self.asked("create", resource, name, namespace), body=body, query=query)

    async def replace(
        self, resource: Resource, name: str, body: Mapping[str, Any], *, namespace: str | None = None
    ) -> Object:
        """Write an object as a whole; Conflict when its resourceVersion is not the newest."""
        path = resource.path(namespace or self.namespace, name)
        return await self.json("PUT", path, self.asked("update", resource, name, namespace), body=body)

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Any,
        *,
        kind: str = "merge",
        subresource: str | None = None,
        namespace: str | None = None,
    ) -> Object:
        """Change an object; ``kind`` is merge, strategic, json or apply."""
        path = resource.path(namespace or self.namespace, name, subresource)
        query = {"fieldManager": "lambdactl", "force": "true"} if kind == "apply" else {}
        asked = self.asked("patch", resource, name, namespace, subresource=subresource)
        return await self.json("PATCH", path, asked, body=body, query=query, content_type=_PATCHES[kind])

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        grace: int | None = None,
        propagation: str = "Background",
        uid: str | None = None,
        version: str | None = None,
        namespace: str | None = None,
    ) -> bool:
        """Delete an object; False where it was not there.

        Args:
            resource: its kind.
            name: its name.
            grace: seconds between SIGTERM and SIGKILL, in the place of the pod's own.
            propagation: Background, Foreground or Orphan: what becomes of what it owns.
            uid: only this very object, not a later one of that name.
            version: only as long as this is its resourceVersion (Conflict otherwise).
            namespace: the target's unless given.
        """
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        only = {"uid": uid, "resourceVersion": version}
        if only := {name: value for name, value in only.items() if value is not None}:
            body["preconditions"] = only
        path = resource.path(namespace or self.namespace, name)
        try:
            await self.json("DELETE", path, self.asked("delete", resource, name, namespace), body=body)
        except NamespaceMissing:
            raise
        except NotFound:
            return False
        return True

    async def delete_all(
        self, resource: Resource, *, labels: str, propagation: str = "Background", namespace: str | None = None
    ) -> None:
        """Delete all that the labels choose (``deletecollection``)."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        path = resource.path(namespace or self.namespace)
        asked = self.asked("deletecollection", resource, None, namespace)
        await self.json("DELETE", path, asked, body=body, query=watching.selectors(labels, ""))

    async def can(
        self, verb: str, resource: Resource, subresource: str | None = None, *, namespace: str | None = None
    ) -> tuple[bool, str]:
        """Whether this user may, and the API's reason (SelfSubjectAccessReview). "" as namespace is all of them."""
        attributes: Object = {"verb": verb, "group": resource.group, "resource": resource.plural}
        if resource.namespaced:
            attributes["namespace"] = self.namespace if namespace is None else namespace
        if subresource:
            attributes["subresource"] = subresource
        body = {
            "apiVersion": ACCESS_REVIEWS.api_version,
            "kind": ACCESS_REVIEWS.kind,
            "spec": {"resourceAttributes": attributes},
        }
        answer = await self.create(ACCESS_REVIEWS, body)
        status = answer.get("status") or {}
        return bool(status.get("allowed")), str(status.get("reason") or status.get("evaluationError") or "")

    async def groups(self) -> set[str]:
        """The API groups that the cluster has, such as ``kueue.x-k8s.io``."""
        answer = await self.json("GET", "/apis", self.asked("get", "/apis"))
        return {str(group.get("name")) for group in answer.get("groups") or []}

    def watch(
        self,
        resource: Resource,
        *,
        labels: str = "",
        fields: str = "",
        namespace: str | None = None,
        everywhere: bool = False,
    ) -> AsyncGenerator[watching.Event, None]:
        """See `watching.watch`; ``everywhere`` is all namespaces."""
        space = None if everywhere else namespace or self.namespace
        return watching.watch(self, resource, labels=labels, fields=fields, namespace=space)

    def follow_log(
        self,
        pod: str,
        *,
        container: str | None = None,
        since: float | None = None,
        follow: bool = True,
        ended: logs.Ended | None = None,
        namespace: str | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """See `logs.follow_log`."""
        return logs.follow_log(
            self, pod, container=container, since=since, follow=follow, ended=ended, namespace=namespace
        )

    def port_forward(
        self, pod: str, port: int, *, namespace: str | None = None
    ) -> AbstractAsyncContextManager[sockets.Stream]:
        """See `sockets.port_forward`."""
        return sockets.port_forward(self, pod, port, namespace=namespace or self.namespace)

    async def exec(
        self,
        pod: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        container: str | None = None,
        timeout: float | None = 30,
        namespace: str | None = None,
    ) -> sockets.Completed:
        """See `sockets.execute`."""
        return await sockets.execute(
            self, pod, command, stdin=stdin, container=container, timeout=timeout, namespace=namespace or self.namespace
        )


def _is_local(server: str) -> bool:
    """Whether a server is this machine itself, which no proxy is asked for."""
    from urllib.parse import urlsplit

    host = urlsplit(server).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
