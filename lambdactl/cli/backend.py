"""`lambdactl backend check`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lambdactl.cli.console import out, print_json, print_table, printable

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.check import Checked

backend_app = typer.Typer(help="The Kubernetes clusters that are configured.", no_args_is_help=True)
_STYLES = {"fail": "bold red", "warn": "yellow", "pass": "green"}


@backend_app.callback()
def _group() -> None: ...


@backend_app.command("check")
def backend_check(
    context: Annotated[
        str | None, typer.Option("--context", metavar="NAME", help="Only this context of the kubeconfig.")
    ] = None,
    kubeconfig: Annotated[
        str | None, typer.Option("--kubeconfig", metavar="FILE", help="This kubeconfig instead of what is configured.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check what of a Kubernetes cluster works: reach, rights, nodes, GPUs, RDMA and policies, with remedies."""
    sys.exit(run(kubeconfig, context, as_json=json))


def run(kubeconfig: str | None, context: str | None, *, as_json: bool) -> int:
    """Check the configured clusters; the exit code is that of the first failure."""
    found = asyncio.run(_check(kubeconfig, context))
    if as_json:
        print_json({"clusters": [checked.as_json() for checked in found]})
    else:
        for checked in found:
            _show(checked)
    return next((checked.exit_code for checked in found if checked.exit_code), 0)


async def _check(kubeconfig: str | None, context: str | None) -> list[Checked]:
    from lambdactl.backends.kubernetes.check import check
    from lambdactl.backends.kubernetes.config import targets

    return [await check(target) for target in targets(kubeconfig, context)]


def _show(checked: Checked) -> None:
    from rich.text import Text

    target, to = checked.target, out()
    head = f"{target.name}: namespace {target.namespace}, {target.kubeconfig.server(target.context)}"
    to.print(Text(printable(f"{head} ({target.origin})"), style="bold"))
    rows = [(Text(f.status.upper(), style=_STYLES[f.status]), f.check, f.value) for f in checked.findings]
    print_table(("STATUS", "CHECK", "FOUND"), rows, to=to)
    for finding in checked.findings:
        if finding.remedy:
            to.print(Text(printable(f"remedy: {finding.check}: {finding.remedy}")))
    words = {"pass": "all is well", "warn": "usable, with the warnings above", "fail": "not usable yet"}
    to.print(Text(f"{target.name}: {words[checked.status]}", style=_STYLES[checked.status]))
