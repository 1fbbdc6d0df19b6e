"""What a run takes with it: the trees of `files` and `repos`, made on the controller, and their JobSpec keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambdactl.errors import SpecError
from lambdactl.run import repos, tree
from lambdactl.run.tree import Blob, Tree
from lambdactl.spec import Spec, TaskSpec, line_in


@dataclass(frozen=True)
class RunContent:
    """Trees in the order of the file; empty when the run takes nothing with it.

    Attributes:
        files: (tree, path on the node) for each entry of `files`.
        repo: the repository, or None.
    """

    files: tuple[tuple[Tree, str], ...] = ()
    repo: repos.Checkout | None = None
    blobs: Mapping[str, Blob] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.size for blob in self.blobs.values())

    def job_keys(self) -> dict[str, Any]:
        """The keys of a JobSpec; none when there is nothing."""
        keys: dict[str, Any] = {}
        if self.files:
            keys["files"] = [{"manifest": item.manifest, "path": path} for item, path in self.files]
        if self.repo is not None:
            keys["repo"] = {
                "manifest": self.repo.tree.manifest, "path": self.repo.path, "if_exists": self.repo.if_exists,
            }  # fmt: skip
            keys["repo_id"] = self.repo.repo_id
        return keys


def collect(task: TaskSpec) -> RunContent:
    """Read everything that a task takes with it, from this machine or from a Git server; may take a while.

    Raises:
        SpecError: a path is not there, or Git cannot get the repository.
    """
    files = tuple((_tree(task, item.local_path), item.path) for item in task.files)
    repo = repos.checkout(task.repos[0], task, base_folder(task)) if task.repos else None
    blobs: dict[str, Blob] = {}
    for item in [*(item for item, _ in files), *([repo.tree] if repo else [])]:
        blobs.update(item.blobs)
    return RunContent(files, repo, blobs)


def base_folder(spec: Spec) -> Path:
    """Where relative paths of a file start: its own folder; the current one for standard input."""
    filename = spec.source.filename
    return Path.cwd() if filename.startswith("<") or not filename else Path(filename).resolve().parent


def _tree(task: TaskSpec, path: str) -> Tree:
    local = base_folder(task) / Path(path).expanduser()
    if local.is_dir():
        return tree.build(tree.walk(str(local)))
    if not local.is_file():
        raise SpecError(
            f"'files' names {path}, which is not a file or folder on this machine ({local}).",
            filename=task.source.filename,
            line=line_in(task, "files"),
        )
    return tree.build([tree.Source("", str(local.resolve()))])
