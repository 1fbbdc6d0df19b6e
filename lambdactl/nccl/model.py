"""What nccl-tests reports, as types. Bandwidths are GB/s (10^9 bytes), times microseconds, sizes bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class IterationStats:
    """Per-iteration statistics of one half of a row (`-I 1`)."""

    min_us: float | None
    max_us: float | None
    p99_us: float | None
    cv_percent: float | None


@dataclass(frozen=True, slots=True)
class Half:
    """One measurement: the out-of-place or the in-place half of a row; None where it printed `N/A`, nan or inf.

    `wrong` counts wrong elements; tests older than 2.11 print the largest deviation instead, kept in `deviation`.
    """

    time_us: float | None
    algbw: float | None
    busbw: float | None
    wrong: int | None = None
    deviation: float | None = None
    iterations: IterationStats | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One message size. `root` is None where the layout has no such column, -1 where no root applies."""

    size: int
    count: int
    type: str
    redop: str | None
    root: int | None
    out_of_place: Half | None
    in_place: Half | None
    timestamp: str | None = None

    @property
    def halves(self) -> tuple[Half, ...]:
        """The halves that were measured."""
        return tuple(half for half in (self.out_of_place, self.in_place) if half is not None)

    @property
    def best_busbw(self) -> float | None:
        """The better half's bus bandwidth."""
        return max((half.busbw for half in self.halves if half.busbw is not None), default=None)


@dataclass(frozen=True, slots=True)
class Rank:
    """A line of the `Using devices` list. `host` is cut at the first dot, as nccl-tests prints it."""

    rank: int
    group: int | None
    pid: int
    host: str
    device: int
    bus_id: str
    gpu: str


@dataclass(frozen=True, slots=True)
class Settings:
    """The `nThread ...` line: what was asked for; None where an old layout does not say."""

    threads: int | None = None
    gpus: int | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None
    step: int | None = None
    step_kind: str | None = None
    warmup: int | None = None
    iterations: int | None = None
    aggregate: int | None = None
    validation: int | None = None
    graph: int | None = None


@dataclass(slots=True)
class Table:
    """One test's output: a heading, rows and a footer, each possibly missing.

    `source` is the rank whose output it is, where lines carry a rank's prefix.
    """

    source: int | None = None
    collective: str | None = None
    version: str | None = None
    nccl_headers: int | None = None
    nccl_library: int | None = None
    settings: Settings | None = None
    cpu_time: bool = False
    rows: list[Row] = field(default_factory=list)
    out_of_bounds: int | None = None
    out_of_bounds_ok: bool | None = None
    average: float | None = None
    average_ok: bool | None = None
    concluded: bool = False

    @property
    def complete(self) -> bool:
        """Whether the footer was reached."""
        return self.average is not None or self.concluded


@dataclass(slots=True)
class Transports:
    """What the INFO lines say about the network: how often each was seen, and what NCCL says it uses."""

    socket: int = 0
    infiniband: int = 0
    libfabric: int = 0
    using: tuple[str, ...] = ()


@dataclass(slots=True)
class Result:
    """Everything that was read.

    Attributes:
        format: text, or json for a `-J` report; `report_format` is that report's number.
        cpu: the output is of lambdactl's CPU benchmark: no GPU took part.
        tables: in order; those with rows or a footer.
        ranks: the `Using devices` lines of all tables.
        banners: how many times a test announced itself.
        errors: messages of the tests themselves, in order, at most 50.
        notes: what the reader should know about the reading itself.
        json_paths: where the tests said that they wrote their JSON report.
    """

    format: Literal["text", "json"] = "text"
    report_format: int | None = None
    cpu: bool = False
    tables: list[Table] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
    banners: int = 0
    nccl_version: str | None = None
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    json_paths: list[str] = field(default_factory=list)
    reduced_max_bytes: int | None = None
    transports: Transports = field(default_factory=Transports)
    rows_left_out: int = 0

    def rows(self) -> Iterator[Row]:
        """The rows of all tables."""
        for table in self.tables:
            yield from table.rows

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the rank lines, in their order, each once."""
        return tuple(dict.fromkeys(rank.host for rank in self.ranks))

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPU names of the rank lines, each once."""
        return tuple(dict.fromkeys(rank.gpu for rank in self.ranks if rank.gpu))
