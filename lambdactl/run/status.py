"""Runs as their nodes report them: RankStates put together, newest first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambdactl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOST, EXIT_MAX_DURATION, EXIT_OK
from lambdactl.run.dev import described
from lambdactl.run.nodes import Problem, call_all, same
from lambdactl.transport.api import Runner

FINAL = frozenset({"done", "failed", "stopped"})

# What a gang's reason means as an exit code, where no rank's own exit code says more.
_REASON_CODES = {
    "max-duration": EXIT_MAX_DURATION,
    "stopped-by-user": EXIT_INTERRUPTED,
    "node-unreachable": EXIT_LOST,
    "node-rebooted": EXIT_LOST,
    "coordinator-lost": EXIT_LOST,
    "runner-killed": EXIT_LOST,
    "disrupted": EXIT_LOST,
    "oom": 137,
    "inactivity": EXIT_OK,
}


@dataclass(frozen=True)
class RunStatus:
    """One run over all its nodes; times are seconds since the epoch.

    Attributes:
        state: reserved, pulling, starting, running, stopping, done, failed or stopped; "unknown" where rank 0 does not
            answer.
        ranks: the RankStates that answered, by rank.
        unseen: hosts of the fleet that gave no answer (they may hold further ranks).
    """

    run_id: str
    name: str
    state: str
    ranks: tuple[Mapping[str, Any], ...]
    nodes_num: int
    submitted_at: float
    owner: str
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    first_failed_rank: int | None = None
    finished_at: float | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Nothing of this run executes any more."""
        return self.state in FINAL

    @property
    def hosts(self) -> dict[int, str]:
        """Inventory names by rank, for the ranks that answered."""
        return {int(rank["rank"]): str(rank["node"]) for rank in self.ranks}

    @property
    def dev(self) -> Mapping[str, Any] | None:
        """What its node says of a dev environment; None for another kind of run, and before it has begun."""
        value = self.ranks[0].get("dev")
        return value if isinstance(value, dict) else None

    @property
    def pull(self) -> dict[str, int] | None:
        """Bytes of images that have come, and that are known to come, on all nodes; None where nothing is pulled."""
        found = [rank["pull"] for rank in self.ranks if isinstance(rank.get("pull"), Mapping)]
        return {key: sum(int(one.get(key) or 0) for one in found) for key in ("done", "total")} if found else None

    def as_json(self) -> dict[str, Any]:
        """The schema of `run get --json` and `ps --json` (docs/commands.md)."""
        return {
            "run_id": self.run_id,
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "message": self.message,
            "exit_code": self.exit_code,
            "first_failed_rank": self.first_failed_rank,
            "nodes": self.nodes_num,
            "owner": self.owner,
            "submitted_at": self.submitted_at,
            "tags": dict(self.ranks[0].get("tags") or {}),
            "finished_at": self.finished_at,
            "pull": self.pull,
            "ranks": [{key: value for key, value in rank.items() if key not in ("gang", "dev")} for rank in self.ranks],
            "unseen_hosts": dict(self.unseen),
            **({} if self.dev is None else {"dev": described(self.dev, self.name)}),
        }


async def fetch_runs(
    transport: Runner, hosts: Iterable[str], run: str | None = None
) -> tuple[list[RunStatus], dict[str, Problem]]:
    """Ask the nodes for their runs (or for one, by name or id).

    Returns:
        The runs, newest first, and the hosts that gave no answer.
    """
    answers = await call_all(transport, same(hosts, op="status", run=run))
    problems = {host: answer for host, answer in answers.items() if isinstance(answer, Problem)}
    ranks: dict[str, list[dict[str, Any]]] = {}
    for host, answer in answers.items():
        if isinstance(answer, Problem):
            continue
        for rank in answer.get("ranks", ()):
            ranks.setdefault(str(rank["run_id"]), []).append({**rank, "node": host})
    unseen = {host: problem.message for host, problem in problems.items()}
    runs = [combine(states, unseen) for states in ranks.values()]
    return sorted(runs, key=lambda status: status.submitted_at, reverse=True), problems


def combine(states: Sequence[Mapping[str, Any]], unseen: Mapping[str, str] | None = None) -> RunStatus:
    """One run's status from its ranks' states."""
    ranks = tuple(sorted(states, key=lambda state: int(state["rank"])))
    first = ranks[0]
    gang = _gang(ranks)
    nodes_num = int(first.get("nodes_num") or len(ranks))
    return RunStatus(
        run_id=str(first["run_id"]),
        name=str(first["run_name"]),
        state=_state(str(gang.get("state", "unknown")), ranks),
        ranks=ranks,
        nodes_num=nodes_num,
        submitted_at=float(first.get("submitted_at") or 0),
        owner=str(first.get("owner") or ""),
        reason=gang.get("reason"),
        message=gang.get("message"),
        exit_code=exit_code(gang) if gang.get("state") in FINAL else None,
        first_failed_rank=gang.get("first_failed_rank"),
        finished_at=gang.get("finished_at"),
        unseen=dict(unseen or {}) if len(ranks) < nodes_num else {},
    )


def _state(gang: str, ranks: Sequence[Mapping[str, Any]]) -> str:
    """A gang that starts and waits for images says so."""
    return "pulling" if gang == "starting" and any(rank["state"] == "pulling" for rank in ranks) else gang


def pull_text(status: RunStatus) -> str:
    """How far the images are: "pulling 1.2 of 3.4 GB, 1 of 2 nodes has its image"; empty when nothing is pulled."""
    if status.state != "pulling":
        return ""
    ready = sum(rank["state"] != "pulling" for rank in status.ranks)
    amounts = status.pull
    size = f" {amounts['done'] / 1e9:.1f} of {amounts['total'] / 1e9:.1f} GB" if amounts and amounts["total"] else ""
    return f"pulling{size}, {ready} of {status.nodes_num} nodes ready"


def exit_code(gang: Mapping[str, Any]) -> int:
    """The exit code of `lambdactl apply` for a gang that has ended: the first failing rank's own, else the reason's."""
    if gang.get("state") == "done":
        return EXIT_OK
    reason = str(gang.get("reason") or "")
    if reason in _REASON_CODES:
        return _REASON_CODES[reason]
    if gang.get("state") == "stopped":
        return EXIT_INTERRUPTED
    code = gang.get("exit_code")
    return int(code) if code else EXIT_FAILED


def _gang(ranks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Rank 0 speaks for the gang; where it is silent, a final word that it left on another node."""
    for state in ranks:
        gang = state.get("gang")
        if isinstance(gang, dict) and gang and (state["rank"] == 0 or gang.get("state") in FINAL):
            return gang
    if ranks[0]["rank"] == 0:
        return {key: ranks[0].get(key) for key in ("state", "reason", "message", "exit_code", "finished_at")}
    # Rank 0's node is out of reach: when all others have ended, they know why.
    if all(state["state"] in FINAL for state in ranks):
        lost = next((state for state in ranks if state["state"] == "failed"), ranks[0])
        return {
            "state": "failed",
            "reason": lost.get("reason") or "coordinator-lost",
            "message": lost.get("message"),
            "finished_at": lost.get("finished_at"),
            "exit_code": None,
        }
    return {"state": "unknown", "message": "rank 0 does not answer"}
