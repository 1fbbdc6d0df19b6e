"""Where a host-native run's own files lie: its working directory, and its repository."""

from __future__ import annotations

import os

from . import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .launch import User
    from .spec import Job


def expand(path: str, base: str, user: User) -> str:
    """An absolute path: `~` is the user's home, a relative path starts at `base`."""
    if path == "~" or path.startswith("~/"):
        path = user.home + path[1:]
    return os.path.normpath(os.path.join(base, path))


def run_folder(job: Job) -> str:
    """The folder of the run that belongs to its user; it goes when the run is forgotten."""
    return paths.run_dir(job.run_id) + "/work"


def repo_dir(job: Job, user: User) -> str | None:
    """Where the repository is checked out; None when there is none.

    Without a `working_dir` it is in the run's own folder on this node: a home folder is never empty, and is shared by
    all nodes of many clusters.
    """
    if job.repo is None:
        return None
    base = expand(job.working_dir, user.home, user) if job.working_dir else run_folder(job)
    return expand(job.repo.path, base, user)


def working_dir(job: Job, user: User) -> str:
    """The working directory: the file's own (`~` and relative paths start at the user's home), the repository, `~`."""
    if job.working_dir:
        return expand(job.working_dir, user.home, user)
    return repo_dir(job, user) or os.path.normpath(user.home)
