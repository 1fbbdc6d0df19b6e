# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""``resources``: processor, memory, disk, shared memory and GPUs that a node must have.

What the file leaves out keeps dstack's default, and ``Resources.explicit`` names what it gives: matching enforces only
that (a default ``disk: 100GB..`` must not silently exclude a host).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from . import values
from .engine import Either, Kind, ListOf, Schema, Struct, key
from .kinds import Read, Whole
from .nodes import Problem
from .values import Range

_NUMBER_OR_TEXT: Schema = {"type": ["string", "number"]}


SIZE = Read(values.read_size, "size", values.SIZE, _NUMBER_OR_TEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountBounds:
    """A range of whole numbers as a mapping."""

    min: int | None = key(Whole(0), "The fewest.")
    max: int | None = key(Whole(0), "The most.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBounds:
    """A range of sizes (GB) as a mapping."""

    min: float | None = key(SIZE, "The smallest.")
    max: float | None = key(SIZE, "The largest.")


class RangeOf(Kind[Range[Any]]):
    """A range, as a scalar (``2..8``) or as a mapping with ``min`` and ``max``."""

    def __init__(self, scalars: Read[Range[Any]], bounds: type[Any]) -> None:
        self.scalars = scalars
        self.bounds = Struct(bounds, "range")
        self.label = scalars.label
        self.wanted = scalars.wanted

    def read(self, node: Node) -> Range[Any]:
        if not isinstance(node, MappingNode):
            return self.scalars.read(node)
        bounds = self.bounds.read(node)
        if bounds.min is None and bounds.max is None:
            raise Problem(node, "must have 'min' or 'max'")
        if bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
            raise Problem(node, f"has a 'min' ({bounds.min:g}) above its 'max' ({bounds.max:g})")
        return Range(bounds.min, bounds.max)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"anyOf": [self.scalars.schema(definitions), self.bounds.schema(definitions)]}


COUNT_RANGE = RangeOf(
    Read(values.read_whole_range, "number or range", values.WHOLE_RANGE, _NUMBER_OR_TEXT), CountBounds
)
SIZE_RANGE = RangeOf(Read(values.read_size_range, "size or range", values.SIZE_RANGE, _NUMBER_OR_TEXT), SizeBounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CPU:
    """Processor cores."""

    arch: str | None = key(
        Read(values.read_architecture, "`x86`, `arm`", "x86 or arm", {"type": "string"}), "Architecture."
    )
    count: Range[int] = key(COUNT_RANGE, "Cores.", default=Range(2, None), default_text="2..")


class _CPUStruct(Struct[CPU]):
    """Also takes a range's mapping, ``{min, max}``, in the place of ``{count: {min, max}}``."""

    def read(self, node: Node, **extra: Any) -> CPU:
        if isinstance(node, MappingNode) and node.value:
            names = {name.value for name, _ in node.value if isinstance(name, ScalarNode)}
            if names <= {"min", "max"}:
                return CPU(count=COUNT_RANGE.read(node))
        return super().read(node, **extra)

    def object_schema(self, definitions: dict[str, Schema]) -> Schema:
        count = COUNT_RANGE.schema(definitions)["anyOf"][1]
        return {"anyOf": [super().object_schema(definitions), count]}


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """GPUs (or other accelerators) of a node."""

    vendor: str | None = key(
        Read(
            values.read_vendor,
            "`nvidia`, `amd`, `google` (`tpu`), `intel`, `tenstorrent` (`tt`)",
            "a vendor",
            {"type": "string"},
        ),
        "Vendor of the GPU.",
    )
    name: tuple[str, ...] = key(
        Either(
            Read(values.read_gpu_names, "GPU name", "a GPU's name such as H100 or B200", {"type": "string"}),
            ListOf(Read(lambda text: values.read_gpu_names(text)[0], "GPU name", "a GPU's name", {"type": "string"})),
        ),
        "Names, any of which will do.",
        default=(),
        nullable=True,
        default_text="any",
    )
    count: Range[int] = key(COUNT_RANGE, "How many.", default=Range(1, None), default_text="1..")
    memory: Range[float] | None = key(SIZE_RANGE, "Memory of each GPU.")
    total_memory: Range[float] | None = key(SIZE_RANGE, "Memory of all GPUs together.")
    compute_capability: tuple[int, int] | None = key(
        Either(
            Read(values.read_capability, "`major.minor`", "a compute capability such as 9.0", _NUMBER_OR_TEXT),
            ListOf(Whole(0), least=2, most=2),
        ),
        "The least CUDA compute capability.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Disk:
    size: Range[float] = key(SIZE_RANGE, "Size of the disk.", required=True)


class _DiskStruct(Struct[Any]):
    """``disk: 100GB..`` and ``disk: {size: 100GB..}`` are both read as the range."""

    def read(self, node: Node, **extra: Any) -> Any:
        return SIZE_RANGE.read(node) if not isinstance(node, MappingNode) else super().read(node).size


_SIZE_SHORTHAND: Kind[dict[str, Any]] = Read(
    lambda text: {"size": values.read_size_range(text)}, "size or range", values.SIZE_RANGE, _NUMBER_OR_TEXT
)
CPU_KIND = _CPUStruct(
    CPU, "cpu", shorthand=Read(values.read_cpu, "`[arch:]cores`", "cores such as 8, 4.. or x86:16", _NUMBER_OR_TEXT)
)
GPU_KIND = Struct(
    GPU,
    "gpu",
    shorthand=Read(
        values.read_gpu,
        "`[vendor:][name:][memory:][count]`",
        "GPUs such as 8, H100:8 or nvidia:B200:8",
        _NUMBER_OR_TEXT,
    ),
)
DISK_KIND = _DiskStruct(_Disk, "disk", shorthand=_SIZE_SHORTHAND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a node must have. Sizes are in GB; ``explicit`` holds the keys that the file gives."""

    cpu: CPU = key(CPU_KIND, "Processor cores.", default=CPU(), default_text="2..")
    memory: Range[float] = key(SIZE_RANGE, "Memory of the node.", default=Range(8.0, None), default_text="8GB..")
    disk: Range[float] | None = key(
        DISK_KIND, "Disk of the node.", default=Range(100.0, None), nullable=True, default_text="100GB.."
    )
    shm_size: float | None = key(SIZE, "Shared memory (`/dev/shm`).")
    gpu: GPU | None = key(
        GPU_KIND, "GPUs of the node.", default=GPU(count=Range(0, None)), nullable=True, default_text="any or none"
    )
    explicit: frozenset[str] = frozenset()


def gpu_needs_image(gpu: GPU | None) -> bool:
    """AMD, Intel and Tenstorrent accelerators need an ``image``: dstack's rule, kept for the same verdict."""
    return gpu is not None and gpu.count.max != 0 and gpu.vendor in ("amd", "intel", "tenstorrent")


RESOURCES = Struct(Resources, "resources")
