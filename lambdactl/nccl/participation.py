"""Proof that all hosts and ranks took part, over the network that was asked for. Each finding alone fails a verdict."""

from __future__ import annotations

from dataclasses import dataclass

from lambdactl.nccl import stats
from lambdactl.nccl.hardware import Hardware
from lambdactl.nccl.model import Result, Row

_TELLING_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Participation:
    """Who took part. Counts are None where the output does not say.

    `hosts_seen` come from the rank lines; `ranks_seen` too, or else from the figures (`ranks_by`: "rank lines" or
    "busbw/algbw").
    """

    hosts_asked: int
    hosts_seen: int | None
    ranks_asked: int
    ranks_seen: int | None
    ranks_by: str | None
    hosts: tuple[str, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]


def participation(result: Result, hardware: Hardware) -> Participation:
    """Compares what ran with what was asked for."""
    rows = list(result.rows())
    hosts = result.hosts
    ranks, by, notes = _ranks(result, rows, hardware)
    failures = [
        *_single_ranks(result, rows, hardware),
        *_missing(result, ranks, by, hardware),
        *_wrong_results(result, rows),
        *_network(result, hardware),
        *(f"the test reported an error: {error}" for error in result.errors[:3]),
    ]
    if not result.ranks:
        notes.append("the output has no rank lines, so the hosts that took part are not proven")
    return Participation(
        hardware.nodes,
        len(hosts) if hosts else None,
        hardware.ranks,
        ranks,
        by,
        hosts,
        tuple(dict.fromkeys(failures)),
        tuple(notes),
    )


def _ranks(result: Result, rows: list[Row], hardware: Hardware) -> tuple[int | None, str | None, list[str]]:
    if result.ranks:
        return len({rank.rank for rank in result.ranks}) * _devices_a_line(result), "rank lines", []
    if not _all_reduce(result):
        return None, None, []
    found = stats.inferred_ranks(rows)
    if found is None:
        return None, None, []
    fewest, most = found
    if fewest == most:
        return fewest, "busbw/algbw", []
    if fewest <= hardware.ranks and (most is None or hardware.ranks <= most):
        return None, None, [f"the figures fit {fewest} to {most or 'any number of'} ranks, {hardware.ranks} among them"]
    return (fewest if fewest > hardware.ranks else most), "busbw/algbw", []


def _devices_a_line(result: Result) -> int:
    """JSON reports list the first device of a process only, whatever -t and -g say."""
    settings = result.tables[0].settings if result.format == "json" and result.tables else None
    return max(1, (settings.threads or 1) * (settings.gpus or 1)) if settings else 1


def _all_reduce(result: Result) -> bool:
    names = {table.collective for table in result.tables if table.rows and table.collective}
    return all(name.startswith("all_reduce") for name in names)


def _single_ranks(result: Result, rows: list[Row], hardware: Hardware) -> list[str]:
    if hardware.ranks == 1:
        return []
    lines = len(result.ranks)
    if lines > 1 and all(rank.rank == 0 for rank in result.ranks):
        return [
            f"{lines} processes each ran a test of one rank: a build without MPI (MPI=1) was started by mpirun, or "
            "processes of different MPI versions did not find each other"
        ]
    large = [half.busbw for row in rows if row.size >= _TELLING_SIZE for half in row.halves if half.busbw is not None]
    if large and not any(large):
        return ["busbw is 0 at every size: each process ran alone, so nothing crossed a link (built without MPI?)"]
    return []


def _missing(result: Result, ranks: int | None, by: str | None, hardware: Hardware) -> list[str]:
    hosts = result.hosts
    if hosts and len(hosts) < hardware.nodes:
        names = ", ".join(hosts[:8]) + (", ..." if len(hosts) > 8 else "")
        kind = "a single-node run" if len(hosts) == 1 else "not the whole cluster"
        return [f"{kind}: {len(hosts)} of {hardware.nodes} hosts took part ({names})"]
    # The CPU benchmark runs any number of ranks a host.
    if ranks is not None and ranks < hardware.ranks and not result.cpu:
        return [f"{ranks} of {hardware.ranks} ranks took part (by {by})"]
    return []


def _wrong_results(result: Result, rows: list[Row]) -> list[str]:
    wrong = [(row.size, half.wrong) for row in rows for half in row.halves if half.wrong]
    if wrong:
        size, count = wrong[0]
        return [f"wrong results: {count} wrong elements at {size} bytes (and in {len(wrong) - 1} more cells)"]
    if any(table.out_of_bounds_ok is False for table in result.tables):
        return ["wrong results: the test says that values are out of bounds"]
    return []


def _network(result: Result, hardware: Hardware) -> list[str]:
    if hardware.nodes == 1 or not hardware.infiniband or not hardware.nics or result.cpu:
        return []
    seen = result.transports
    sockets = [name for name in seen.using if name.lower().startswith("socket")]
    if seen.socket or sockets:
        what = f"{seen.socket} channels went via NET/Socket" if seen.socket else "NCCL says: Using network Socket"
        return [f"TCP was used where InfiniBand is there: {what}"]
    return []
