"""Options and arguments that several commands have, and what a shell completes them with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def complete_runs(incomplete: str) -> list[str]:
    """Names of the runs submitted from here."""
    from lambdactl.state import State

    with State() as state:
        return [name for name in dict.fromkeys(run.name for run in state.runs()) if name.startswith(incomplete)]


def complete_fleets(incomplete: str) -> list[str]:
    """Names of the fleets known here."""
    from lambdactl.state import State

    with State() as state:
        return [fleet.name for fleet in state.fleets() if fleet.name.startswith(incomplete)]


def complete_playbooks(incomplete: str) -> list[str]:
    """Names of the playbooks."""
    from lambdactl import content

    return sorted(file.stem for file in content.path("playbooks").glob(f"{incomplete}*.yml"))


FileOption = Annotated[
    str | None,
    typer.Option("-f", "--file", metavar="FILE", help="The YAML file; '-' reads standard input. Default: .dstack.yml"),
]
YesOption = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
FleetOption = Annotated[
    str | None,
    typer.Option("--fleet", metavar="NAME|FILE", help="The fleet, by name or file.", autocompletion=complete_fleets),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or id.", autocompletion=complete_runs)]
RankOption = Annotated[int | None, typer.Option("--rank", metavar="N", help="Only this rank's log (default: 0).")]
AllOption = Annotated[bool, typer.Option("--all", help="Every rank's log, each line with its rank.")]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Only what was written since: 30s, 10m, 2h, or 2026-11-23T08:00."),
]
PortsOption = Annotated[
    list[str] | None,
    typer.Option(
        "-p", "--port", metavar="[LOCAL:]REMOTE", help="Forward a port of rank 0 to here; '*' is any free one."
    ),
]
LogDirOption = Annotated[
    Path | None, typer.Option("--log-dir", metavar="DIR", help="Also write byte-complete logs to DIR/rank-N.log.")
]
FleetFileOption = Annotated[
    str | None,
    typer.Option(
        "-f", "--fleet", metavar="NAME|FILE", help="The fleet, by file or name.", autocompletion=complete_fleets
    ),
]
