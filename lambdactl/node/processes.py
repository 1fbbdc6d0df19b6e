"""The job's processes where there is no systemd: every descendant of the supervisor, which is their sub-reaper."""

from __future__ import annotations

import os

from .paths import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Have orphaned descendants re-parented to this process instead of to process 1."""
    try:
        from _ctypes import call_function, dlopen, dlsym  # `ctypes` itself takes 4 ms to load

        this_program: Any = None
        call_function(dlsym(dlopen(this_program, 0), "prctl"), (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    except ImportError:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def rename(name: str) -> None:
    """What `ps -o comm` and `top` call this process; a fork has the command line of whom it was forked from."""
    try:
        with open("/proc/self/comm", "wb") as file:
            file.write(name.encode())
    except OSError:
        return


def start_time(pid: int) -> str:
    """What tells a process from a later one with the same id; empty when it is gone or a zombie."""
    fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _children() -> dict[int, list[int]]:
    tree: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = read_text(f"/proc/{name}/stat").rpartition(")")[2].split()
            if len(fields) > 1 and fields[0] not in "ZX":
                tree.setdefault(int(fields[1]), []).append(int(name))
    return tree


def has_children() -> bool:
    """Whether this process has children; a sub-reaper without any has no descendants either."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


class ProcessTree:
    """Stands where JobGroup stands under systemd. `helpers()` are children of the supervisor that are not the job's."""

    def __init__(self, helpers: Callable[[], set[int]] = set) -> None:
        become_subreaper()
        self._helpers = helpers
        self._adopted: dict[int, str] = {}

    def adopt(self, pid: int) -> bool:
        """Count a process that is no descendant as the job's; False when it is gone."""
        self._adopted[pid] = start_time(pid)
        return bool(self._adopted[pid])

    def pids(self) -> list[int]:
        """The job's live processes."""
        found = [pid for pid, started in self._adopted.items() if started and start_time(pid) == started]
        if not found and not has_children():
            return []  # without a look at every process of the machine
        tree = _children()
        helpers = self._helpers()
        found += [pid for pid in tree.get(os.getpid(), []) if pid not in helpers and pid not in found]
        for pid in found:  # grows while it is walked: children follow their parents
            found += [child for child in tree.get(pid, []) if child not in found]
        return found

    def kill(self, signum: int) -> None:
        """Send a signal to every process of the job."""
        for pid in self.pids():
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue

    def oom_kills(self) -> int:
        """Unknown without a control group of its own."""
        return 0
