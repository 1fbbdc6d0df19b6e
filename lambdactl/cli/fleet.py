"""`lambdactl fleet list|get`."""

from __future__ import annotations

import asyncio

from lambdactl.cli.console import ago, print_json, print_table
from lambdactl.cli.fleet_view import COLUMNS, as_json, host_rows
from lambdactl.cli.select import choose_fleet, kubernetes_fleet
from lambdactl.errors import EXIT_OK, EXIT_UNREACHABLE
from lambdactl.fleet import Fleet
from lambdactl.provision import Survey, survey
from lambdactl.state import State


def list_fleets(*, as_json: bool) -> int:
    """The fleets that this machine remembers."""
    with State() as state:
        records = state.fleets()
    if as_json:
        print_json(
            [
                {"name": r.name, "id": r.id, "file": r.path, "hosts": list(r.hosts), "applied_at": r.updated_at}
                for r in records
            ]
        )
        return EXIT_OK
    print_table(
        ("NAME", "HOSTS", "APPLIED", "FILE"),
        [(r.name, len(r.hosts), ago(r.updated_at), r.path or "-") for r in records],
    )
    return EXIT_OK


def get(name: str, *, as_json: bool) -> int:
    """One fleet's hosts as they answer now; 4 when none of them answers."""
    with State() as state:
        if kubernetes := kubernetes_fleet(name, state):
            from lambdactl.cli import kube_fleet

            return kube_fleet.get(kubernetes, as_json=as_json)
        fleet = choose_fleet(name, state)
    seen = asyncio.run(_look(fleet))
    if as_json:
        print_json(_json(fleet, seen))
    else:
        print_table(COLUMNS, host_rows(fleet, seen, {}))
    return EXIT_OK if seen.facts else EXIT_UNREACHABLE


async def _look(fleet: Fleet) -> Survey:
    from lambdactl.transport import open_transport

    async with open_transport(fleet) as transport:
        return await survey(fleet, transport)


def _json(fleet: Fleet, seen: Survey) -> dict[str, object]:
    return as_json(fleet, seen, {})
