"""`lambdactl doctor`: examine a fleet, show what is wrong first, exit 0, 1 (warnings) or 2 (failures)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl.cli.console import note, out, print_json, print_table, printable
from lambdactl.cli.select import choose_fleet
from lambdactl.doctor import Report, Status, examine
from lambdactl.doctor.actions import save
from lambdactl.doctor.render import COLUMNS, hosts_text, not_applicable, remedies, rows, summary
from lambdactl.errors import SpecError
from lambdactl.fleet import Fleet
from lambdactl.state import State

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {Status.FAIL: "bold red", Status.WARN: "yellow", Status.PASS: "green"}


def run(
    fleet_option: str | None,
    hosts: Sequence[str],
    *,
    show_all: bool,
    as_json: bool,
    junit: Path | None,
    deep: bool,
) -> int:
    """Examine the fleet, or only some of its hosts."""
    with State() as state:
        fleet = choose_fleet(fleet_option, state)
    names = _chosen(fleet, hosts)
    if deep:
        note("The deep tests load GPUs and network; they take some minutes.")
    report = asyncio.run(_examine(fleet, names, deep=deep))
    save(report, junit_file=junit)
    if as_json:
        print_json(report.as_json())
    else:
        show(report, show_all=show_all, to=out())
    return report.exit_code


def show(report: Report, *, show_all: bool, to: Console) -> None:
    """The table, the remedies, what does not apply, the verdict."""
    from rich.text import Text

    found = rows(report, show_all=show_all)
    if found:
        cells = [
            (
                Text(row.status.value.upper(), style=_STYLES[row.status]),
                row.check,
                hosts_text(row.hosts),
                row.value,
                row.threshold,
            )
            for row in found
        ]
        print_table(COLUMNS, cells, to=to)
        to.print()
    for title, lines in (("remedy", remedies(found)), ("does not apply", not_applicable(report))):
        for line in lines:
            to.print(Text(printable(f"{title}: {line}")))
    to.print(Text(printable(summary(report)), style=_STYLES[report.status]))


def _chosen(fleet: Fleet, hosts: Sequence[str]) -> list[str] | None:
    known = {host.name for host in fleet.hosts}
    for host in hosts:
        if host not in known:
            raise SpecError(f"{host} is not a host of {fleet.name}; its hosts are {', '.join(sorted(known))}.")
    return list(hosts) or None


async def _examine(fleet: Fleet, names: list[str] | None, *, deep: bool) -> Report:
    from lambdactl.transport import open_transport

    async with open_transport(fleet) as transport:
        return await examine(fleet, transport, names=names, deep=deep)
