"""What `apply` says and does about a full fleet: who holds what, the wish to wait, and a waiter in the background."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lambdactl import spec
from lambdactl.cli.console import ago, err, note, print_table
from lambdactl.errors import EXIT_FAILED, EXIT_OK, SpecError
from lambdactl.fleet import Fleet
from lambdactl.run.admission import Patience
from lambdactl.run.blocks import Lease, fits
from lambdactl.run.placement import NodeView, Placement, clock
from lambdactl.run.plan import Shortage
from lambdactl.run.status import RunStatus, fetch_runs, waiting
from lambdactl.state import state_dir

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport

# Set for the process that waits in the background: it does not follow logs, and does not detach once more.
BACKGROUND = "LAMBDACTL_BACKGROUND"
_COLUMNS = ("RUN", "OWNER", "HOSTS", "GPUS", "SINCE", "ENDS BY", "THEN FREE")
_POLL, _POLLS, _WATCH = 0.3, 100, 5.0
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def patience(fleet: Fleet | None, wait: bool | None, max_wait: str | None) -> Patience:
    """Whether runs wait: the option, else LAMBDACTL_WAIT, else the fleet's `when_full` (None: it has no such policy).

    Raises:
        SpecError: an option or the variable is not valid.
    """
    limit = spec.parse_duration(max_wait, name="--max-wait") if max_wait is not None else None
    if max_wait is not None and (not limit or wait is False):
        raise SpecError("--max-wait must be a length of time such as 30m or 2h, and cannot be used with --no-wait.")
    if wait is None and max_wait is None:
        word = os.environ.get("LAMBDACTL_WAIT", "").lower()
        if word not in (*_TRUE, *_FALSE):
            raise SpecError(f"LAMBDACTL_WAIT is {word!r}; allowed is 1 (runs wait on a full fleet) or 0.")
        wait = word in _TRUE if word else None
    seconds = None if limit is None else float(limit)
    waits = max_wait is not None or (fleet is not None and fleet.when_full == "wait" if wait is None else wait)
    return Patience(waits=waits, limit=seconds, never=wait is False)


def background() -> bool:
    """Whether this process is the one that waits in the background."""
    return bool(os.environ.get(BACKGROUND))


def show_holders(views: Mapping[str, NodeView], short: Shortage, *, waits: bool) -> None:
    """Who holds the hosts that the run could take, since when, and what becomes free when they end."""
    rows = holders(views, short.placement, short.nodes)
    if rows:
        print_table(_COLUMNS, rows, to=err())
    queue = waiting(ticket for view in views.values() for ticket in view.queue)
    if queue:
        shown = ", ".join(f"{one.name} of {one.owner} since {ago(one.submitted_at)}" for one in queue)
        note(f"{len(queue)} {'run waits' if len(queue) == 1 else 'runs wait'} in the queue: {shown}.")
    if not waits and short.passes:
        note("Pass --wait to wait for your turn.")


def holders(views: Mapping[str, NodeView], placement: Placement, nodes: int) -> list[Sequence[object]]:
    """A row a run, those first that end first.

    "THEN FREE" counts how many of the hosts that it needs the new run could take when this and all above have ended.
    """
    by_run: dict[str, dict[str, Lease]] = {}
    for name in placement.busy:
        for lease in views[name].leases:
            by_run.setdefault(str(lease.get("run_id")), {})[name] = lease

    def soonest(run: str) -> tuple[float, float]:
        lease = next(iter(by_run[run].values()))
        return (float(lease.get("ends") or "inf"), float(lease.get("since") or 0))

    rows: list[Sequence[object]] = []
    gone: set[str] = set()
    for run in sorted(by_run, key=soonest):
        gone.add(run)
        lease = next(iter(by_run[run].values()))
        free = min(nodes, sum(_fits_without(placement, views[name], gone) for name in placement.wants))
        gpus = sum(len(held.get("gpus") or ()) for held in by_run[run].values())
        ends = clock(lease["ends"]) if lease.get("ends") else "unknown"
        owner, since = lease.get("owner") or "-", clock(lease["since"]) if lease.get("since") else "-"
        rows.append((lease.get("run_name"), owner, " ".join(by_run[run]), gpus, since, ends, f"{free} of {nodes}"))
    return rows


def _fits_without(placement: Placement, view: NodeView, gone: set[str]) -> bool:
    left = [lease for lease in view.leases if lease.get("run_id") not in gone]
    return fits(placement.wants[view.name], len(view.facts.gpus) if view.facts else 0, left)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM cancels the current task, as Ctrl-C does, so that a place in the queue is given back."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 (inside of a coroutine)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def watch(transport: Transport, run_id: str, hosts: Iterable[str]) -> RunStatus | None:
    """Look at a run every few seconds until it has ended; None when its nodes know it no more."""
    names = list(hosts)
    while True:
        runs, problems = await fetch_runs(transport, names, run_id)
        if (runs and runs[0].final) or (not runs and not problems):
            return runs[0] if runs else None
        if problems:
            await transport.connect(list(problems))
        await asyncio.sleep(_WATCH)


async def wait_in_background(
    look: Callable[[], Awaitable[Sequence[RunStatus]]],
    name: str,
    text: str,
    does: str = "waits for its turn, and tries again as its file says",
) -> int:
    """Start this same command once more, without a terminal, to wait (and to try again) when this one has ended.

    Args:
        look: the runs of that name, as they are seen now.
        text: the file's text, for the case that it came from standard input.
        does: what it does there, as people are told.
    """
    folder = state_dir() / "waiting"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{name}.log"
    at = sys.argv.index("apply") + 1
    argv = [sys.executable, "-m", "lambdactl", *sys.argv[1:at], "-y", "-n", name, *sys.argv[at:]]
    with os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 (it goes on by itself; nobody waits for it here)
            argv,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, BACKGROUND: "1"},
        )
    assert process.stdin is not None  # noqa: S101 (PIPE)
    process.stdin.write(text.encode())
    process.stdin.close()
    for _ in range(_POLLS):
        if process.poll() is not None:
            if process.returncode:
                print(path.read_text(), file=sys.stderr, end="")
            return process.returncode
        if any(not status.final for status in await look()):
            note(
                f"{name} is in the hands of process {process.pid} on this machine, which has to stay on: it {does} "
                f"({path}). `lambdactl ps` shows it, and "
                f"`lambdactl stop {name}` ends it."
            )
            return EXIT_OK
        await asyncio.sleep(_POLL)
    note(f"{name}: nothing of it is to be seen on the nodes yet; {path} says what its process {process.pid} does.")
    return EXIT_FAILED
