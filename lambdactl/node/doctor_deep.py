"""Tests that load the hardware, only on request: ib_write_bw on each InfiniBand port to itself, dcgmi diag -r 1."""

from __future__ import annotations

import json
import re
import time

from . import programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIRST_PORT = 18551
SECONDS = 3
LOOPBACK_LIMIT, DIAG_LIMIT = 20.0, 360.0
ROW = re.compile(r"^\s*(\d+)\s+(\d+)\s+([0-9.]+)\s+([0-9.]+)\s+([0-9.]+)\s*$", re.MULTILINE)


def evidence(ports: list[dict[str, Any]]) -> dict[str, Any]:
    """`loopback` is [{device, gbps}] (null: it gave no number), `diag` the results of dcgmi; null: not installed."""
    return {"loopback": _loopback(ports), "diag": _diag()}


def _loopback(ports: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """One device after the other: two at once would share the CPU's PCIe root, and measure that."""
    program = programs.find("ib_write_bw")
    if program is None:
        return None
    active = [port for port in ports if port["link_layer"] == "InfiniBand" and port["state"] == "ACTIVE"]
    found = []
    for number, port in enumerate(active):
        words = ["-d", port["device"], "-i", str(port["port"]), "-p", str(FIRST_PORT + number), "-F", "--report_gbits"]
        argv = [program, *words, "-D", str(SECONDS)]
        server = programs.Program(argv, LOOPBACK_LIMIT)
        time.sleep(0.5)  # the server has no sign of being ready but its open port
        code, text = programs.Program([*argv, "127.0.0.1"], LOOPBACK_LIMIT).result([])
        server.result([])
        found.append({"device": port["device"], "rate_gbps": port["rate_gbps"], "gbps": parse_bandwidth(text, code)})
    return found


def parse_bandwidth(text: str, code: int | None) -> float | None:
    """The average bandwidth (fourth column) of the last row that perftest printed."""
    rows = ROW.findall(text)
    return float(rows[-1][3]) if rows and code == 0 else None


def _diag() -> dict[str, Any] | None:
    program = programs.find("dcgmi")
    if program is None:
        return None
    code, text = programs.Program([program, "diag", "-r", "1", "-j"], DIAG_LIMIT).result([])
    return {"state": "hung" if code is None else "ok" if code == 0 else "failed", "failed": parse_diag(text)}


def parse_diag(text: str) -> list[str]:
    """Names of the tests that did not pass, in the JSON of DCGM 3 or 4."""
    start = text.find("{")
    try:
        report = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return []
    failed: list[str] = []
    _walk(report, "", failed)
    return sorted(set(failed))


def _walk(value: object, name: str, failed: list[str]) -> None:
    if isinstance(value, dict):
        name = str(value.get("name") or name)
        if str(value.get("status", "")).lower() in ("fail", "warn"):
            failed.append(name or "unnamed test")
        for item in value.values():
            _walk(item, name, failed)
    elif isinstance(value, list):
        for item in value:
            _walk(item, name, failed)
