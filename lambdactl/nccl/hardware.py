"""The hardware that a verdict is about, and what is known of its GPUs (data/hardware.yaml)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from lambdactl.errors import SpecError

Algorithm = Literal["default", "ring"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What ran, as the user or the fleet's facts say.

    Attributes:
        gpu: the GPU's name, as a catalogue word (B200) or as nvidia-smi prints it.
        nics: NICs of one node that carry NCCL's traffic; nic_gbps: the rate of one, in Gb/s.
        algorithm: ring when the run forced NCCL_ALGO=Ring.
        infiniband: the NICs do RDMA (InfiniBand, RoCE, EFA), so that TCP would be a fault.
    """

    gpu: str
    gpus_per_node: int
    nodes: int
    nics: int | None = None
    nic_gbps: float | None = None
    algorithm: Algorithm = "default"
    infiniband: bool = True

    def __post_init__(self) -> None:
        for name, value, most in (
            ("nodes", self.nodes, 100_000), ("GPUs per node", self.gpus_per_node, 1024),
            ("NICs", self.nics, 1024), ("Gb/s of a NIC", self.nic_gbps, 100_000),
        ):  # fmt: skip
            if value is not None and not 0 < value <= most:
                raise SpecError(f"The number of {name} must be between 1 and {most}, not {value}.")

    @property
    def ranks(self) -> int:
        """One rank a GPU."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True)
class GPUModel:
    """A GPU that the rule knows. Limits are GB/s of all-reduce busbw in one node of 8."""

    name: str
    node_limit: float
    node_floor: float
    source: str


@cache
def _data() -> dict[str, Any]:
    text = files("lambdactl.nccl").joinpath("data/hardware.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def known_gpus() -> tuple[str, ...]:
    """The GPUs that have a rule."""
    return tuple(_data()["gpus"])


def gpus_per_node() -> int:
    """The size of node that the published figures are of."""
    return int(_data()["gpus_per_node"])


def gpu_model(name: str) -> GPUModel | None:
    """The model that a GPU's name means ("NVIDIA H100 80GB HBM3" is H100), None when there is no rule for it."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    if "MIG" in words:
        return None
    for model, facts in _data()["gpus"].items():
        if words & set(facts["names"]) and not words & set(facts["not"]):
            return GPUModel(model, float(facts["node_limit"]), float(facts["node_floor"]), facts["source"])
    return None
