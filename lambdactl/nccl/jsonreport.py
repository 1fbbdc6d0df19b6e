"""The JSON report of nccl-tests (`-J`, since 2.17.4): formats 1 to 3, also cut off or with infinities.

The report holds the whole environment of the process, tokens included: `env` and `args` are dropped before anything
else looks at the document. Keys as written by nccl-tests' src/util.cu.
"""

from __future__ import annotations

import json
import re
from typing import Any

from lambdactl.nccl.errors import NcclOutputError
from lambdactl.nccl.headers import MAX_ERRORS, MAX_RANKS
from lambdactl.nccl.model import Half, IterationStats, Rank, Result, Row, Settings, Table
from lambdactl.nccl.rows import number

MAX_REPORT = 256 << 20
_MAX_ROWS = 65_536
# printf("%lf") writes inf and -inf bare, which JSON does not know.
_INFINITY = re.compile(rb"(?<=[:,\[])\s*-?(?:inf(?:inity)?|nan)(?=\s*[,\]}])", re.IGNORECASE)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_BRACKETS = {"{": "}", "[": "]"}
_SETTINGS = {
    "threads": "nthreads", "gpus": "ngpus", "min_bytes": "minimum_bytes", "max_bytes": "maximum_bytes",
    "warmup": "warmup_iters", "iterations": "iterations", "aggregate": "aggregated_iterations",
    "validation": "validation", "graph": "graph",
}  # fmt: skip


def parse_report(data: bytes) -> Result:
    """A report, whole or cut off.

    Raises:
        NcclOutputError: it is no report of nccl-tests.
    """
    text = _INFINITY.sub(b"null", data).decode("utf-8-sig", "replace")
    notes: list[str] = []
    document = _load(text)
    if document is None:
        document = _load(_closed(text))
        notes.append("the JSON report is cut off: what was complete of it was read")
    if not isinstance(document, dict):
        raise NcclOutputError("The JSON document is not readable.", remedy="Give the file that nccl-tests' -J wrote.")
    if not any(isinstance(document.get(key), kind) for key, kind in (("results", list), ("config", dict))):
        raise NcclOutputError(
            "The JSON document is not a report of nccl-tests: it has neither results nor a configuration.",
            remedy="Give the file that nccl-tests' -J wrote.",
        )
    for secret in ("env", "args"):
        document.pop(secret, None)
    return _result(document, notes)


def _load(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def _closed(text: str) -> str:
    """The document up to its last complete object or list, with the brackets that are open there closed."""
    open_brackets: list[str] = []
    end, closers = 0, ""
    for match in _TOKEN.finditer(text):
        bracket = match.group()
        if bracket in _BRACKETS:
            open_brackets.append(_BRACKETS[bracket])
        elif bracket in "}]":
            if not open_brackets or open_brackets.pop() != bracket:
                break
            end, closers = match.end(), ""
            if len(open_brackets) <= 64:
                closers = "".join(reversed(open_brackets))
    return text[:end] + closers


def _result(document: dict[str, Any], notes: list[str]) -> Result:
    config = document["config"] if isinstance(document.get("config"), dict) else {}
    rows = [row for item in _list(document.get("results"))[:_MAX_ROWS] if (row := _row(item)) is not None]
    table = Table(settings=_settings(config), rows=rows, concluded="end_time" in document)
    result = Result(format="json", report_format=_integer(document.get("version")), notes=notes, banners=1)
    result.tables = [table]
    result.ranks = [r for item in _list(config.get("devices"))[:MAX_RANKS] if (r := _rank(item)) is not None]
    table.nccl_library = _integer(document.get("nccl_version"))
    names = {_text(item.get("experiment_name")) for item in _list(document.get("results")) if isinstance(item, dict)}
    table.collective = names.pop() or None if len(names) == 1 else None
    bounds, average = document.get("out_of_bounds"), document.get("average_bus_bandwidth")
    if isinstance(bounds, dict) and (wrong := _integer(bounds.get("count"))) is not None:
        table.out_of_bounds, table.out_of_bounds_ok = wrong, wrong == 0 and bounds.get("okay") != "false"
    if isinstance(average, dict):
        table.average = number(average.get("bandwidth"))
        table.average_ok = {"true": True, "false": False}.get(_text(average.get("okay")))
    result.errors = [text for item in _list(document.get("errors"))[:MAX_ERRORS] if (text := _text(item))]
    left_out = len(_list(document.get("results"))) - len(rows)
    if left_out:
        notes.append(f"{left_out} results of the JSON report are incomplete and were left out")
    if not rows:
        notes.append("the report holds no result: the test ended before its first measurement")
    return result


def _settings(config: dict[str, Any]) -> Settings | None:
    values = {name: _integer(config.get(key)) for name, key in _SETTINGS.items()}
    kind = "factor" if "step_factor" in config else "bytes" if "step_bytes" in config else None
    step = _integer(config.get(f"step_{kind}")) if kind else None
    if step is None and all(value is None for value in values.values()):
        return None
    return Settings(step=step, step_kind=kind, **values)


def _row(item: object) -> Row | None:
    if not isinstance(item, dict):
        return None
    size, count = _integer(item.get("size")), _integer(item.get("count"))
    if size is None or count is None:
        return None
    out_of_place = _half(item.get("out_of_place"), item.get("out_of_place_per_iter"))
    in_place = _half(item.get("in_place"), item.get("in_place_per_iter"))
    if out_of_place is None and in_place is None:
        return None
    root = _integer(item.get("root"), low=-1)
    return Row(size, count, _text(item.get("type")), _text(item.get("redop")) or None, root, out_of_place, in_place)


def _half(value: object, iterations: object) -> Half | None:
    if not isinstance(value, dict):
        return None
    time_us = number(value.get("time", value.get("cpu_time")))
    algbw, busbw = number(value.get("alg_bw")), number(value.get("bus_bw"))
    if time_us is None and algbw is None and busbw is None:
        return None
    stats = None
    if isinstance(iterations, dict):
        stats = IterationStats(*(number(iterations.get(key)) for key in ("min_us", "max_us", "p99_us", "cv_pct")))
    return Half(time_us, algbw, busbw, _integer(value.get("nwrong")), None, stats)


def _rank(item: object) -> Rank | None:
    if not isinstance(item, dict) or (rank := _integer(item.get("rank"))) is None:
        return None
    return Rank(
        rank, _integer(item.get("group")), _integer(item.get("pid")) or 0, _text(item.get("hostname")).split(".")[0],
        _integer(item.get("device")) or 0, _text(item.get("device_hex")), _text(item.get("device_info")),
    )  # fmt: skip


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value.strip()[:300] if isinstance(value, str) else ""


def _integer(value: object, *, low: int = 0) -> int | None:
    """A whole number out of a JSON value; reports write roots as padded strings and counts as 0.000000."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (isinstance(value, str) and len(value) > 20)
    ):
        return None
    try:
        result = int(float(value)) if not isinstance(value, int) else value
    except (ValueError, OverflowError):
        return None
    return result if low <= result < 1 << 63 else None
