"""Verbs on services in clusters: `ps`, `run get`, `logs`, `attach`, `stop`, `delete`; None where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl.cli import service_record
from lambdactl.cli.console import confirm, counted, note
from lambdactl.cli.kube_runs import fleets
from lambdactl.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, LambdactlError, SpecError
from lambdactl.state import State

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.client import Client
    from lambdactl.backends.kubernetes.service_session import ServiceSession
    from lambdactl.run.service_control import ServiceStatus


@dataclass(frozen=True)
class KubeFound:
    """A service with an open client of its cluster."""

    fleet_id: str
    client: Client
    status: ServiceStatus


@asynccontextmanager
async def found_service(key: str, option: str | None) -> AsyncIterator[KubeFound | None]:
    """The service of that name on the Kubernetes fleets that may have it."""
    with State() as state:
        record = state.run(key)
        known = [] if record is not None and record.state != "ended" else fleets(option, state)
    if not known:
        yield None
        return
    from lambdactl.backends.kubernetes.backend import open_backend
    from lambdactl.backends.kubernetes.services import fetch

    for fleet in known:
        async with open_backend(fleet) as backend:
            for _target, client in backend.clients:
                if found := await fetch(client, key):
                    yield KubeFound(fleet.id, client, found[0])
                    return
    yield None


async def all_services(option: str | None) -> tuple[list[tuple[str, ServiceStatus]], dict[str, str]]:
    """For `ps`: services with their fleet's name, and why clusters gave no answer."""
    with State() as state:
        known = fleets(option, state)
    if not known:
        return [], {}
    from lambdactl.backends.kubernetes.backend import open_backend
    from lambdactl.backends.kubernetes.services import fetch

    found: dict[tuple[str, str, str], tuple[str, ServiceStatus]] = {}
    problems: dict[str, str] = {}
    for fleet in known:
        async with open_backend(fleet) as backend:
            for target, client in backend.clients:
                try:
                    for status in await fetch(client):
                        key = (target.name, target.namespace, status.name)
                        found.setdefault(key, (fleet.name, status))
                except LambdactlError as error:
                    problems[f"{fleet.name}/{target.name}"] = str(error)
    return list(found.values()), problems


def look(key: str, option: str | None) -> ServiceStatus | None:
    """One service as it is now."""

    async def body() -> ServiceStatus | None:
        async with found_service(key, option) as found:
            return found.status if found is not None else None

    return asyncio.run(body())


def stop(key: str, option: str | None, *, yes: bool, delete: bool = False) -> int | None:
    """Drain and end a service, and remove all that it made; 0 when nothing of it is left."""

    async def body() -> int | None:
        from lambdactl.backends.kubernetes import services

        async with found_service(key, option) as found:
            if found is None:
                return None
            replicas = len(found.status.data["replicas"])
            if not confirm(f"Stop the service {key} with {counted(replicas, 'replica')}?", yes=yes):
                return EXIT_OK if delete else EXIT_FAILED
            grace = float(found.status.data.get("stop_grace") or 0)
            if not await services.stop(found.client, key, patience=services.STOP_PATIENCE + grace):
                note(f"{key} has not ended yet; it goes on stopping.")
                return EXIT_FAILED
            service_record.forget(found.fleet_id, key)
            note(f"{key} is {'deleted' if delete else 'stopped'}.")
            return EXIT_OK

    return asyncio.run(body())


def print_log(
    key: str, option: str | None, replica: int | None, *, since: float | None, follow: bool, log_dir: Path | None
) -> int | None:
    """`logs`: what one replica has written; with `follow` what comes until it is gone."""

    async def body() -> int | None:
        from lambdactl.run.screen import LogOutput

        async with found_service(key, option) as found:
            if found is None:
                return None
            pod = _replica(found.status, replica)
            output = LogOutput([0], directory=log_dir)
            try:
                async for chunk in found.client.follow_log(pod, since=since, follow=follow):
                    output.write(0, chunk)
            except LambdactlError as error:
                note(f"replica {replica or 0}: {error}")
                return EXIT_UNREACHABLE
            finally:
                output.close()
            return EXIT_OK

    return asyncio.run(body())


def _replica(status: ServiceStatus, replica: int | None) -> str:
    """The pod of a replica; the first one by default."""
    replicas = status.data["replicas"]
    number = replica or 0
    if not 0 <= number < len(replicas):
        raise SpecError(
            f"{status.name} has replicas 0 to {len(replicas) - 1}, not {number}."
            if replicas
            else f"{status.name} has no replica now ({status.trouble() or status.state})."
        )
    return str(replicas[number]["run_name"])


def attach(key: str, option: str | None) -> int | None:
    """Forward a local port to the service until Ctrl-C, through the API."""

    async def body() -> int | None:
        from lambdactl.backends.kubernetes import service_front
        from lambdactl.backends.kubernetes.service_session import open_service
        from lambdactl.cli import kube_proxy

        async with found_service(key, option) as found:
            if found is None:
                return None
            status = found.status
            token = await service_front.fetch_token(found.client, key)
            path = service_record.keep(found.fleet_id, key, status.ingress, token)
            async with (
                open_service(found.client, key) as session,
                _forwarded(session, found) as local,
            ):
                url = f"http://localhost:{local}/"
                print(url, flush=True)
                note(f"{status.name} ({status.ready}/{status.wanted} replicas ready) is at {url} until Ctrl-C.")
                if status.path != "/":
                    kube_proxy.tell(url.rstrip("/"), url, path, status.data.get("model"))
                while session.deployment is not None:
                    await session.change(timeout=60.0)
            note(f"{status.name} was stopped.")
            return EXIT_OK

    try:
        return asyncio.run(body())
    except KeyboardInterrupt:
        return EXIT_OK


@asynccontextmanager
async def _forwarded(session: ServiceSession, found: KubeFound) -> AsyncIterator[int]:
    """The local port, which is the service's own where it is free; by the proxy where it has one, as on SSH hosts."""
    from lambdactl.backends.kubernetes import proxy
    from lambdactl.backends.kubernetes.proxy_session import open_proxy
    from lambdactl.backends.kubernetes.service_forward import listening

    wanted = int(found.status.data["port"])
    door = await proxy.door_of(found.client, session.name) if found.status.path != "/" else None
    if door is None:
        async with listening(session, wanted, local=wanted, notify=note) as local:
            yield local
        return
    async with open_proxy(found.client) as pods, listening(pods, door, local=wanted, notify=note) as local:
        yield local
