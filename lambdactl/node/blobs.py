"""The node's content store: `/var/lib/lambdactl/blobs/<sha256>`, root's alone; what is in it is what its name says.

Blobs come through `runner.pyz receive` (from a controller, or from another node by `runner.pyz push`), each into a
temporary file that gets its name when its digest is right. A cut transfer leaves whole blobs, which the next one needs
not send, and a temporary file, which `collect` removes.
"""

from __future__ import annotations

import errno
import os
import time

from . import light, locks, paths
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

TEMPORARY = ".new-"
CUT_AGE = 60.0
FRESH = 3600.0  # seconds that a blob is kept although no run names it: its run may be about to be submitted
UNUSED = 14 * 86400.0  # seconds after which an unused one goes
RESERVE = 256 << 20  # bytes of the file system that uploads leave free: the node needs to go on
SHARE = 0.1  # of the file system that unused blobs may take


def is_digest(text: str) -> bool:
    """Whether this is a sha256 in hexadecimal."""
    return len(text) == 64 and light.made_of(text, paths.HEX)


def digest(value: object) -> str:
    """The value when it is a sha256 in hexadecimal: it names a file, so nothing else passes."""
    if isinstance(value, str) and is_digest(value):
        return value
    raise NodeError("bad-request", f"{str(value)[:80]!r} is not a sha256 in lower-case hexadecimal")


def folder() -> str:
    """The store's folder."""
    return paths.STATE + "/blobs"


def path(sha256: str) -> str:
    """Where a blob lies, or would."""
    return f"{folder()}/{digest(sha256)}"


def make_folder() -> None:
    """Create the store; private, because uploads are."""
    os.makedirs(folder(), mode=0o700, exist_ok=True)


def open_blob(sha256: str) -> int:
    """A descriptor for reading a blob. Raises NodeError (start-failed) when the store has it not."""
    try:
        return os.open(path(sha256), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NodeError(
            "start-failed", "the run's files are not in this node's store any more; submit the run again"
        ) from None


def free_space() -> int:
    """Bytes that uploads may still take."""
    usage = os.statvfs(folder() if os.path.isdir(folder()) else paths.STATE)
    return max(0, usage.f_bavail * usage.f_frsize - RESERVE)


def have(request: dict[str, Any]) -> dict[str, Any]:
    """The op `have`: {"blobs": [[sha256, size]...]} -> {"missing": [sha256...], "free": bytes}.

    Those that are there count as used now. Where the missing ones do not fit, unused blobs make room.
    """
    wanted = request.get("blobs")
    if not isinstance(wanted, list) or not all(isinstance(item, list) and len(item) == 2 for item in wanted):
        raise NodeError("bad-request", "have: blobs is a list of [sha256, size]")
    missing, size = [], 0
    for sha256, length in wanted:
        try:
            os.utime(path(sha256))
        except FileNotFoundError:
            missing.append(sha256)
            size += int(length)
    if missing:
        make_folder()
        if free_space() < size:
            collect(room=size)
    return {"missing": missing, "free": free_space()}


def _used(run: str) -> set[str]:
    """What a run of this node needs."""
    return needed(paths.read_json(paths.run_dir(run) + "/job.json"))


def needed(job: Any) -> set[str]:
    """What a job names: its manifests and their parts."""
    found: set[str] = set()
    if not isinstance(job, dict):
        return found
    for item in [*(job.get("files") or []), *([job["repo"]] if job.get("repo") else [])]:
        manifest = str(item.get("manifest")) if isinstance(item, dict) else ""
        if not is_digest(manifest):
            continue
        found.add(manifest)
        tree = paths.read_json(path(manifest))
        for entry in tree.get("entries", []) if isinstance(tree, dict) else []:
            found.update(str(part[0]) for part in entry.get("parts", []))
    return found


def _kept() -> set[str]:
    from . import schedule, service_store

    later = [*schedule.jobs(), *service_store.jobs()]
    return set().union(*(_used(run) for run in _active()), *(needed(job) for job in later))


def _active() -> Iterable[str]:
    from . import state

    for run in state.run_ids():
        value = state.read(run)
        if value is not None and not state.is_settled(value):
            yield run


def collect(room: int = 0) -> list[str]:
    """Remove what nobody needs: cut transfers, blobs unused for two weeks, and, the least used first, as many others as
    are above a tenth of the file system or in the way of `room` bytes. Never what an active run names, or what was
    asked for within the last hour. Returns what was removed."""
    if not os.path.isdir(folder()):
        return []
    _remove_cut()
    now = time.time()
    found = []
    for name in os.listdir(folder()):
        if is_digest(name):
            try:
                status = os.stat(path(name))
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, name))
    total = sum(size for _, size, _ in found)
    space = os.statvfs(folder())
    limit = SHARE * space.f_blocks * space.f_frsize
    removed: list[str] = []
    kept: set[str] | None = None
    for used, size, name in sorted(found):
        if now - used < FRESH or (now - used < UNUSED and total <= limit and free_space() >= room):
            break  # those that follow were used even later
        kept = _kept() if kept is None else kept
        if name in kept:
            continue
        os.unlink(path(name))
        total -= size
        removed.append(name)
    return removed


def _remove_cut() -> None:
    """Temporary files whose writer is gone: a writer holds a lock on its own."""
    for name in os.listdir(folder()):
        if not name.startswith(TEMPORARY):
            continue
        file = f"{folder()}/{name}"
        try:
            # One that was made just now may not be locked yet.
            if time.time() - os.stat(file).st_mtime > CUT_AGE and not locks.is_held(file):
                os.unlink(file)
        except FileNotFoundError:
            continue


def no_space(error: OSError, size: int) -> NodeError:
    """The error of a write that failed: the disk is full, or something is wrong with it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NodeError(
            "no-space",
            f"the disk of {folder()} is full: {size} bytes are to be stored, {free_space()} are free; make room, or "
            "upload less",
        )
    return NodeError("internal", f"{error.strerror} ({error.filename or folder()})")
