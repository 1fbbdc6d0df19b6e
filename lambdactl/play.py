"""A playbook that uses this process's open connections: ansible-runner in a thread, the broker beside it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdactl.errors import Interrupted
from lambdactl.fleet import Fleet
from lambdactl.playbook import PlaybookResult, run_playbook

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport


async def play(
    name: str,
    fleet: Fleet,
    text: str,
    transport: Transport,
    *,
    names: Sequence[str] | None = None,
    variables: Mapping[str, Any] | None = None,
    check: bool = False,
    on_step: Callable[[str, str], None] | None = None,
    on_output: Callable[[str], None] | None = None,
) -> PlaybookResult:
    """Run one of this project's playbooks on a fleet.

    Args:
        name: "provision", "teardown", "run_task" ...
        text: the fleet file's text; it is the inventory when the file itself is not there (standard input, moved).
        names: limit the playbook to these hosts.
        variables: extra variables; they travel in a private file.
        check: Ansible's check mode, with the diff.
        on_step: called with host and task as each task begins on a host.
        on_output: called with each piece of Ansible's own output.

    A cancellation (Ctrl-C) stops the playbook first, and leaves no worker behind.
    """
    async with playing(
        name,
        fleet,
        text,
        transport,
        names=names,
        variables=variables,
        check=check,
        on_step=on_step,
        on_output=on_output,
    ) as running:
        return await running.result()


class Playing:
    """A playbook on its way."""

    def __init__(self, work: Callable[[], PlaybookResult], cancel: threading.Event) -> None:
        self._cancel = cancel
        self._thread = asyncio.ensure_future(asyncio.to_thread(work))

    async def result(self) -> PlaybookResult:
        """Wait for its end; a cancellation, by Ctrl-C or SIGTERM, reaches the playbook before anything is closed."""
        return await _to_its_end(self._thread, self._cancel)

    async def stop(self) -> None:
        """End it, if it has not ended."""
        self._cancel.set()
        await asyncio.wait({self._thread})


@contextlib.asynccontextmanager
async def playing(
    name: str,
    fleet: Fleet,
    text: str,
    transport: Transport,
    *,
    names: Sequence[str] | None = None,
    variables: Mapping[str, Any] | None = None,
    check: bool = False,
    on_step: Callable[[str, str], None] | None = None,
    on_output: Callable[[str], None] | None = None,
) -> AsyncIterator[Playing]:
    """Start one of this project's playbooks; see `play`. It is ended with the context, if it has not ended before."""
    from lambdactl.transport.broker import serve_broker

    loop = asyncio.get_running_loop()
    cancel = threading.Event()

    def from_thread(callback: Callable[..., None] | None) -> Callable[..., object] | None:
        return None if callback is None else partial(loop.call_soon_threadsafe, callback)

    with _inventory(fleet, text) as inventory, _socket() as socket:
        arguments = partial(
            run_playbook,
            name,
            inventory=inventory,
            limit=list(names) if names is not None else None,
            extra_vars=dict(variables or {}),
            check=check,
            diff=check,
            env={"LAMBDACTL_BROKER": str(socket)},
            on_step=from_thread(on_step),
            on_output=from_thread(on_output),
            cancel=cancel,
        )
        async with serve_broker(transport, socket):
            running = Playing(arguments, cancel)
            try:
                yield running
            finally:
                await running.stop()


async def _to_its_end(thread: asyncio.Future[PlaybookResult], cancel: threading.Event) -> PlaybookResult:
    loop = asyncio.get_running_loop()
    here = asyncio.current_task()
    terminated = asyncio.Event()

    def terminate() -> None:
        terminated.set()
        if here is not None:
            here.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        cancel.set()
        await asyncio.wait({thread})
        if terminated.is_set():
            raise Interrupted("terminated; what was begun on the hosts is finished by the next apply.") from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


@contextlib.contextmanager
def _inventory(fleet: Fleet, text: str) -> Iterator[Path]:
    """The fleet's file, or a copy of its text where there is no file."""
    if fleet.path is not None and Path(fleet.path).is_file():
        yield Path(fleet.path).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="lambdactl-") as folder:
        file = Path(folder) / f"{fleet.name}.dstack.yml"
        file.write_text(text)
        yield file


@contextlib.contextmanager
def _socket() -> Iterator[Path]:
    """A path for the broker's socket in a private folder; short, because a socket's path has at most 104 bytes."""
    with tempfile.TemporaryDirectory(prefix="lctl-", dir="/tmp") as folder:
        yield Path(folder) / "broker"
