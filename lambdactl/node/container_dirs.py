"""Where a container's working directory and repository are; dstack's rules. Pure.

The working directory is the file's `working_dir`, else the image's. Relative paths start there; `~` is the home of the
container's user, which is known only when there is a container.
"""

from __future__ import annotations

import posixpath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .container import Container
    from .spec import Job

# For a repository without a place of its own in an image without a WORKDIR: the root folder is never empty. The name is
# the one that dstack had before it took the image's.
WORKFLOW = "/workflow"


def join(base: str, path: str) -> str:
    """A path that begins with `/` or `~`; a relative one starts at `base`."""
    if path == "~" or path.startswith(("/", "~/")):
        return path
    return base if path in ("", ".") else f"{base.rstrip('/')}/{path}"


def expand(path: str, home: str) -> str:
    """The absolute path of one that begins with `/` or `~`."""
    absolute = home.rstrip("/") + path[1:] if path == "~" or path.startswith("~/") else path
    return "/" + posixpath.normpath("/" + absolute).lstrip("/")


def told_working_dir(job: Job, container: Container, image_dir: str) -> str | None:
    """The working directory that the container must be told; None where the image's own holds."""
    if container.working_dir:
        return container.working_dir
    homeless = job.repo is not None and job.repo.path in ("", ".") and image_dir in ("", "/")
    return WORKFLOW if homeless else None


def working_dir(job: Job, container: Container, image_dir: str) -> str:
    """The working directory as far as it is known before the container runs."""
    return told_working_dir(job, container, image_dir) or image_dir or "/"


def repo_dir(job: Job, container: Container, image_dir: str) -> str | None:
    """Where the repository is checked out, as far as it is known; None when there is none."""
    return None if job.repo is None else join(working_dir(job, container, image_dir), job.repo.path)
