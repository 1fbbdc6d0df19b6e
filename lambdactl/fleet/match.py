"""Whether a node has what a run's ``resources`` ask for.

Only what the user wrote is enforced (`Resources.explicit`): dstack's defaults, such as a disk of 100 GB, must never
exclude a host in silence. A maximum of CPUs, memory, disk or GPUs does not exclude a host either: the machines are
there already, and a run takes no more than it asks for. What tells one kind of GPU from another (vendor, name, memory,
compute capability) is enforced as it stands.

Sizes are nominal in files and smaller in fact, so the lower bounds give way by a tolerance:

- GPU memory 7 %. ECC keeps 1/16 (6.25 %) of GDDR6 memory: an L4 or A10 of 24 GB reports about 23034 MiB, an L40S of
  48 GB 46068 MiB, a T4 of 16 GB 15360 MiB; HBM cards lose less (H100 80 GB: 81559 MiB, B200 180 GB: 183359 MiB).
  (NVIDIA's nvidia-smi manual describes the loss under "ECC Mode".)
- Memory 5 %. Linux's MemTotal leaves out what firmware and kernel keep (proc(5)): 64 GiB show as about 62.5 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lambdactl.fleet.facts import GIB, GPU, NodeFacts

if TYPE_CHECKING:
    from lambdactl.spec import GPU as WantedGPU
    from lambdactl.spec import Range, Resources

GPU_MEMORY_TOLERANCE = 0.07
MEMORY_TOLERANCE = 0.05

_ARCHITECTURES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}


def reasons(resources: Resources, facts: NodeFacts) -> list[str]:
    """Why the node does not fit, one clause each ("has 4 GPUs, 8 wanted"); empty when it fits."""
    return [reason for key, check in _CHECKS.items() if key in resources.explicit for reason in check(resources, facts)]


def _cpu(resources: Resources, facts: NodeFacts) -> list[str]:
    found = []
    arch = _ARCHITECTURES.get(facts.arch, facts.arch)
    if resources.cpu.arch is not None and resources.cpu.arch != arch:
        found.append(f"has {arch or 'unknown'} CPUs, {resources.cpu.arch} wanted")
    wanted = resources.cpu.count.min
    if wanted is not None and facts.cpus < wanted:
        found.append(f"has {_count(facts.cpus, 'CPU')}, {wanted} wanted")
    return found


def _memory(resources: Resources, facts: NodeFacts) -> list[str]:
    wanted = resources.memory.min
    if wanted is None or facts.memory / GIB >= wanted * (1 - MEMORY_TOLERANCE):
        return []
    return [f"has {_gb(facts.memory)} of memory, {wanted:g} GB wanted"]


def _disk(resources: Resources, facts: NodeFacts) -> list[str]:
    wanted = None if resources.disk is None else resources.disk.min
    free = 0 if facts.disk is None else facts.disk.free
    return [] if wanted is None or free / GIB >= wanted else [f"has {_gb(free)} of free disk, {wanted:g} GB wanted"]


def _shm(resources: Resources, facts: NodeFacts) -> list[str]:
    wanted = resources.shm_size
    if wanted is None or facts.memory / GIB >= wanted:
        return []
    return [f"has {_gb(facts.memory)} of memory, {wanted:g} GB of shared memory wanted"]


def _gpu(resources: Resources, facts: NodeFacts) -> list[str]:
    wanted = resources.gpu
    if wanted is None:
        return []
    need = wanted.count.min or 0
    if need == 0:
        return []
    if len(facts.gpus) < need:
        kind = f" {_names(wanted)}" if wanted.name else ""
        return [f"has {_count(len(facts.gpus), 'GPU')}, {need}{kind} wanted"]
    found = []
    for fits, shown, asked in _kind_checks(wanted):
        if sum(map(fits, facts.gpus)) < need:
            found.append(f"has {_shared(facts.gpus, fits, shown)}, {asked} wanted")
    fitting = [gpu for gpu in facts.gpus if all(fits(gpu) for fits, _, _ in _kind_checks(wanted))]
    if not found and len(fitting) < need:
        found.append(f"has {_count(len(fitting), 'GPU')} meeting all conditions, {need} wanted")
    if not found and wanted.total_memory is not None and wanted.total_memory.min is not None:
        total = sum(gpu.memory for gpu in fitting)
        if total / GIB < wanted.total_memory.min * (1 - GPU_MEMORY_TOLERANCE):
            found.append(f"has {_gb(total)} of GPU memory in all, {wanted.total_memory.min:g} GB wanted")
    return found


_Check = tuple[Callable[[GPU], bool], Callable[[GPU], str], str]


def _kind_checks(wanted: WantedGPU) -> list[_Check]:
    """What tells one kind of GPU from another: a test, how to show what is there, and what is asked for."""
    checks: list[_Check] = []
    if wanted.vendor is not None:
        checks.append((lambda gpu: gpu.vendor == wanted.vendor, lambda gpu: f"{gpu.vendor} GPUs", wanted.vendor))
    if wanted.name:
        names = {_plain(name) for name in wanted.name}
        checks.append((lambda gpu: _plain(gpu.name) in names, lambda gpu: gpu.name, _names(wanted)))
    if (memory := wanted.memory) is not None:
        checks.append((lambda gpu: _fits_memory(gpu, memory), lambda gpu: f"GPUs of {_gb(gpu.memory)}", f"{memory}GB"))
    if (least := wanted.compute_capability) is not None:
        checks.append(
            (
                lambda gpu: gpu.compute_capability is not None and gpu.compute_capability >= tuple(least),
                lambda gpu: f"compute capability {_version(gpu.compute_capability)}",
                _version(least),
            )
        )
    return checks


def _fits_memory(gpu: GPU, wanted: Range[float]) -> bool:
    size = gpu.memory / GIB
    enough = wanted.min is None or size >= wanted.min * (1 - GPU_MEMORY_TOLERANCE)
    return enough and (wanted.max is None or size <= wanted.max)


def _shared(gpus: Sequence[GPU], fits: Callable[[GPU], bool], shown: Callable[[GPU], str]) -> str:
    """What is there instead, each kind once."""
    return " and ".join(dict.fromkeys(shown(gpu) for gpu in gpus if not fits(gpu)))


def _plain(name: str) -> str:
    return name.replace(" ", "").lower()


def _names(wanted: WantedGPU) -> str:
    return " or ".join(wanted.name)


def _count(number: int, what: str) -> str:
    return f"no {what}" if number == 0 else f"{number} {what}{'' if number == 1 else 's'}"


def _gb(size: float) -> str:
    return f"{size / GIB:.0f} GB"


def _version(capability: Sequence[int] | None) -> str:
    return "unknown" if capability is None else ".".join(str(part) for part in capability)


_CHECKS: dict[str, Callable[[Resources, NodeFacts], list[str]]] = {
    "cpu": _cpu,
    "memory": _memory,
    "disk": _disk,
    "shm_size": _shm,
    "gpu": _gpu,
}
