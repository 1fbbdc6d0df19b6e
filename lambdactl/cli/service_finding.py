"""From a service's name to its ingress host, for the verbs that mean runs and services alike."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambdactl.cli import service_record
from lambdactl.cli.select import known_fleets
from lambdactl.errors import SpecError
from lambdactl.fleet import Fleet
from lambdactl.run.service_control import ServiceStatus, fetch_services
from lambdactl.state import State

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class FoundService:
    """A service with an open transport to its fleet."""

    fleet: Fleet
    transport: Transport
    status: ServiceStatus


def may_be_service(key: str) -> bool:
    """Whether it is worth asking for a service of that name: not where this machine knows it to be a run."""
    if _UUID.fullmatch(key):
        return False
    if service_record.is_known(key):
        return True
    with State() as state:
        return state.run(key) is None


@asynccontextmanager
async def found_service(key: str, fleet_option: str | None) -> AsyncIterator[FoundService | None]:
    """The service of that name on the fleets that may have it; None when no host that answers knows one."""
    from lambdactl.transport import open_transport

    with State() as state:
        try:
            fleets = known_fleets(fleet_option, state)
        except SpecError:  # no SSH fleet is meant; what is wrong with that, if anything, whoever looks for runs says
            fleets = []
    for fleet in fleets:
        async with open_transport(fleet) as transport:
            services, _problems = await fetch_services(transport, [host.name for host in fleet.hosts], key)
            if services:
                yield FoundService(fleet, transport, services[0])
                return
    yield None


def replica_run(status: ServiceStatus, replica: int | None) -> str:
    """The run of a replica (the first one by default), by id where it runs now, else by name.

    Raises:
        SpecError: the service has no such replica.
    """
    number = replica or 0
    if not 0 <= number < max(1, status.wanted):
        raise SpecError(f"{status.name} has replicas 0 to {status.wanted - 1}, not {number}.")
    mine = [r for r in status.data["replicas"] if r["replica"] == number]
    return str(mine[-1]["run_id"]) if mine else f"{status.name}-{number}"
