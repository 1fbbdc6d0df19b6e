"""The command line's grammar: every command, but those of groups.py. Bodies import what they need when they run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lambdactl.cli import ReaderGone
from lambdactl.cli.backend import backend_app
from lambdactl.cli.gc import gc
from lambdactl.cli.groups import fleet_app, playbook_app, run_app, sandbox_app
from lambdactl.cli.nccl import nccl_app
from lambdactl.cli.options import (
    AllOption,
    FileOption,
    FleetFileOption,
    FleetOption,
    JsonOption,
    LogDirOption,
    PortsOption,
    RankOption,
    RunArgument,
    SinceOption,
    YesOption,
    complete_fleets,
)
from lambdactl.cli.scheduled import scheduled
from lambdactl.cli.secret import secret_app


class _Root(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGone from None


app = typer.Typer(
    name="lambdactl",
    cls=_Root,
    help="Make a rented GPU cluster ready, prove it, and run distributed work on it, from dstack's YAML files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(fleet_app, name="fleet")
app.add_typer(backend_app, name="backend")
app.add_typer(run_app, name="run")
app.add_typer(playbook_app, name="playbook")
app.add_typer(sandbox_app, name="sandbox")
app.add_typer(nccl_app, name="nccl")
app.add_typer(secret_app, name="secret")
app.command(hidden=True)(scheduled)


def _version(value: bool) -> None:
    if value:
        import lambdactl

        print(f"lambdactl {lambdactl.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def apply(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENT...]", help="Task: what ${{ run.args }} stands for.")
    ] = None,
    file: FileOption = None,
    yes: YesOption = False,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Do not follow the log; dev environment: leave it once it is up.")
    ] = False,
    name: Annotated[str | None, typer.Option("-n", "--name", help="Task: the run's name.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("-e", "--env", metavar="K[=V]", help="Task: set a variable; may be repeated.")
    ] = None,
    fleet: FleetOption = None,
    all_ranks: AllOption = False,
    max_duration: Annotated[
        str | None, typer.Option("--max-duration", metavar="TIME", help="Task: stop after this long, such as 2h.")
    ] = None,
    node_timeout: Annotated[
        str, typer.Option("--node-timeout", metavar="TIME", help="Task: how long a node may be out of reach.")
    ] = "2m",
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="Task with an image: auto, docker or podman.")
    ] = "auto",
    pull_timeout: Annotated[
        str | None,
        typer.Option("--pull-timeout", metavar="TIME", help="Task with an image: give a pull up after this."),
    ] = None,
    log_dir: LogDirOption = None,
    ingress: Annotated[
        str | None,
        typer.Option("--ingress", metavar="HOST", help="Service: the host of the proxy (default: the first)."),
    ] = None,
    ready_timeout: Annotated[
        str, typer.Option("--ready-timeout", metavar="TIME", help="Service: how long an updated replica may take.")
    ] = "10m",
    ports: PortsOption = None,
    cpu: Annotated[
        str | None, typer.Option("--cpu", metavar="CORES", help="In the place of the file's: 8, 4..")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="SPEC", help="In the place of the file's: H100:8.")
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="In the place of the file's.")] = None,
    disk: Annotated[str | None, typer.Option("--disk", metavar="SIZE", help="In the place of the file's.")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="A profile of .dstack/profiles.yml.")
    ] = None,
    no_profile: Annotated[bool, typer.Option("--no-profile", help="Not even the default profile.")] = False,
    wait: Annotated[
        bool | None,
        typer.Option("--wait/--no-wait", help="Task: on a full fleet, wait in its queue for your turn, or do not."),
    ] = None,
    max_wait: Annotated[
        str | None, typer.Option("--max-wait", metavar="TIME", help="Task: wait at most this long, such as 2h.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Fleet: a dry run by Ansible's check mode, with the diff.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Fleet: run every role on every host, converged or not.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Task on Kubernetes: keep the run's objects when it has ended.")
    ] = False,
) -> None:
    """Make a fleet ready, run a task or a service on one, or bring a dev environment up."""
    from lambdactl.cli import apply as command

    sys.exit(
        command.run(
            file,
            command.Options(
                yes=yes, detach=detach, name=name, env=tuple(env or ()), fleet=fleet, all_ranks=all_ranks,
                max_duration=max_duration, node_timeout=node_timeout, log_dir=log_dir, check=check, force=force,
                engine=engine, pull_timeout=pull_timeout, wait=wait, max_wait=max_wait, keep=keep,
                ingress=ingress, ready_timeout=ready_timeout,
                ports=tuple(ports or ()), arguments=tuple(arguments or ()),
                cpu=cpu, gpu=gpu, memory=memory, disk=disk, profile=profile, no_profile=no_profile,
            ),
        )
    )  # fmt: skip


@app.command()
def delete(
    file: FileOption = None,
    fleet: FleetOption = None,
    yes: YesOption = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget the fleet here, although hosts that are gone do not answer.")
    ] = False,
) -> None:
    """Tear a fleet down: take away from its hosts exactly what provisioning added."""
    from lambdactl.cli import delete as command

    sys.exit(command.run(file, fleet, yes=yes, forget=forget))


app.command()(gc)


@app.command()
def ps(
    all_runs: Annotated[bool, typer.Option("-a", "--all", help="Also the runs that have ended.")] = False,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Keep the list up to date.")] = False,
    json: JsonOption = False,
    fleet: FleetOption = None,
) -> None:
    """List runs, as the nodes report them."""
    from lambdactl.cli import ps as command

    sys.exit(command.run(fleet, all_runs=all_runs, watch=watch, as_json=json))


@app.command()
def logs(
    run: RunArgument,
    rank: RankOption = None,
    replica: Annotated[
        int | None, typer.Option("--replica", metavar="N", help="Service: this replica's log (default: 0).")
    ] = None,
    all_ranks: AllOption = False,
    since: SinceOption = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    fleet: FleetOption = None,
    log_dir: LogDirOption = None,
) -> None:
    """Print a run's log, all that is kept of it."""
    from lambdactl.cli import logs as command

    sys.exit(
        command.run(
            run, fleet, rank=rank, all_ranks=all_ranks, since=since, follow=follow, log_dir=log_dir, replica=replica
        )
    )


@app.command()
def attach(
    run: RunArgument,
    rank: RankOption = None,
    all_ranks: AllOption = False,
    since: SinceOption = None,
    fleet: FleetOption = None,
    log_dir: LogDirOption = None,
    yes: YesOption = False,
    ports: PortsOption = None,
) -> None:
    """Follow a run again, from any machine that has the fleet file; ends with the run's exit code."""
    from lambdactl.cli import attach as command

    sys.exit(
        command.run(
            run, fleet, rank=rank, all_ranks=all_ranks, since=since, log_dir=log_dir, yes=yes, ports=tuple(ports or ())
        )
    )


@app.command()
def stop(
    run: RunArgument,
    abort: Annotated[bool, typer.Option("-x", "--abort", help="Kill at once, without the grace time.")] = False,
    yes: YesOption = False,
    fleet: FleetOption = None,
) -> None:
    """Stop a run on all its nodes and wait until nothing of it is left."""
    from lambdactl.cli import stop as command

    sys.exit(command.run(run, fleet, abort=abort, yes=yes))


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def ssh(
    host: Annotated[
        str, typer.Argument(metavar="HOST|RUN", help="A host, by name or rank-order number; on Kubernetes, a run.")
    ],
    command: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...")] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", help="Kubernetes: which rank (default: 0).")
    ] = None,
    fleet: FleetOption = None,
) -> None:
    """Log in to a host, or to a rank of a run on Kubernetes, or run one command there."""
    from lambdactl.cli import ssh as ssh_command

    sys.exit(ssh_command.run(host, command or [], fleet, rank))


@app.command("ssh-config")
def ssh_config(
    fleet: FleetOption = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Instead: take the aliases of dev environments out of your ssh_config.")
    ] = False,
) -> None:
    """Print an ssh_config for the fleet, for `ssh -F`, IDEs and rsync."""
    if remove:
        from lambdactl.cli import dev_alias

        sys.exit(dev_alias.clear())
    from lambdactl.cli import ssh as command

    sys.exit(command.config(fleet))


@app.command()
def doctor(
    hosts: Annotated[list[str] | None, typer.Argument(metavar="[HOST]...", help="Only these hosts.")] = None,
    fleet: Annotated[
        str | None,
        typer.Option(
            "-f",
            "--file",
            "--fleet",
            metavar="FLEET",
            help="The fleet, by file or name.",
            autocompletion=complete_fleets,
        ),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Also show the checks that passed.")] = False,
    json: JsonOption = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also load GPUs and network for minutes (ib_write_bw, dcgmi diag).")
    ] = False,
) -> None:
    """Check the health of a fleet's hosts and compare them; exit 0 healthy, 1 warnings, 2 failures."""
    from lambdactl.cli import doctor as command

    sys.exit(command.run(fleet, hosts or [], show_all=show_all, as_json=json, junit=junit, deep=deep))


@app.command()
def schema(kind: Annotated[str, typer.Argument(metavar="fleet|task|dev-environment|service")]) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from lambdactl.cli import schema as command

    sys.exit(command.run(kind))


@app.command()
def validate(
    fleet: FleetFileOption = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Also measure pairs of nodes when nothing is slow.")] = False,
    no_rails: Annotated[
        bool, typer.Option("--no-rails", help="Leave out the runs of one GPU index at a time.")
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure MPI between CPUs, where there are no GPUs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and every command; run nothing.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
    nics: Annotated[
        int | None,
        typer.Option("--nics", metavar="N", help="NICs of a node for GPUs, where the nodes do not show them."),
    ] = None,
    nic_gbps: Annotated[
        float | None, typer.Option("--nic-gbps", metavar="GBPS", help="Rate of one of these NICs in Gb/s, such as 400.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("-e", "--env", metavar="K[=V]", help="Set a variable for NCCL; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Rounds of pairs before the retests.")] = 3,
) -> None:
    """Prove a fleet: measure nodes, network and rails, judge them, and name what is slow."""
    from lambdactl.cli import validate as command

    sys.exit(
        command.run(
            fleet,
            command.Arguments(
                cpu=cpu, pairs=pairs, rails=not no_rails, dry_run=dry_run, yes=yes, json=json, nics=nics,
                nic_gbps=nic_gbps, env=tuple(env or ()), rounds=rounds,
            ),
        )
    )  # fmt: skip


@app.command()
def report(
    validation: Annotated[
        str | None, typer.Argument(metavar="[VALIDATION]", help="Its id, or the beginning of it (default: the last).")
    ] = None,
    fleet: FleetFileOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the files go.")] = Path(),
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="NAME", help="html, markdown, json, junit or prometheus; may be repeated."),
    ] = None,
) -> None:
    """Write a validation as a self-contained page, and for machines."""
    from lambdactl.cli import report as command

    sys.exit(command.run(validation, fleet, output, tuple(formats or ())))


@app.command()
def history(fleet: FleetFileOption = None, json: JsonOption = False) -> None:
    """Compare a fleet's validations with its own past."""
    from lambdactl.cli import history as command

    sys.exit(command.run(fleet, as_json=json))
