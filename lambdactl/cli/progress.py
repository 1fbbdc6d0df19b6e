"""Live progress, host by step: a table that redraws itself on a terminal, a line for each change anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from lambdactl.cli.console import duration, err, note, printable, table

_SHOWN = 24


class HostProgress:
    """One row a host with the step that it is at; long fleets show the hosts that are still at work first.

    Args:
        hosts: inventory names.
        state: what every host is doing at the beginning.
    """

    def __init__(self, hosts: Sequence[str], state: str) -> None:
        now = time.monotonic()
        self._steps = dict.fromkeys(hosts, (state, now))
        self._ended: dict[str, str | None] = {}
        self._live: Any = None

    def __enter__(self) -> Self:
        console = err()
        if console.is_terminal and self._steps:
            from rich.live import Live

            self._live = Live(console=console, get_renderable=self._table, transient=True, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, host: str, step: str) -> None:
        """A host has begun a step."""
        if host not in self._steps or self._steps[host][0] == step:
            return
        self._steps[host] = (step, time.monotonic())
        if self._live is None:
            note(f"{host}: {step}")

    def done(self, host: str, problem: str | None = None) -> None:
        """A host has ended, well or with a problem."""
        self._ended[host] = problem

    def _table(self) -> Any:
        now = time.monotonic()
        order = sorted(self._steps, key=lambda host: host in self._ended)
        rows = []
        for host in order[:_SHOWN]:
            step, since = self._steps[host]
            if host in self._ended:
                problem = self._ended[host]
                rows.append((host, "failed" if problem else "done", printable(problem or "")))
            else:
                rows.append((host, step, duration(now - since)))
        title = f"{len(self._ended)} of {len(self._steps)} hosts"
        return table(("HOST", "STEP", title), rows)
