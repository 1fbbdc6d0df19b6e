"""Verbs on services: `ps`, `run get`, `attach`, `stop`, `delete`. Each returns None where there is no service."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from typing import Any

from lambdactl.cli import kube_services, service_record
from lambdactl.cli.console import ago, confirm, counted, note, print_json, print_table, state_text
from lambdactl.cli.service_finding import FoundService, found_service, may_be_service, replica_run
from lambdactl.errors import EXIT_FAILED, EXIT_OK, ConnectionFailed
from lambdactl.run.service_control import (
    MODELS_PATH,
    STOP_PATIENCE,
    ServiceStatus,
    fetch_token,
    forget_service,
    stop_service,
)
from lambdactl.transport.api import TransportError

SOCKET = "/run/lambdactl-ingress/{name}.sock"
_COLUMNS = ("SERVICE", "FLEET", "STATE", "READY", "PROBES", "INGRESS", "URL", "SUBMITTED", "REASON")


def rows(services: Sequence[tuple[str, ServiceStatus]]) -> list[tuple[object, ...]]:
    """Rows of the table of services."""
    return [
        (
            status.name,
            fleet,
            state_text(status.state),
            f"{status.ready}/{status.wanted}",
            " ".join(str(replica["probes"]) for replica in status.data["replicas"]) or "-",
            status.ingress,
            f":{status.port}{status.path}",
            ago(status.data.get("submitted_at")),
            status.trouble(),
        )
        for fleet, status in services
    ]


def print_services(services: Sequence[tuple[str, ServiceStatus]], *, all_services: bool) -> None:
    """The table of services above that of runs; nothing where there are none."""
    shown = [(fleet, status) for fleet, status in services if all_services or not status.final]
    if shown:
        print_table(_COLUMNS, rows(shown))


def replica_of(key: str, fleet: str | None, replica: int | None) -> str | None:
    """The run that `logs SERVICE` means; None when there is no service of that name."""

    async def body() -> str | None:
        async with found_service(key, fleet) as found:
            return replica_run(found.status, replica) if found is not None else None

    return asyncio.run(body()) if may_be_service(key) else None


def get(key: str, fleet: str | None, *, as_json: bool) -> int | None:
    """Show one service with its replicas."""

    async def body() -> ServiceStatus | None:
        async with found_service(key, fleet) as found:
            return found.status if found is not None else None

    status = kube_services.look(key, fleet)
    if status is None:
        status = asyncio.run(body()) if may_be_service(key) else None
    if status is None:
        return None
    if as_json:
        print_json(status.as_json())
        return EXIT_OK
    rows: list[tuple[str, object]] = [
        ("name", status.name),
        ("type", "service"),
        ("state", state_text(status.state)),
        ("replicas ready", f"{status.ready} of {status.wanted}"),
        ("ingress", f"{status.ingress}, port {status.port}"),
        ("path", status.path),
        ("model", status.data.get("model") or "-"),
        ("auth", "bearer token" if status.data.get("auth") else "none"),
        ("update", status.data["update"]["state"]),
        ("reason", status.trouble() or "-"),
        ("owner", status.data.get("owner") or "-"),
        ("submitted", ago(status.data.get("submitted_at"))),
    ]
    print_table(("FIELD", "VALUE"), rows)
    replicas = status.data["replicas"]
    print_table(
        ("REPLICA", "RUN", "HOST", "STATE", "PROBES", "REASON"),
        [(r["replica"], r["run_name"], r["host"], state_text(r["state"]), r["probes"], r["message"]) for r in replicas],
    )
    return EXIT_OK


def stop(key: str, fleet: str | None, *, yes: bool) -> int | None:
    """Drain and stop a service."""

    async def body() -> int | None:
        async with found_service(key, fleet) as found:
            if found is None or found.status.final:
                return None
            replicas = counted(len(found.status.data["replicas"]), "replica")
            if not confirm(f"Stop the service {key} with {replicas}?", yes=yes):
                return EXIT_FAILED
            return await _stop(found)

    code = kube_services.stop(key, fleet, yes=yes)
    if code is not None:
        return code
    return asyncio.run(body()) if may_be_service(key) else None


async def _stop(found: FoundService) -> int:
    name = found.status.name
    ended = await stop_service(found.transport, found.status.ingress, name, patience=STOP_PATIENCE)
    if ended is not None and not ended.final:
        note(f"{name} has not ended yet ({ended.trouble() or ended.state}); it goes on stopping.")
        return EXIT_FAILED
    left = [replica["host"] for replica in (ended.data["replicas"] if ended else ())]
    if left:
        note(f"{', '.join(left)} did not answer and may still run a replica; stop its run when it is back.")
    note(f"{name} is stopped.")
    return EXIT_FAILED if left else EXIT_OK


def delete(name: str, fleet: str | None, *, yes: bool) -> int | None:
    """Stop a service and remove all that is left of it, its token included."""

    async def body() -> int | None:
        async with found_service(name, fleet) as found:
            if found is None:
                return None
            if not confirm(f"Stop the service {name} and delete it?", yes=yes):
                return EXIT_OK
            code = EXIT_OK if found.status.final else await _stop(found)
            if code == EXIT_OK:
                await _forget(found, name)
                note(f"{name} is deleted.")
            return code

    in_cluster = kube_services.stop(name, fleet, yes=yes, delete=True)
    return asyncio.run(body()) if in_cluster is None else in_cluster


async def _forget(found: FoundService, name: str) -> None:
    for attempt in range(10):  # the supervisor writes its last words and ends a moment later
        try:
            await forget_service(found.transport, found.status.ingress, name)
            break
        except Exception:
            if attempt == 9:
                raise
            await asyncio.sleep(0.5)
    service_record.forget(found.fleet.id, name)


def attach(key: str, fleet: str | None) -> int | None:
    """Forward a local port to the service until Ctrl-C; requests need no other address or open port."""

    async def body() -> int | None:
        async with found_service(key, fleet) as found:
            if found is None or found.status.final:
                return None
            await _forward(found)
            return EXIT_OK

    code = kube_services.attach(key, fleet)
    if code is not None:
        return code
    if not may_be_service(key):
        return None
    try:
        return asyncio.run(body())
    except KeyboardInterrupt:
        return EXIT_OK


async def _forward(found: FoundService) -> None:
    status = found.status
    token = await fetch_token(found.transport, status.ingress, status.name)
    path = service_record.keep(found.fleet.id, status.name, status.ingress, token)
    forward = await _listen(found, int(status.data["port"]))
    url = f"http://localhost:{forward.port}/"
    print(url, flush=True)
    note(f"{status.name} ({status.ready}/{status.wanted} replicas ready) is at {url} until Ctrl-C.")
    if path is not None:
        note(f'Its token is in {path}: curl -H "Authorization: Bearer $(cat {path})" {url}')
    if status.data.get("model"):
        note(f"OpenAI-compatible: {url.rstrip('/')}{MODELS_PATH} as base URL, model {status.data['model']}.")
    try:
        await asyncio.Event().wait()
    finally:
        await forward.close()


async def _listen(found: FoundService, wanted: int) -> Any:
    """On the service's own port where it is free here, else on any."""
    remote = SOCKET.format(name=found.status.name)
    try:
        return await found.transport.forward(found.status.ingress, remote, local_port=wanted if wanted >= 1024 else 0)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
    except TransportError as error:
        if "use" not in error.failure.message:
            raise ConnectionFailed(f"{error.failure.message} {error.failure.remedy or ''}".strip()) from None
    return await found.transport.forward(found.status.ingress, remote)
