"""Rank 0's second part: holds the links to all peers, lets the gang decide, and carries its decisions out."""

from __future__ import annotations

import time

from .gang import Gang
from .peer import PeerLink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop
    from .spec import Job

FAREWELL = 5.0
# Seconds that the peers' commands get for their start before the links are made, where no start waits for them: a link
# costs both of its nodes the start of a program, which a small gang's commands would otherwise compete with.
FIRST_THE_COMMANDS = 0.5


class Coordinator:
    """Runs the gang from rank 0's supervisor.

    Calls back: `on_start()` when rank 0 may start, `on_stop(order)` when rank 0 must stop, `on_gang(summary)` at every
    change, `on_end()` once, when the run is over and every reachable peer knows it.
    """

    def __init__(
        self,
        loop: Loop,
        job: Job,
        *,
        on_start: Callable[[], None],
        on_stop: Callable[[dict[str, Any]], None],
        on_gang: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._gang = Gang(job)
        self._on_start = on_start
        self._on_stop = on_stop
        self._on_gang = on_gang
        self._on_end = on_end
        self._summary: dict[str, Any] = {}
        self._states: dict[int, str] = {}
        self._told: dict[int, dict[str, Any]] = {}
        self._unaware: set[int] = set()
        self._ended = False
        self.links = [
            PeerLink(loop, job, rank, on_message=self._on_message, on_lost=self._on_lost)
            for rank in range(1, len(job.nodes))
        ]
        self._unopened = list(self.links)
        if job.gated or job.startup_order != "any":
            self._open()
        else:
            loop.later(FIRST_THE_COMMANDS, self._open)

    def _open(self) -> None:
        links, self._unopened = self._unopened, []
        for link in links:
            link.open()

    def observe_own(self, value: dict[str, Any]) -> None:
        """Take in rank 0's own state."""
        self._gang.observe(0, value)
        self._states[0] = value["state"]
        self._carry_out()

    def ask_stop(self, reason: str, message: str | None, *, abort: bool, grace: float | None) -> None:
        """Stop the whole run."""
        self._gang.ask_stop(reason, message, abort=abort, grace=grace)
        self._carry_out()

    def _on_message(self, rank: int, message: dict[str, Any]) -> None:
        value = message.get("state")
        if isinstance(value, dict) and isinstance(value.get("state"), str):
            self._told.pop(rank, None)  # it may be a new connection: say again what still holds
            self._states[rank] = value["state"]
            self._gang.observe(rank, value)
            self._carry_out()
        elif message.get("ack") == "gang":
            self._unaware.discard(rank)
            self._say_farewell()

    def _on_lost(self, rank: int, text: str) -> None:
        self._unaware.discard(rank)
        self._gang.unreachable(rank, text)
        self._carry_out()

    def _carry_out(self) -> None:
        order = self._gang.stop_order
        if order is not None:
            self._open()
            self._on_stop(order)
            for link in self.links:
                self._tell(link, {"op": "stop", **order})
        else:
            if self._gang.may_start(0):
                self._on_start()
            for link in self.links:
                if self._states.get(link.rank) == "waiting" and self._gang.may_start(link.rank):
                    self._tell(link, {"op": "go"})
        self._publish()

    def _tell(self, link: PeerLink, message: dict[str, Any]) -> None:
        if link.attached and not self._gang.ended(link.rank) and self._told.get(link.rank) != message:
            self._told[link.rank] = message
            link.send(message)

    def _publish(self) -> None:
        summary = self._gang.summary()
        if self._ended or summary == self._summary:
            return
        self._summary = summary
        if not self._gang.final:
            self._on_gang(summary)
            return
        self._ended = True
        self._on_gang({**summary, "finished_at": time.time()})
        self._unaware = {link.rank for link in self.links if not link.closed and link.attached}
        for link in self.links:
            link.send({"op": "gang", "gang": {**summary, "finished_at": time.time()}})
        self._loop.later(FAREWELL, self._unaware.clear)
        self._loop.later(FAREWELL, self._say_farewell)
        self._say_farewell()

    def _say_farewell(self) -> None:
        if self._ended and not self._unaware:
            for link in self.links:
                link.close()
            self._on_end()
