"""Runs on Kubernetes: which of the user's fleets has one, and `logs`, `attach`, `stop` and `run get` of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdactl.cli import dev_alias
from lambdactl.cli.console import confirm, counted, note
from lambdactl.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, SpecError
from lambdactl.state import FleetRecord, State

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.backend import KubeRef, KubernetesBackend
    from lambdactl.backends.kubernetes.fleet import KubeFleet
    from lambdactl.backends.kubernetes.session import RunSession
    from lambdactl.backends.kubernetes.start import Bring
    from lambdactl.nccl.hardware import Hardware
    from lambdactl.run.ports import Port
    from lambdactl.run.status import RunStatus

_PATIENCE = 60.0


def chosen_fleet(option: str | None, state: State, *, wanted: Sequence[str] = ()) -> KubeFleet | None:
    """The fleet for a new run, where it is one on Kubernetes; the rules are those of `select.choose_fleet`."""
    from lambdactl.cli.select import kubernetes_fleet

    if (found := kubernetes_fleet(option, state)) is not None:
        return found
    if option or kubernetes_option():
        return None
    records = [record for name in wanted if (record := state.fleet(name))] if wanted else state.fleets()
    if (wanted and records) or len(records) == 1:
        return _of_record(records[0])
    return None


def kubernetes_option() -> str | None:
    """LAMBDACTL_FLEET."""
    import os

    return os.environ.get("LAMBDACTL_FLEET") or None


def _of_record(record: FleetRecord) -> KubeFleet | None:
    try:
        parsed = record.spec
    except SpecError:
        return None
    if parsed.ssh_config is not None:
        return None
    from lambdactl.backends.kubernetes.fleet import KubeFleet

    return KubeFleet.from_spec(parsed, path=record.path)


def fleets(option: str | None, state: State) -> list[KubeFleet]:
    """The Kubernetes fleets that a command without a file looks at: the one named, or all that are known."""
    from lambdactl.cli.select import kubernetes_fleet

    if option or kubernetes_option():
        found = kubernetes_fleet(option, state)
        return [] if found is None else [found]
    known = []
    for record in state.fleets():
        with contextlib.suppress(SpecError):
            if (fleet := _of_record(record)) is not None:
                known.append(fleet)
    return known


def only_kubernetes(option: str | None, state: State) -> bool:
    """Whether no SSH fleet can be meant."""
    if option or kubernetes_option():
        return bool(fleets(option, state))
    records = state.fleets()
    return bool(records) and all(_of_record(record) is not None for record in records)


def candidates(key: str, option: str | None) -> tuple[list[KubeFleet], bool]:
    """The Kubernetes fleets that may have a run, and whether it cannot be anywhere else."""
    with State() as state:
        record = state.run(key)
        if record is not None and not option and (known := state.fleet(record.fleet_id)):
            fleet = _of_record(known)
            return ([fleet] if fleet is not None else []), fleet is not None
        return fleets(option, state), only_kubernetes(option, state)


@contextlib.asynccontextmanager
async def found_run(key: str, option: str | None) -> AsyncIterator[tuple[KubernetesBackend, KubeRef] | None]:
    """A run on Kubernetes by name or id; None where it is (or may be) on SSH hosts.

    Raises:
        SpecError: only Kubernetes fleets are known, and none has it.
        APIError: a cluster could not be asked.
    """
    from lambdactl.backends.kubernetes.backend import open_backend

    possible, certain = candidates(key, option)
    for fleet in possible:
        async with open_backend(fleet) as backend:
            if (ref := await backend.find(key)) is not None:
                yield backend, ref
                return
    if certain:
        from lambdactl.cli import kube_schedule

        if (scheduled := await kube_schedule.find(key, option)) is not None:
            raise SpecError(f"{scheduled.name} is scheduled ({scheduled.message}), and no run of it is in the cluster.")
        raise SpecError(
            f"no run named {key} is in the cluster; `lambdactl ps -a` lists them "
            "(a run that was followed to its end is removed, unless it was started with --keep)."
        )
    yield None


def ranks_wanted(ref: KubeRef, rank: int | None, *, all_ranks: bool) -> list[int]:
    """The ranks to show: all, the one asked for, or rank 0.

    Raises:
        SpecError: the run has no such rank.
    """
    number = ref.status.nodes_num
    if all_ranks:
        return list(range(number))
    wanted = 0 if rank is None else rank
    if not 0 <= wanted < number:
        raise SpecError(f"{ref.status.name} has ranks 0 to {number - 1}, not {wanted}.")
    return [wanted]


def local_ports(name: str, ranks: Iterable[Mapping[str, Any]], options: Sequence[str]) -> list[Port]:
    """Where a run's ports, and those of `-p`, will be here; the ranks as RankStates have them.

    Raises:
        SpecError: an option is not valid, or a port is taken here.
    """
    from lambdactl.backends.kubernetes.ports import host_name
    from lambdactl.run.ports import choose, wanted

    return choose(wanted([{**rank, "node": host_name(name, int(rank["rank"]))} for rank in ranks], options))


async def follow_to_end(backend: KubernetesBackend, ref: KubeRef, **options: Any) -> int:
    """The exit code of `follow`."""
    return (await follow(backend, ref, **options))[0]


async def follow(
    backend: KubernetesBackend,
    ref: KubeRef,
    *,
    ranks: list[int],
    since: float | None = None,
    log_dir: Path | None = None,
    stop_when_interrupted: bool = False,
    hardware: Hardware | str | None = None,
    wait: bool = False,
    ports: Sequence[Port] = (),
    bring: Bring | None = None,
    beside: Callable[[RunSession], Coroutine[Any, Any, None]] | None = None,
    tidy: bool = True,
) -> tuple[int, RunStatus | None]:
    """Show the log until the run has ended: the exit code that the command should have (see cli/following.py), and the
    run's status; None when the user detached."""
    from lambdactl.backends.kubernetes.ports import PodForwarder
    from lambdactl.cli.following import report_end, tell_causes, until_done
    from lambdactl.run.ports import forwarded
    from lambdactl.run.screen import LogOutput
    from lambdactl.validate.watch import LogWatch

    watch = LogWatch()
    output = LogOutput(ranks, directory=log_dir, watch=watch.feed)
    name = ref.status.name
    try:
        async with backend.session(ref) as session, forwarded(PodForwarder(session), ports, note):
            follower = backend.follower(
                session, output, show=ranks, since=since, notify=note, wait=wait, bring=bring, tidy=tidy
            )
            task = asyncio.ensure_future(follower.run())
            also = asyncio.ensure_future(beside(session)) if beside is not None else None

            async def stop(abort: bool) -> None:
                await backend.stop(ref, abort=abort)

            try:
                done = await until_done(task, stop, name, stop_when_interrupted=stop_when_interrupted)
            finally:
                if also is not None:
                    also.cancel()
                    await asyncio.gather(also, return_exceptions=True)
            if not done:
                note(f"detached; the run goes on. Follow it again with: lambdactl attach {name}")
                return EXIT_OK, None
            status = await follower.status()
    finally:
        output.close()
    code = report_end(status, name)
    tell_causes(watch, status, hardware)
    return code, status


async def print_log(
    backend: KubernetesBackend,
    ref: KubeRef,
    ranks: list[int],
    *,
    since: float | None,
    follow: bool,
    log_dir: Path | None,
) -> int:
    """`logs`: what there is, and with `follow` what comes until the end of the run."""
    from lambdactl.backends.kubernetes.following import KubeFollower
    from lambdactl.run.screen import LogOutput

    output = LogOutput(ranks, directory=log_dir)
    try:
        async with backend.session(ref) as session:
            follower = KubeFollower(session, output, show=ranks, since=since, follow=follow, notify=note)
            await follower.run()
    finally:
        output.close()
    for rank, problem in follower.problems.items():
        note(f"rank {rank}: {problem}")
    return EXIT_UNREACHABLE if follower.problems else EXIT_OK


async def stop(backend: KubernetesBackend, ref: KubeRef, *, abort: bool, yes: bool) -> int:
    """`stop`: 0 when nothing of the run is left."""
    status = ref.status
    if status.final and ref.view.retry is not None:
        if not confirm(f"Try {status.name} no more?", yes=yes):
            return EXIT_FAILED
        await backend.stop(ref)
        note(f"{status.name} is not tried again.")
        return EXIT_OK
    if status.final and ref.view.ended:
        dev_alias.forget([status.run_id])
        note(f"{status.name} has already ended ({status.state}).")
        return EXIT_OK
    if not confirm(f"Stop the run {status.name} on {counted(status.nodes_num, 'node')}?", yes=yes):
        return EXIT_FAILED
    await backend.stop(ref, abort=abort)
    if not await backend.ended(ref, patience=_PATIENCE + float(ref.view.facts.get("stop_grace") or 0)):
        note(f"{status.name} has not ended yet; `lambdactl stop -x {status.name}` kills it.")
        return EXIT_FAILED
    dev_alias.forget([status.run_id])
    note(f"{status.name} is stopped.")
    return EXIT_OK


async def all_runs(option: str | None) -> tuple[list[tuple[str, RunStatus]], dict[str, str], bool]:
    """For `ps`: runs with their fleet's name, why clusters gave no answer, and whether any was asked with success.

    Two fleets of one namespace show a run once, under the fleet that it was started on.
    """
    from lambdactl.backends.kubernetes import schedules
    from lambdactl.backends.kubernetes.backend import open_backend

    with State() as state:
        known = fleets(option, state)
    found: dict[str, tuple[str, RunStatus]] = {}
    problems: dict[str, str] = {}
    answered = False
    for fleet in known:
        async with open_backend(fleet) as backend:
            runs, unanswered = await backend.runs()
            answered = answered or len(unanswered) < len(backend.clients)
            problems |= {f"{fleet.name}/{name}": text for name, text in unanswered.items()}
            if not unanswered:
                dev_alias.sweep_cluster(fleet.id, {status.run_id for status in runs if not status.final})
            for target, client in backend.clients:
                if target.name not in unanswered:
                    runs += await schedules.fetch(client)
            for status in runs:
                found.setdefault(status.run_id, (fleet.name, status))
    return list(found.values()), problems, answered
