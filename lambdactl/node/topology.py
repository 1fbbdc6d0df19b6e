"""The node's CPUs in the order of the machine: neighbours share a core first, then a NUMA node."""

from __future__ import annotations

import os

from . import gpus, light, paths


def parse_list(text: str) -> list[int]:
    """The numbers of a kernel list such as `0-3,8,10-11`."""
    found: list[int] = []
    for item in text.strip().split(","):
        first, _, last = item.partition("-")
        if first.isdigit():
            found += range(int(first), int(last if last.isdigit() else first) + 1)
    return found


def _number(path: str) -> int:
    text = paths.read_text(path).strip()
    return int(text) if text and light.made_of(text, paths.DIGITS) else 0


def cpus() -> list[int]:
    """Every CPU of the node, as many as facts say, so that equal slices of the list are equal parts of the machine."""
    folder = gpus.sysfs() + "/devices/system"
    total = os.cpu_count() or 1
    online = parse_list(paths.read_text(folder + "/cpu/online"))
    if len(online) != total:
        online = list(range(total))
    nodes = {}
    for path in light.named(folder + "/node", "node"):
        number = os.path.basename(path)[4:]
        if number.isdigit():
            nodes.update(dict.fromkeys(parse_list(paths.read_text(path + "/cpulist")), int(number)))

    def place(cpu: int) -> tuple[int, int, int, int]:
        core = f"{folder}/cpu/cpu{cpu}/topology"
        return (nodes.get(cpu, 0), _number(core + "/physical_package_id"), _number(core + "/core_id"), cpu)

    return sorted(online, key=place)


def memory() -> int:
    """The node's memory in bytes, as facts say; 0 when it is not known."""
    return paths.memory() or 0
