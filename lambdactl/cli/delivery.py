"""Showing how a run's files and repository get to its nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lambdactl.cli.console import err, note, size
from lambdactl.errors import SpecError
from lambdactl.run.content import RunContent, collect
from lambdactl.run.deliver import Progress, deliver

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.client import Client
    from lambdactl.backends.kubernetes.model import KubeRun
    from lambdactl.backends.kubernetes.start import Bring
    from lambdactl.spec import TaskSpec
    from lambdactl.transport.api import Transport

_INTERVAL = 10.0  # seconds between two lines of progress where there is no terminal


async def collect_content(task: TaskSpec) -> RunContent:
    """What the task takes with it; says so when a repository has to be fetched."""
    if task.repos and task.repos[0].url:
        note("fetching the repository ...")
    return await asyncio.to_thread(collect, task)


def rows(content: RunContent) -> list[tuple[str, object]]:
    """Lines of the plan."""
    found: list[tuple[str, object]] = []
    if content.repo is not None:
        changes = f", {content.repo.changed} changed files" if content.repo.changed else ""
        found.append(("Repo", f"{content.repo.title} at {content.repo.commit[:12] or 'no commit'}{changes}"))
    if content.files:
        number = sum(tree.files for tree, _ in content.files)
        found.append(("Files", f"{number}, {size(sum(tree.size for tree, _ in content.files))}"))
    return found


async def deliver_content(transport: Transport, places: Sequence[Mapping[str, Any]], content: RunContent) -> None:
    """Bring it to all these nodes, with a bar on a terminal and lines elsewhere."""
    if not content.blobs:
        return
    with _Display() as display:
        done = await deliver(transport, places, content.blobs, on_progress=display.show)
    if done.total:
        passed = f", {size(done.passed_on)} from node to node" if done.passed_on else ""
        note(f"sent {size(done.sent)}{passed}.")
    else:
        note("the nodes have every file already.")


async def check_volume(client: Client, run: KubeRun) -> None:
    """See that the files volume of a run that brings something is there.

    Raises:
        SpecError: it is not, or pods cannot share it.
    """
    if run.files_volume is None or not run.content.blobs:
        return
    from lambdactl.backends.kubernetes.filesvolume import claim_problem

    if (problem := await claim_problem(client, run.files_volume)) is not None:
        raise SpecError(f"'files_volume': {problem}.", filename=client.target.origin)


def bring_to_ranks(run: KubeRun) -> Bring | None:
    """What brings it to a run's pods on Kubernetes; None where there is nothing to bring."""
    if not run.content.blobs:
        return None
    from lambdactl.backends.kubernetes.delivery import deliver as to_pods

    async def bring(client: Client, pods: list[str]) -> None:
        with _Display() as display:
            done = await to_pods(
                client, pods, run.content, run.image, files=run.files_volume, on_progress=display.show, notify=note
            )
        passed = f", {size(done.passed_on)} from rank to rank" if done.passed_on else ""
        note(f"sent {size(done.sent)}{passed}." if done.total else "the files volume has every file already.")

    return bring


class _Display:
    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> _Display:
        console = err()
        if console.is_terminal:
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("sending files"), BarColumn(), DownloadColumn(binary_units=True))
            self._bar = Bar(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("sending", total=None)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        done = progress.sent + progress.passed_on
        if self._bar is not None:
            self._bar.update(self._task, total=progress.total, completed=done)
        elif time.monotonic() - self._said > _INTERVAL:
            self._said = time.monotonic()
            note(f"sent {size(done)} of {size(progress.total)}")
