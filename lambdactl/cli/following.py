"""Following a run on the screen: what Ctrl-C means, and how the end is told. Shared by apply, attach and logs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdactl.cli.console import note
from lambdactl.cli.pulling import pull_progress
from lambdactl.errors import EXIT_FAILED, EXIT_LOST, EXIT_OK
from lambdactl.run.control import stop_run
from lambdactl.run.follow import Follower
from lambdactl.run.screen import LogOutput
from lambdactl.run.status import RunStatus
from lambdactl.validate.watch import LogWatch, explanation_lines, verdict_line

if TYPE_CHECKING:
    from lambdactl.nccl.hardware import Hardware
    from lambdactl.transport.api import Transport


async def follow_to_end(
    transport: Transport,
    run_id: str,
    run_name: str,
    hosts: dict[int, str],
    *,
    ranks: list[int],
    since: float | None = None,
    log_dir: Path | None = None,
    stop_when_interrupted: bool = False,
    hardware: Hardware | str | None = None,
    beside: Callable[[Follower], Coroutine[Any, Any, None]] | None = None,
    images: bool = False,
) -> int:
    """Show the log until the run has ended; returns the exit code that the command should have.

    Under the log of nccl-tests stands the verdict on `hardware` (or the clause why that is not known; None: no
    verdict is wanted), under a failed run's log the known causes. `images`: say how far the images are.

    `beside` goes on at the same time, and is ended with this.

    Ctrl-C asks whether to stop the run or to detach; without a terminal it stops the run when this command started it
    (`stop_when_interrupted`) and detaches otherwise. SIGTERM always detaches: the run does not need this machine.
    """
    watch = LogWatch()
    output = LogOutput(ranks, directory=log_dir, watch=watch.feed)
    follower = Follower(transport, run_id, hosts, output, show=ranks, since=since, notify=note)
    also = asyncio.ensure_future(beside(follower)) if beside is not None else None
    try:
        task = asyncio.ensure_future(follower.run())

        async def stop(abort: bool) -> None:
            await stop_run(transport, run_id, hosts.values(), abort=abort)

        async with pull_progress(transport, run_id, hosts, on=images):
            done = await until_done(task, stop, run_name, stop_when_interrupted=stop_when_interrupted)
        if not done:
            note(f"detached; the run goes on. Follow it again with: lambdactl attach {run_name}")
            return EXIT_OK
        status = await follower.status()
    finally:
        if also is not None:
            also.cancel()
            await asyncio.gather(also, return_exceptions=True)
        output.close()
    code = report_end(status, run_name)
    tell_causes(watch, status, hardware)
    return code


def tell_causes(watch: LogWatch, status: RunStatus | None, hardware: Hardware | str | None) -> None:
    """Under the log: the verdict on nccl-tests, and the known causes of a failure."""
    if hardware is not None and (line := verdict_line(watch, hardware)):
        note(line)
    if status is not None and status.state == "failed":
        for line in explanation_lines(watch):
            note(line)


def report_end(status: RunStatus | None, run_name: str) -> int:
    """Tell how a run ended, in one line, unless it simply was done."""
    if status is None:
        note(f"{run_name}: no node answers for this run any more.")
        return EXIT_LOST
    if not status.final:
        why = "; ".join(f"{host}: {text}" for host, text in status.unseen.items()) or status.message or "no final state"
        note(f"{run_name}: rank 0 does not answer, so the end of the run is not known here ({why}).")
        return EXIT_LOST
    code = status.exit_code if status.exit_code is not None else EXIT_FAILED
    if status.state == "stopped":
        note(f"{run_name} was stopped: {status.message or status.reason or 'on request'}")
    elif code:
        note(f"{run_name} failed: {status.message or status.reason or f'exit code {code}'}")
    return code


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Queue[signal.Signals]]:
    """SIGINT and SIGTERM as events of the loop."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[signal.Signals] = asyncio.Queue()
    caught = (signal.SIGINT, signal.SIGTERM)
    for number in caught:
        loop.add_signal_handler(number, queue.put_nowait, number)
    try:
        yield queue
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


async def until_done(
    task: asyncio.Future[None],
    stop: Callable[[bool], Coroutine[Any, Any, None]],
    run_name: str,
    *,
    stop_when_interrupted: bool,
) -> bool:
    """True when the logs have ended, False when the user detached; `stop(abort)` asks the run to end."""
    stopping = False
    with _signals() as signals:
        while True:
            event = asyncio.ensure_future(signals.get())
            await asyncio.wait((task, event), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                event.cancel()
                task.result()
                return True
            choice = "detach"
            if event.result() is signal.SIGINT:
                choice = "abort" if stopping else await _ask(signals, stop_when_interrupted=stop_when_interrupted)
            if choice == "detach":
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                return False
            if choice in ("stop", "abort"):
                note(f"{'killing' if choice == 'abort' else 'stopping'} {run_name} ...")
                await stop(choice == "abort")
                stopping = True


async def _ask(signals: asyncio.Queue[signal.Signals], *, stop_when_interrupted: bool) -> str:
    if not sys.stdin.isatty():
        return "stop" if stop_when_interrupted else "detach"
    print("\nStop the run [s], detach and let it run [d], or go on [Enter]? ", end="", file=sys.stderr, flush=True)
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[str] = loop.create_future()
    loop.add_reader(sys.stdin, _take_line, typed)
    again = asyncio.ensure_future(signals.get())
    try:
        await asyncio.wait((typed, again), return_when=asyncio.FIRST_COMPLETED)
        if again.done():
            return "stop"
        return {"s": "stop", "d": "detach"}.get(typed.result().strip().lower()[:1], "go on")
    finally:
        loop.remove_reader(sys.stdin)
        again.cancel()


def _take_line(typed: asyncio.Future[str]) -> None:
    if not typed.done():
        typed.set_result(sys.stdin.readline())
