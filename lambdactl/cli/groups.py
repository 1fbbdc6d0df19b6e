"""The grammar of the small groups of commands: fleet, run, playbook, sandbox. Bodies import what they need."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lambdactl.cli.options import FleetOption, JsonOption, RunArgument, complete_fleets, complete_playbooks

fleet_app = typer.Typer(help="Fleets known on this machine.", no_args_is_help=True)
run_app = typer.Typer(help="One run, for scripts.", no_args_is_help=True)
playbook_app = typer.Typer(help="The playbooks, by plain ansible-playbook.", no_args_is_help=True)
sandbox_app = typer.Typer(help="A virtual cluster of containers on this machine.", no_args_is_help=True)


@fleet_app.command("list")
def fleet_list(json: JsonOption = False) -> None:
    """List the fleets that were applied from this machine."""
    from lambdactl.cli import fleet as command

    sys.exit(command.list_fleets(as_json=json))


@fleet_app.command("get")
def fleet_get(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", autocompletion=complete_fleets)], json: JsonOption = False
) -> None:
    """Show a fleet's hosts as they are now."""
    from lambdactl.cli import fleet as command

    sys.exit(command.get(name, as_json=json))


@run_app.command("get")
def run_get(run: RunArgument, json: JsonOption = False, fleet: FleetOption = None) -> None:
    """Show one run with all its ranks."""
    from lambdactl.cli import run as command

    sys.exit(command.get(run, fleet, as_json=json))


@playbook_app.command("path")
def playbook_path() -> None:
    """Print the folder of the playbooks."""
    from lambdactl.cli import playbook as command

    sys.exit(command.path())


@playbook_app.command("list")
def playbook_list() -> None:
    """List the playbooks."""
    from lambdactl.cli import playbook as command

    sys.exit(command.list_playbooks())


@playbook_app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def playbook_run(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_playbooks)],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGUMENT...]")] = None,
) -> None:
    """Run a playbook with the arguments of ansible-playbook: lambdactl playbook run facts -- -i FLEET.dstack.yml"""
    from lambdactl.cli import playbook as command

    sys.exit(command.run(name, arguments or []))


NameOption = Annotated[str, typer.Option("--name", help="The sandbox's name; several may stand side by side.")]


@sandbox_app.command("up")
def sandbox_up(
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="How many workers (default: 2, or as many as there are)."),
    ] = None,
    name: NameOption = "default",
    base: Annotated[
        str, typer.Option("--base", help="Base image: auto, registry, debootstrap, or one by name (ubuntu:24.04).")
    ] = "auto",
) -> None:
    """Bring the sandbox up, or repair it."""
    from lambdactl.cli import sandbox as command

    sys.exit(command.up(name, workers, base))


@sandbox_app.command("status")
def sandbox_status(name: NameOption = "default", json: JsonOption = False) -> None:
    """Show the sandbox's hosts."""
    from lambdactl.cli import sandbox as command

    sys.exit(command.status(name, as_json=json))


@sandbox_app.command("down")
def sandbox_down(name: NameOption = "default") -> None:
    """Remove the sandbox with all that belongs to it."""
    from lambdactl.cli import sandbox as command

    sys.exit(command.down(name))
