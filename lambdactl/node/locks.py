"""File locks (flock): released by the kernel when the holder dies, so they also say who is alive."""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


def acquire(path: str, *, wait: bool) -> int | None:
    """A descriptor that holds the lock until it is closed, or None when somebody holds it and wait is False."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class held:
    """Hold a lock for the length of a block; a class, because `contextlib` loads more than all this needs."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        self._descriptor = acquire(self._path, wait=True)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def is_held(path: str) -> bool:
    """Whether some process holds the lock."""
    if not os.path.exists(path):
        return False
    descriptor = acquire(path, wait=False)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False
