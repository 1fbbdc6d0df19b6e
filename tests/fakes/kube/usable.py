"""Whether this machine can run pods as processes."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

_TRIAL = (
    "ip link add kftrial type bridge && mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
    "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
)


@functools.cache
def usable() -> str | None:
    """Why this machine cannot run the process mode, or None."""
    if os.geteuid() != 0:
        return "process pods need root (mount and network namespaces)"
    missing = [name for name in ("unshare", "nsenter", "ip", "chroot") if shutil.which(name) is None]
    if missing:
        return f"process pods need {', '.join(missing)}"
    trial = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", _TRIAL]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return (
        None if done.returncode == 0 else f"process pods need namespaces, bridges and overlays: {done.stderr.strip()}"
    )
