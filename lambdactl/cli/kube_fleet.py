"""Fleets of a Kubernetes backend: `apply`, `fleet get` and `delete` on their files."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lambdactl.backends.kubernetes.fleet import FleetView, KubeFleet, Member, look_at
from lambdactl.cli import dev_alias
from lambdactl.cli.console import confirm, note, print_json, print_table, size, state_text
from lambdactl.cli.fleet_view import gpus_text
from lambdactl.errors import EXIT_OK, CapacityError
from lambdactl.state import State, state_dir

if TYPE_CHECKING:
    from lambdactl.cli.apply import Options
    from lambdactl.spec import FleetSpec

COLUMNS = ("NODE", "ADDRESS", "CPU", "MEMORY", "GPUS", "FREE", "RDMA", "STATE", "REASON")


def apply(parsed: FleetSpec, path: str, options: Options) -> int:
    """Show which nodes a fleet file means, and remember it; nothing is made in the cluster.

    Raises:
        CapacityError: fewer nodes fit than the file wants; the fleet is remembered all the same.
    """
    fleet = KubeFleet.from_spec(parsed, path=None if path == "-" else path)
    view = asyncio.run(look_at(fleet))
    _show(view)
    if not options.check:
        with State() as state:
            hosts = [member.node.name for member in view.members]
            state.remember_fleet(fleet, parsed.source.text, facts=view.facts(), hosts=hosts)
    view.check()
    note(f"{fleet.name}: {len(view.members)} of {len(view.nodes)} nodes; nothing to install on them.")
    return EXIT_OK


def get(fleet: KubeFleet, *, as_json: bool) -> int:
    """One fleet's nodes as they are now."""
    view = asyncio.run(look_at(fleet))
    if as_json:
        print_json(_json(view))
    else:
        _show(view)
    return EXIT_OK


def delete(fleet: KubeFleet, *, yes: bool) -> int:
    """Forget a fleet, and remove what lambdactl has left in its namespaces.

    Raises:
        CapacityError: a run is active there.
    """
    from lambdactl.backends.kubernetes.strays import remove, strays

    found = asyncio.run(strays(fleet))
    if found.active:
        raise CapacityError(
            f"runs or services are active: {', '.join(found.active)}; stop them first (`lambdactl ps`)."
        )
    for stray in found.objects:
        note(f"{stray.title} is left over and will be deleted: {stray.why}")
    if not confirm(f"Delete the fleet {fleet.name}?", yes=yes):
        return EXIT_OK
    asyncio.run(remove(fleet, found))
    if asyncio.run(_leave_jump_pods(fleet)):
        note("the jump pod stays, because other users' keys are in it.")
    dev_alias.forget_fleet(fleet.id)
    with State() as state:
        state.forget_fleet(fleet.id)
    note(f"{fleet.name} is deleted; the cluster's nodes are as they were.")
    return EXIT_OK


async def _leave_jump_pods(fleet: KubeFleet) -> bool:
    """Take this user's key out of the jump pods; whether one stays for others."""
    from lambdactl.backends.kubernetes import jump
    from lambdactl.backends.kubernetes.client import open_client
    from lambdactl.backends.kubernetes.reach import own_key
    from lambdactl.backends.kubernetes.resources import SECRETS

    stays = False
    for target in fleet.targets:
        async with open_client(target) as client:
            if await client.find(SECRETS, jump.KEYS) is not None:
                stays |= await jump.leave(client, own_key(state_dir() / "kubernetes")[1])
    return stays


def _show(view: FleetView) -> None:
    for text in view.notes:
        note(text)
    several = len(view.fleet.targets) > 1
    columns = ("CLUSTER", *COLUMNS) if several else COLUMNS
    print_table(columns, [(member.target.name, *_row(member)) if several else _row(member) for member in view.nodes])


def _row(member: Member) -> tuple[object, ...]:
    node = member.node
    reason = "; ".join(member.reasons)
    gpus = gpus_text(node.facts) if not node.gpus or node.facts.gpus[0].full_name else f"{node.gpus} x unknown kind"
    rdma = ", ".join(f"{name}: {free}" for name, free in node.rdma.items()) or "none"
    free = f"{node.gpus_free} GPUs" if node.gpus else f"{node.free.get('cpu', 0):g} CPUs"
    return (
        node.name, node.internal_ip or "-", node.facts.cpus, size(node.facts.memory), gpus, free, rdma,
        state_text(member.state), reason,
    )  # fmt: skip


def _json(view: FleetView) -> dict[str, Any]:
    hosts: list[dict[str, Any]] = [
        {
            "name": member.node.name,
            "address": member.node.internal_ip,
            "cluster": member.target.name,
            "state": member.state,
            "reason": "; ".join(member.reasons) or None,
            "changes": [],
            "facts": member.node.as_json(),
        }
        for member in view.nodes
    ]
    return {"name": view.fleet.name, "id": view.fleet.id, "backend": "kubernetes", "hosts": hosts}
