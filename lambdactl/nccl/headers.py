"""The lines around the table: banner, settings, ranks, footer, errors. All optional: dstack and grep lose some."""

from __future__ import annotations

import re
from collections.abc import Callable

from lambdactl.nccl.model import Rank, Result, Settings, Table

MAX_RANKS = 131_072
MAX_ERRORS = 50
MAX_NOTES = 50
_MAX_TEXT = 300

_BANNER = re.compile(r"nccl-tests version (.{1,100}?)\s+nccl-headers=(\d{1,9})(?:\s+nccl-library=(\d{1,9}))?")
_OLD_BANNER = re.compile(r"nccl-tests version (\S{1,100})")
_CPU_BANNER = re.compile(r"all_reduce_cpu version (\S{1,30})")
_STARTING = re.compile(r"Collective test starting:\s*(\S{1,100})")
_CONCLUDED = re.compile(r"Collective test concluded:\s*(\S{1,100})")
_SETTINGS = re.compile(
    r"nThread[s]?:?\s+(?P<threads>\d{1,6})\s+nGpus:?\s+(?P<gpus>\d{1,6})\s+minBytes:?\s+(?P<min_bytes>\d{1,18})\s+"
    r"maxBytes:?\s+(?P<max_bytes>\d{1,18})\s+step:?\s+(?P<step>\d{1,18})\((?P<step_kind>\w{1,10})\)(?P<rest>.{0,300})"
)
_SETTING_WORDS = {
    "warmup": re.compile(r"warmup iters?:\s*(\d{1,9})"),
    "iterations": re.compile(r"(?<!warmup )(?<!agg )iters?:\s*(\d{1,9})"),
    "aggregate": re.compile(r"agg iters?:\s*(\d{1,9})"),
    "validation": re.compile(r"validation:\s*(\d{1,9})"),
    "graph": re.compile(r"graph:\s*(\d{1,9})"),
}
_RANK = re.compile(
    r"Rank\s+(?P<rank>\d{1,7})\s+(?:Group\s+(?P<group>\d{1,7})\s+)?Pid\s+(?P<pid>\d{1,9})\s+on\s+(?P<host>\S{1,255})\s+"
    r"device\s+(?P<device>\d{1,4})\s+\[(?P<bus>[^\]]{1,40})\]\s*(?P<gpu>.{0,120})"
)
_OUT_OF_BOUNDS = re.compile(r"Out of bounds values\s*:\s*(\d{1,18})\s*(OK|FAILED)?")
_AVERAGE = re.compile(r"Avg bus bandwidth\s*:\s*(\d[\d.e+]{0,30})\s*(OK|FAILED)?")
_REDUCED = re.compile(r"Reducing maxBytes to (\d{1,18}) due to memory limitation")
_JSON = re.compile(r"Writing JSON output to (\S{1,500})")
_HOST = r"(?:[A-Za-z][\w.-]{0,254}|\d{1,20})"
_ERRORS = re.compile(
    rf"({_HOST}: Test (?:CUDA|NCCL) failure .{{1,400}}|{_HOST}: Test timeout .{{1,200}}"
    r"|Invalid number of GPUs: .{1,200}|invalid sizes? (?:specified )?for '.{1,100}|invalid option '.{1,40}"
    r"|# error: .{1,400}|Incompatible NCCL versions\. .{1,300}|skipping json output; .{1,200})"
)
_HEADING = re.compile(r"\bsize\s+(?:count|N)\b.*\bbusbw\b")


class Headers:
    """Puts what header and footer lines say into the result and the current table of their source."""

    def __init__(self, result: Result, table_for: Callable[..., Table]) -> None:
        self._result = result
        self._table_for = table_for

    def take(self, source: int | None, text: str) -> None:
        """One line without its prefixes."""
        result = self._result
        if match := _RANK.search(text):
            self._rank(source, match)
        elif match := _BANNER.search(text) or _OLD_BANNER.search(text):
            table = self._start(source)
            table.version = match[1].strip()
            if match.re is _BANNER:
                table.nccl_headers = int(match[2])
                table.nccl_library = int(match[3]) if match[3] else None
        elif match := _CPU_BANNER.search(text):
            result.cpu = True
            self._start(source).version = match[1]
        elif match := _STARTING.search(text):
            table = self._table_for(source)
            if table.rows or table.complete or table.collective:
                table = self._start(source)
            table.collective = match[1]
        elif match := _SETTINGS.search(text):
            self._table_for(source, fresh=True).settings = _settings(match)
        elif match := _OUT_OF_BOUNDS.search(text):
            table = self._table_for(source)
            table.out_of_bounds = int(match[1])
            table.out_of_bounds_ok = match[2] != "FAILED" and table.out_of_bounds == 0
        elif match := _AVERAGE.search(text):
            self._average(source, match)
        elif match := _CONCLUDED.search(text):
            table = self._table_for(source)
            table.concluded, table.collective = True, table.collective or match[1]
        elif match := _REDUCED.search(text):
            result.reduced_max_bytes = int(match[1])
        elif match := _JSON.search(text):
            _append(result.json_paths, match[1])
        elif match := _ERRORS.search(text):
            _append(result.errors, match[1][:_MAX_TEXT].strip())
        elif _HEADING.search(text):
            self._table_for(source, fresh=True).cpu_time = "cputime" in text

    def _start(self, source: int | None) -> Table:
        self._result.banners += 1
        return self._table_for(source, new=True)

    def _rank(self, source: int | None, match: re.Match[str]) -> None:
        self._table_for(source)
        if len(self._result.ranks) < MAX_RANKS:
            group = match["group"]
            self._result.ranks.append(
                Rank(
                    int(match["rank"]), int(group) if group else None, int(match["pid"]), match["host"].split(".")[0],
                    int(match["device"]), match["bus"], match["gpu"].strip(),
                )
            )  # fmt: skip

    def _average(self, source: int | None, match: re.Match[str]) -> None:
        table = self._table_for(source)
        try:
            table.average = float(match[1])
        except ValueError:
            return
        table.average_ok = None if match[2] is None else match[2] == "OK"


def _settings(match: re.Match[str]) -> Settings:
    words = {name: pattern.search(match["rest"]) for name, pattern in _SETTING_WORDS.items()}
    return Settings(
        threads=int(match["threads"]), gpus=int(match["gpus"]), min_bytes=int(match["min_bytes"]),
        max_bytes=int(match["max_bytes"]), step=int(match["step"]), step_kind=match["step_kind"],
        **{name: int(found[1]) for name, found in words.items() if found},
    )  # fmt: skip


def _append(items: list[str], text: str) -> None:
    if len(items) < MAX_ERRORS and text not in items:
        items.append(text)
