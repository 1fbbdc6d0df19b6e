"""HTTP requests to the API: one session, patient with a server that restarts, errors as sentences."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from .errors import APIError, Asked, Unavailable, explain, unreachable, warming_up
from .resources import Resource

if TYPE_CHECKING:
    import aiohttp

    from .config import Target
    from .kubeconfig import Login

Object = dict[str, Any]

REQUEST_TIMEOUT = 30.0
CONNECT_TIMEOUT = 10.0
WARM_UP = 30.0
"""Seconds after trouble with the connection in which a refusal may be that of an API server which has just started: it
answers 401 and 403 to everybody until it has read the service accounts and the roles (seen on Kubernetes 1.36)."""


class Http:
    """What `client.Client` sends its requests with.

    Attributes:
        namespace: of requests that name no other one.
        patience: seconds that a server which has answered before may be away.
        answered: whether it has ever answered; before that, nothing is tried twice.
        welcomed: whether it has ever taken the login and granted something.
    """

    def __init__(self, target: Target, login: Login, session: aiohttp.ClientSession, *, patience: float) -> None:
        self.target = target
        self.namespace = target.namespace
        self.login = login
        self.session = session
        self.patience = patience
        self.answered = False
        self.welcomed = False
        self._trouble = -WARM_UP

    def troubled(self) -> None:
        """Remember that a connection failed or broke: the server may be starting again."""
        self._trouble = time.monotonic()

    def asked(
        self,
        verb: str,
        resource: Resource | str,
        name: str | None = None,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        everywhere: bool = False,
    ) -> Asked:
        """What a request asks, for its error."""
        full = resource if isinstance(resource, str) else resource.full_name
        namespaced = isinstance(resource, Resource) and resource.namespaced and not everywhere
        return Asked(
            cluster=self.target.name,
            server=self.login.server,
            namespace=(namespace or self.namespace) if namespaced else None,
            verb=verb,
            resource=f"{full}/{subresource}" if subresource else full,
            name=name,
        )

    async def json(
        self,
        method: str,
        path: str,
        asked: Asked,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One request and its answer; waits out a server that is away, logs in again when the token has expired."""
        deadline = time.monotonic() + self.patience
        delay = 0.2
        while True:
            try:
                return await asyncio.wait_for(
                    self._once(method, path, asked, body, query or {}, content_type), REQUEST_TIMEOUT
                )
            except TimeoutError as error:
                failure: APIError = unreachable(error, asked)
                self.troubled()
            except Unavailable as error:
                failure = error
            if not self.answered or not _may_repeat(method, failure) or time.monotonic() + delay > deadline:
                raise failure
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
            delay = min(delay * 2, 5.0)

    async def _once(
        self, method: str, path: str, asked: Asked, body: Any, query: Mapping[str, str], content_type: str
    ) -> Object:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if data is not None else {})
        async with self.request(method, path, asked, query=query, data=data, headers=headers) as response:
            answer = await response.json(content_type=None)
            return answer if isinstance(answer, dict) else {}

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        asked: Asked,
        *,
        query: Mapping[str, str] | None = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        sock_read: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful response whose body the caller reads; logs in again once where the login is refused.

        Raises:
            APIError: the server refused, or there was no answer (Unavailable).
        """
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=sock_read)
        for attempt in (1, 2):
            login = self.login.headers()
            try:
                response = await self.session.request(
                    method,
                    self.login.server + path,
                    params=dict(query or {}),
                    data=data,
                    headers={**(headers or {}), **login},
                    timeout=timeout,
                    **self.connection(),
                )
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.troubled()
                raise unreachable(error, asked) from None
            self.answered = True
            if response.status == 401 and attempt == 1 and await self.login.expired(login):
                response.release()
                continue
            break
        try:
            if response.status >= 400:
                raise self._refused(explain(response.status, await _status(response), asked), asked)
            self.welcomed = True
            yield response
        finally:
            # Not release(): an unread stream would be waited for.
            response.close()

    def _refused(self, error: APIError, asked: Asked) -> APIError:
        if error.status is not None and error.status >= 500:
            self.troubled()
        restarted = "RBAC: " in error.said or time.monotonic() - self._trouble < WARM_UP
        return warming_up(error, asked) if self.welcomed and restarted else error

    def connection(self) -> dict[str, Any]:
        """What aiohttp wants to know of TLS and the proxy."""
        options: dict[str, Any] = {"proxy": self.login.proxy, "allow_redirects": False}
        if self.login.tls is not None:
            options["ssl"] = self.login.tls
        if self.login.server_name:
            options["server_hostname"] = self.login.server_name
        return options


def _may_repeat(method: str, failure: APIError) -> bool:
    """Whether a request may be sent again: not where it may have taken effect, unless once is as good as twice."""
    return (
        method in ("GET", "DELETE", "PUT")
        or failure.status in (401, 403, 429, 503)
        or "refuses connections" in failure.message
    )


async def _status(response: aiohttp.ClientResponse) -> Object:
    """The API's Status object; plain text as its message."""
    text = (await response.content.read(1 << 16)).decode("utf-8", "replace")
    try:
        answer = json.loads(text)
    except ValueError:
        return {"message": text}
    return answer if isinstance(answer, dict) else {"message": text}
