"""The control groups of a rank's unit, in cgroup v1, v2 and the hybrid of both.

The user's processes live in a sub-group `job` of the unit's group, so that "everything of the job" is one list, apart
from the supervisor; systemd still kills both, because KillMode covers sub-groups.
"""

from __future__ import annotations

import os

from . import light
from .paths import read_text

SUBGROUP = "job"


def _mounts(mountinfo: str) -> list[tuple[str, str, set[str]]]:
    """(mount point, root inside the hierarchy, names) of each cgroup mount; names is empty for v2."""
    mounts = []
    for line in mountinfo.splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = [*tail.split(" ", 2), "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            root, point = fields.split()[3:5]
            mounts.append((point, root, set(options.split(",")) if kind == "cgroup" else set()))
    return mounts


def groups_of(cgroup: str, mountinfo: str) -> dict[str, str]:
    """{controllers: folder of the group that a process is in}, from its /proc files; "" stands for cgroup v2.

    A mount may show only a part of the hierarchy (in a container): its root is cut off the group's path.
    """
    mounts = _mounts(mountinfo)
    groups = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        wanted = set(controllers.split(",")) if controllers else set()
        for point, root, names in mounts:
            if (wanted and wanted <= names) or (not wanted and not names):
                inner = path[len(root) :] if root != "/" and path.startswith(root) else path
                groups[controllers] = f"{point}/{inner.strip('/')}".rstrip("/")
                break
    return groups


def members(folder: str) -> list[int]:
    """Process ids in a group and in all groups below it (a container has one there)."""
    return [int(pid) for path, _, _ in os.walk(folder) for pid in read_text(path + "/cgroup.procs").split()]


def remove_empty(*units: str) -> None:
    """Remove what an engine has made of units that have ended, in hierarchies that systemd does not look after."""
    for unit in units:
        slices = [path for mount in light.named("/sys/fs/cgroup") for path in light.named(mount, end=".slice")]
        for folder in [f"{path}/{unit}" for path in slices]:
            for path, _, _ in os.walk(folder, topdown=False):
                try:
                    os.rmdir(path)
                except OSError:  # it is in use, or systemd's own
                    continue


def _write(path: str, value: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError:
        return False
    return True


class JobGroup:
    """The `job` sub-group in the hierarchy by which systemd tracks processes, and the unit's groups in all others."""

    def __init__(self) -> None:
        found = groups_of(read_text("/proc/self/cgroup"), read_text("/proc/self/mountinfo"))
        groups = {name: folder for name, folder in found.items() if os.path.isdir(folder)}
        tracking = next((groups[name] for name in ("name=systemd", "") if ".service" in groups.get(name, "")), None)
        if tracking is None:
            raise OSError("this process is in no systemd unit's control group")
        self.folder = f"{tracking}/{SUBGROUP}"
        os.makedirs(self.folder, exist_ok=True)
        self.others = [folder for folder in groups.values() if folder != tracking and ".service" in folder]
        self.memory = groups.get("memory") or groups.get("") or ""

    def adopt(self, pid: int) -> bool:
        """Move a process into the job; False when it is gone or may not be moved."""
        for folder in self.others:
            _write(f"{folder}/cgroup.procs", str(pid))
        return _write(f"{self.folder}/cgroup.procs", str(pid))

    def pids(self) -> list[int]:
        """The job's live processes."""
        return members(self.folder)

    def kill(self, signum: int) -> None:
        """Send a signal to every process of the job."""
        for pid in self.pids():
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue

    def oom_kills(self) -> int:
        """How many processes the kernel has killed here for lack of memory (v2 and v1 name the file differently)."""
        for name in ("memory.events", "memory.oom_control"):
            for line in read_text(f"{self.memory}/{name}").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0
