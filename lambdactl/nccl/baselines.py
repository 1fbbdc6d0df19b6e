"""Published results (data/baselines.yaml): what others measured on hardware like this, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from lambdactl.nccl.hardware import Hardware, gpu_model


@dataclass(frozen=True, slots=True)
class Baseline:
    """One published all-reduce result or threshold; `low` and `high` in GB/s of busbw, equal unless it is a range."""

    gpu: str
    fabric: str
    nodes: int | None
    gpus_per_node: int
    nics: int | None
    nic_gbps: float | None
    low: float
    high: float
    size: str | None
    algorithm: str
    kind: str
    expect: str
    source: str

    @property
    def text(self) -> str:
        """One line for people."""
        where = f"{self.nodes}x{self.gpus_per_node} {self.gpu}" if self.nodes else f"{self.gpu}, any number of nodes"
        value = f"{self.low:g}" if self.low == self.high else f"{self.low:g}-{self.high:g}"
        at = f" @ {self.size}" if self.size else ""
        extra = "".join(
            (
                ", NCCL_ALGO=Ring" if self.algorithm == "ring" else "",
                "" if self.kind == "measured" else f", {self.kind}",
            )
        )
        return f"{value} GB/s{at}: {where}, {self.fabric}{extra} ({self.source})"


@cache
def baselines() -> tuple[Baseline, ...]:
    """All rows of the data file."""
    text = files("lambdactl.nccl").joinpath("data/baselines.yaml").read_text(encoding="utf-8")
    return tuple(_baseline(row) for row in yaml.safe_load(text)["rows"])


def _baseline(row: dict[str, Any]) -> Baseline:
    busbw = row["busbw"]
    low, high = busbw if isinstance(busbw, list) else (busbw, busbw)
    return Baseline(
        row["gpu"], row["fabric"], row["nodes"], row["gpus_per_node"], row["nics"], row["nic_gbps"], float(low),
        float(high), row["size"], row["algorithm"], row["kind"], row["expect"], row["source"],
    )  # fmt: skip


def neighbours(hardware: Hardware, most: int = 4) -> list[Baseline]:
    """Published results of the same GPU, those of the nearest number of nodes first."""
    model = gpu_model(hardware.gpu)
    name = model.name if model else hardware.gpu.upper()

    def distance(row: Baseline) -> tuple[int, float, bool, bool]:
        nodes = math.inf if row.nodes is None else abs(math.log2(row.nodes / hardware.nodes))
        return (row.kind != "measured", nodes, row.algorithm != hardware.algorithm, row.nics != hardware.nics)

    alike = [row for row in baselines() if name in row.gpu.split("/")]
    return sorted(alike, key=distance)[:most]
