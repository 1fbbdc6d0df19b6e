"""Which backend serves a fleet, and running transports from code that is not async."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lambdactl.errors import SpecError
from lambdactl.transport import api
from lambdactl.transport.api import Kind, Transport
from lambdactl.transport.quick_import import import_asyncssh

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet, Hop

T = TypeVar("T")
VARIABLE = "LAMBDACTL_TRANSPORT"
KINDS = ("auto", "asyncssh", "openssh")


@asynccontextmanager
async def open_transport(
    fleet: Fleet, *, kind: Kind = "auto", connect_timeout: float = api.CONNECT_TIMEOUT, window: int = api.WINDOW
) -> AsyncIterator[Transport]:
    """A transport for a fleet; leaving the context closes every connection and process of it.

    Args:
        kind: ``auto`` takes asyncssh where it is installed and can use the keys, else the ssh command. The environment
            variable LAMBDACTL_TRANSPORT wins over this argument.
        connect_timeout: seconds for each login.
        window: logins on nodes under way at a time.

    Raises:
        SpecError: LAMBDACTL_TRANSPORT has another value than auto, asyncssh or openssh.
    """
    wanted = os.environ.get(VARIABLE) or kind
    if wanted not in KINDS:
        raise SpecError(f"{VARIABLE} is '{wanted}'; it takes one of: {', '.join(KINDS)}.")
    if wanted == "auto":
        wanted = "openssh" if await why_not_asyncssh(fleet) else "asyncssh"
    async with _backend(wanted, fleet, connect_timeout, window) as transport:
        yield transport


def _backend(kind: str, fleet: Fleet, connect_timeout: float, window: int) -> Transport:
    if kind == "openssh":
        from lambdactl.transport.openssh_backend import OpensshTransport

        return cast(Transport, OpensshTransport(fleet, connect_timeout=connect_timeout, window=window))
    import_asyncssh()
    from lambdactl.transport.asyncssh_backend import AsyncsshTransport

    return cast(Transport, AsyncsshTransport(fleet, connect_timeout=connect_timeout, window=window))


async def why_not_asyncssh(fleet: Fleet) -> str | None:
    """One clause that says why this fleet needs the ssh command; None when asyncssh will do."""
    try:
        import_asyncssh()
        from lambdactl.transport.asyncssh_login import unusable
        from lambdactl.transport.identity import Identities
    except ImportError:
        return "asyncssh is not installed"
    identities = Identities()
    try:
        return await unusable(identities, distinct_hops(fleet))
    finally:
        await identities.close()


def distinct_hops(fleet: Fleet) -> list[Hop]:
    """One hop for each identity that the fleet uses."""
    hops = [hop for host in fleet.hosts for hop in (*host.route.hops, host.route.target)]
    return list({(hop.identity_file,): hop for hop in hops}.values())


def run_sync(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a fresh event loop; for Ansible's action plugins and the like."""
    return asyncio.run(coro)
