"""What happens to all ranks of a run, decided from what is known of each: no clocks, no sockets, no processes here.

The coordinator feeds it (`observe`, `unreachable`, `ask_stop`) and carries out what it wants (`may_start`,
`stop_order`). The first thing that ends the run is its cause; everything after that is a consequence.
"""

from __future__ import annotations

from .state import FINAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .spec import Job

# Seconds from stop signal to SIGKILL for ranks that master-done ends: a chance to clean up, well under half a second.
MASTER_DONE_GRACE = 0.25
STARTED = ("running", "stopping", *FINAL)


class Gang:
    """The run as a whole, seen from rank 0."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ranks: list[dict[str, Any] | None] = [None] * len(job.nodes)
        self._lost: dict[int, str] = {}
        self._cause: dict[str, Any] | None = None
        self._order: dict[str, Any] | None = None

    def observe(self, rank: int, value: dict[str, Any]) -> None:
        """Take in a rank's RankState."""
        self._ranks[rank] = value
        state, reason = value["state"], value.get("reason")
        if self._order is not None or state not in FINAL:
            return
        if state == "failed":
            self._fail(rank, str(reason), value.get("message"), value.get("exit_code"))
        elif state == "stopped":
            self._end("stopped", str(reason), value.get("message"), {"reason": reason, "abort": False})
        elif rank == 0 and self._job.stop_criteria == "master-done":
            order = {"reason": "master-done", "abort": False, "grace": MASTER_DONE_GRACE}
            self._end("done", "master-done", None, order)

    def unreachable(self, rank: int, message: str) -> None:
        """Give a node up."""
        self._lost[rank] = message
        if self._order is None:
            self._fail(rank, "node-unreachable", message, None)

    def ask_stop(self, reason: str, message: str | None, *, abort: bool, grace: float | None) -> None:
        """Somebody wants the whole run to end; a second time with abort makes it quick."""
        order = {"reason": reason, "abort": abort, "grace": grace, "message": message}
        if self._order is None:
            self._end("stopped", reason, message, order)
        elif abort:
            self._order = order

    def _end(self, state: str, reason: str, message: str | None, order: dict[str, Any], **more: Any) -> None:
        self._cause = self._cause or {"state": state, "reason": reason, "message": message, **more}
        self._order = order

    def _fail(self, rank: int, reason: str, message: str | None, exit_code: int | None) -> None:
        name = self._job.nodes[rank].name
        text = f"rank {rank} on {name}: {message or reason}"
        cause = {"first_failed_rank": rank, "exit_code": exit_code}
        if self._job.on_node_failure == "stop" or (rank == 0 and self._job.stop_criteria == "master-done"):
            self._end("failed", reason, text, {"reason": "gang-failed", "abort": False, "message": text}, **cause)
        elif self._job.stop_criteria == "all-done":  # ignore: the others go on to their own ends, the failure is kept
            self._cause = self._cause or {"state": "failed", "reason": reason, "message": text, **cause}

    @property
    def stop_order(self) -> dict[str, Any] | None:
        """What every rank that has not ended is to be told, or None while nothing ends the run."""
        return self._order

    def _started(self, rank: int) -> bool:
        value = self._ranks[rank]
        return rank in self._lost or (value is not None and value["state"] in STARTED)

    def _prepared(self, rank: int) -> bool:
        value = self._ranks[rank]
        if rank in self._lost or value is None:
            return rank in self._lost
        return value["state"] in STARTED or (value["state"] != "pulling" and bool(value.get("prepared")))

    def may_start(self, rank: int) -> bool:
        """Whether all ranks have what they need and the startup order lets this rank's commands start."""
        if self._job.gated and not all(map(self._prepared, range(len(self._ranks)))):
            return False
        order = self._job.startup_order
        if order == "master-first" and rank:
            return self._started(0)
        if order == "workers-first" and not rank:
            return all(self._started(peer) for peer in range(1, len(self._ranks)))
        return True

    def ended(self, rank: int) -> bool:
        """Whether nothing more is expected of a rank."""
        value = self._ranks[rank]
        return rank in self._lost or (value is not None and value["state"] in FINAL)

    @property
    def final(self) -> bool:
        """Whether the run is over."""
        return all(self.ended(rank) for rank in range(len(self._ranks)))

    def summary(self) -> dict[str, Any]:
        """The `gang` part of a RankState."""
        blank: dict[str, Any] = dict.fromkeys(("reason", "message", "first_failed_rank", "exit_code", "finished_at"))
        cause = self._cause or {"state": "done", "reason": None}
        if self.final:
            exit_code = 0 if cause["state"] == "done" else None
            return {**blank, "exit_code": exit_code, **cause}
        if self._order is not None:
            return {**blank, **cause, "state": "stopping"}
        running = all(self._started(rank) for rank in range(len(self._ranks)))
        return {**blank, "state": "running" if running else "starting"}
