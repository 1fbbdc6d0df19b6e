"""Runs as their nodes report them: RankStates put together, newest first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambdactl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOST, EXIT_MAX_DURATION, EXIT_OK
from lambdactl.run.dev import described
from lambdactl.run.nodes import Answers, Problem, Reply, call_all, same
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
        queue: while the run waits, `{place, of, priority, since, not_before}`.
        attempt, attempts: the number of this attempt, and how those before it ended.
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
    queue: Mapping[str, Any] | None = None
    attempt: int = 1
    attempts: Sequence[Mapping[str, Any]] = ()

    @property
    def waits(self) -> bool:
        """Whether the run has no nodes yet: it is in the queue, or rests before another attempt."""
        return self.queue is not None

    @property
    def final(self) -> bool:
        """Nothing of this run executes any more."""
        return self.state in FINAL

    def is_named(self, key: str | None) -> bool:
        """Whether a name or id (None: any) means this run."""
        return key is None or key in (self.name, self.run_id)

    @property
    def hosts(self) -> dict[int, str]:
        """Inventory names by rank, for the ranks that answered."""
        return {int(rank["rank"]): str(rank["node"]) for rank in self.ranks if rank.get("rank") is not None}

    @property
    def dev(self) -> Mapping[str, Any] | None:
        """What its node says of a dev environment; None for another kind of run, and before it has begun."""
        value = self.ranks[0].get("dev") if self.ranks else None
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
            "tags": dict((self.ranks[0].get("tags") if self.ranks else None) or {}),
            "finished_at": self.finished_at,
            "pull": self.pull,
            "ranks": [{key: value for key, value in rank.items() if key not in ("gang", "dev")} for rank in self.ranks],
            "unseen_hosts": dict(self.unseen),
            **({} if self.dev is None else {"dev": described(self.dev, self.name)}),
            "queue": None if self.queue is None else dict(self.queue),
            "attempt": self.attempt,
            "attempts": [dict(attempt) for attempt in self.attempts],
        }


async def fetch_runs(
    transport: Runner, hosts: Iterable[str], run: str | None = None
) -> tuple[list[RunStatus], dict[str, Problem]]:
    """Ask the nodes for their runs (or for one, by name or id).

    A host that does not answer is waited for no longer once all ranks of the wanted run have answered.

    Returns:
        The runs, newest first, and the hosts that gave no answer.
    """

    def whole(answers: Answers) -> bool:
        return any(_is_whole(status, run) for status in _runs(answers))

    answers = await call_all(transport, same(hosts, op="status", run=run), settled=whole if run is not None else None)
    problems = {host: answer for host, answer in answers.items() if isinstance(answer, Problem)}
    runs = _runs(answers)
    tickets = [ticket for _, answer in _replies(answers) for ticket in answer.get("queue") or ()]
    known = {status.run_id for status in runs}
    # A run that has just reserved its nodes still has its ticket: its ranks are the news.
    runs += [status for status in waiting(tickets) if status.run_id not in known and status.is_named(run)]
    return sorted(runs, key=lambda status: status.submitted_at, reverse=True), problems


def _replies(answers: Answers) -> list[tuple[str, Reply]]:
    return [(host, answer) for host, answer in answers.items() if not isinstance(answer, Problem)]


def _runs(answers: Answers) -> list[RunStatus]:
    """The runs of which a rank has answered."""
    ranks: dict[str, list[dict[str, Any]]] = {}
    for host, answer in _replies(answers):
        for rank in answer.get("ranks", ()):
            ranks.setdefault(str(rank["run_id"]), []).append({**rank, "node": host})
    unseen = {host: answer.message for host, answer in answers.items() if isinstance(answer, Problem)}
    return [combine(states, unseen) for states in ranks.values()]


def _is_whole(status: RunStatus, key: str | None) -> bool:
    """Whether no host that is silent could change what is known of the run that a key means.

    An active run has its name for itself in its fleet; one that has ended, or a schedule, may have a newer namesake.
    """
    unique = key == status.run_id or not (status.final or status.state == "scheduled")
    nodes = status.ranks[0].get("nodes_num")  # None while its nodes are only reserved
    return unique and nodes is not None and len(status.ranks) >= nodes


def in_order(tickets: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tickets of several hosts as one queue: each run once, by its newest ticket, in the order of the nodes."""
    newest: dict[str, Mapping[str, Any]] = {}
    for ticket in tickets:
        known = newest.get(str(ticket["run_id"]))
        if known is None or float(ticket["expires"]) > float(known["expires"]):
            newest[str(ticket["run_id"])] = ticket
    return sorted(newest.values(), key=lambda t: (-int(t["priority"]), float(t["since"]), str(t["run_id"])))


def waiting(tickets: Iterable[Mapping[str, Any]]) -> list[RunStatus]:
    """The runs in a fleet's queue, in its order."""
    ordered = in_order(tickets)
    found = []
    for place, ticket in enumerate(ordered, 1):
        resting = float(ticket.get("not_before") or 0) > time.time()
        where = {"place": place, "of": len(ordered)} | {k: ticket[k] for k in ("priority", "since", "not_before")}
        reason = str(ticket.get("reason") or "") or "it has just come"
        found.append(
            RunStatus(
                run_id=str(ticket["run_id"]),
                name=str(ticket["run_name"]),
                state="resting" if resting else "queued",
                ranks=(),
                nodes_num=int(ticket["nodes"]),
                submitted_at=float(ticket.get("submitted_at") or ticket["since"]),
                owner=str(ticket.get("owner") or ""),
                message=reason if resting else f"{ordinal(place)} of {len(ordered)} in the queue: {reason}",
                queue=where,
                attempt=int(ticket.get("attempt") or 1),
            )
        )
    return found


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, ..."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def combine(states: Sequence[Mapping[str, Any]], unseen: Mapping[str, str] | None = None) -> RunStatus:
    """One run's status from its ranks' states."""
    ranks = tuple(sorted(states, key=lambda state: int(state["rank"] or 0)))
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
        attempt=int((first.get("attempt") or {}).get("number") or 1),
        attempts=(first.get("attempt") or {}).get("earlier") or (),
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
    if not ranks[0]["rank"]:  # 0, or a node that is only reserved
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
