"""What a rank's main process does before it supervises: be the only one, and tell whoever started it."""

from __future__ import annotations

import os
import time

from . import locks, paths
from .errors import NodeError


def take_lock(run: str) -> int:
    """The lock that says that a run is supervised, held for as long as this process lives."""
    until = time.monotonic() + 2.0
    while True:  # somebody who only looks holds the lock for a moment
        descriptor = locks.acquire(paths.run_dir(run) + "/rank.lock", wait=False)
        if descriptor is not None:
            return descriptor
        if time.monotonic() > until:
            raise NodeError("active", f"run {run} has a supervisor on this node already")
        time.sleep(0.01)


def notify_ready() -> None:
    """Tell whoever started us (systemd, or the guard) that the rank is supervised from now on."""
    address = os.environ.pop("NOTIFY_SOCKET", None)
    if address:
        from .sockets import socket

        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(b"READY=1")
        finally:
            notify.close()
    descriptor = os.environ.pop("LAMBDACTL_READY_FD", None)
    if descriptor is not None:
        os.write(int(descriptor), b"1")
        os.close(int(descriptor))


def protect_from_oom() -> None:
    """The kernel shall kill the job rather than its supervisor."""
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"-900")
    except OSError:
        return
