"""Programs that the doctor asks where they are installed: nvidia-smi, ibstat, ibv_devinfo, dcgmi, systemctl, getent.

Each leaves `{"state": "ok" | "failed" | "hung" | "missing", "message": first words of its output}` in `programs`.
"""

from __future__ import annotations

import re
import socket

from . import doctor_gpu, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UNITS = (
    "nvidia-fabricmanager", "nvidia-persistenced", "nvidia-dcgm", "dcgm", "openibd",
    "chrony", "chronyd", "systemd-timesyncd", "ntp", "ntpsec", "ptp4l",
)  # fmt: skip
COMMANDS = {
    "nvidia-smi -q": ("nvidia-smi", "-q", "-x"),
    "nvidia-smi nvlink -s": ("nvidia-smi", "nvlink", "-s"),
    "nvidia-smi nvlink -e": ("nvidia-smi", "nvlink", "-e"),
    "ibstat": ("ibstat",),
    "ibv_devinfo": ("ibv_devinfo",),
    "dcgmi": ("dcgmi", "discovery", "-l"),
    "systemctl": ("systemctl", "show", "-p", "Id,LoadState,ActiveState", *(f"{unit}.service" for unit in UNITS)),
    "timedatectl": ("timedatectl", "show", "-p", "NTPSynchronized"),
    "getent": ("getent", "ahosts", socket.gethostname()),
}
LIMIT = 20.0
MESSAGE = 200


class Tools:
    """The started programs."""

    def __init__(self, started: dict[str, programs.Program | None]) -> None:
        self._started = started

    def evidence(self) -> dict[str, Any]:
        """Wait for all of them, and what they said."""
        states, texts = {}, {}
        for name, program in self._started.items():
            code, text = program.result([]) if program else (None, "")
            state = "missing" if program is None else "hung" if code is None else "failed" if code else "ok"
            states[name] = {"state": state, "message": " ".join(text.split())[:MESSAGE] if state == "failed" else ""}
            texts[name] = text if state in ("ok", "failed") else ""
        return {
            "programs": states,
            "gpus": doctor_gpu.parse_query(texts["nvidia-smi -q"]),
            "nvlink": doctor_gpu.parse_nvlink(texts["nvidia-smi nvlink -s"], texts["nvidia-smi nvlink -e"]),
            "ibstat": parse_ibstat(texts["ibstat"]),
            "verbs": re.findall(r"^hca_id:\s*(\S+)", texts["ibv_devinfo"], re.MULTILINE),
            "dcgm_gpus": parse_discovery(texts["dcgmi"]),
            "services": parse_units(texts["systemctl"]),
            "ntp_synchronized": _synchronized(texts["timedatectl"]),
            "hostname_addresses": sorted({line.split()[0] for line in texts["getent"].splitlines() if line.split()}),
        }


def start() -> Tools:
    """Start every program that is installed."""
    paths = {argv[0]: programs.find(argv[0]) for argv in COMMANDS.values()}
    limit = min(LIMIT, programs.time_limit())
    return Tools(
        {
            name: programs.Program([path, *argv[1:]], limit) if (path := paths[argv[0]]) else None
            for name, argv in COMMANDS.items()
        }
    )


def parse_ibstat(text: str) -> list[dict[str, Any]]:
    """The ports in the output of `ibstat`: device, port, state, physical state, rate in Gb/s, base lid."""
    ports: list[dict[str, Any]] = []
    device = ""
    for line in text.splitlines():
        found = re.match(r"CA '([^']+)'", line.strip())
        device = found.group(1) if found else device
        found = re.match(r"Port (\d+):", line.strip())
        if found:
            ports.append({"device": device, "port": int(found.group(1))})
        name, colon, value = (part.strip() for part in line.partition(":"))
        if ports and colon and name in ("State", "Physical state", "Rate", "Base lid", "Link layer"):
            ports[-1][name.lower().replace(" ", "_")] = int(value) if value.isdigit() else value
    return ports


def parse_discovery(text: str) -> int | None:
    """How many GPUs `dcgmi discovery -l` found."""
    found = re.search(r"^(\d+) GPUs? found", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def parse_units(text: str) -> dict[str, str]:
    """The active state of each unit that is installed, from `systemctl show`."""
    units = {}
    for block in text.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        if values.get("LoadState") == "loaded":
            units[values.get("Id", "").replace(".service", "")] = values.get("ActiveState", "")
    return units


def _synchronized(text: str) -> bool | None:
    value = text.strip().partition("=")[2]
    return value == "yes" if value in ("yes", "no") else None
