"""What a schedule's runs take with them from the machine that hands it over: trees in a Secret, and back to trees."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdactl.errors import SpecError
from lambdactl.run import tree
from lambdactl.run.content import RunContent
from lambdactl.run.repos import Checkout
from lambdactl.run.tree import Source, Tree
from lambdactl.spec import TaskSpec, line_in

from .archive import Item, archive, items

LIMIT = 900 << 10
"""Bytes, compressed: a Secret takes 1 MiB, and the task has to fit in as well."""


def packed(content: RunContent, task: TaskSpec) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What is to be known of each tree, and the trees as compressed archives by the key that they get in a Secret.

    A repository that the file gives by its URL is left out: it is fetched at each time.

    Raises:
        SpecError: it does not fit into a Secret.
    """
    if content.repo is not None and task.repos[0].url:
        content = RunContent(content.files)
    about: list[dict[str, Any]] = []
    data: dict[str, bytes] = {}
    for index, item in enumerate(items(content)):
        key = f"content-{index}.tgz"
        data[key] = gzip.compress(b"".join(piece for _, piece in archive(item)), mtime=0)
        repo = content.repo if item.kind == "repo" else None
        about.append({"key": key, "kind": item.kind, "path": item.path} | ({} if repo is None else _of_repo(repo)))
    if (size := sum(map(len, data.values()))) > LIMIT:
        raise SpecError(
            f"the schedule's files are {size} bytes when they are compressed, and {LIMIT} fit into the Secret that "
            "keeps them in the cluster; bring fewer, put them into the image or a volume, or give the repository by "
            "its URL, which is fetched at each time.",
            filename=task.source.filename,
            line=line_in(task, "files" if task.files else "repos"),
        )
    return about, data


def _of_repo(repo: Checkout) -> dict[str, Any]:
    names = ("repo_id", "if_exists", "title", "commit", "changed")
    return {name: getattr(repo, name) for name in names}


def unpacked(about: list[Mapping[str, Any]], source: Path, scratch: Path) -> RunContent:
    """The trees again, out of the archives in `source`; their files are put below `scratch`."""
    files: list[tuple[Tree, str]] = []
    repo: Checkout | None = None
    for index, one in enumerate(about):
        folder = scratch / str(index)
        folder.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress((source / str(one["key"])).read_bytes()))) as tar:
            # Modes and links stay as they were: by an attribute, which a Python 3.11 without filters does not mind.
            tar.extraction_filter = lambda member, _path: member
            tar.extractall(folder)  # noqa: S202 - our own archive
        kind, path = str(one["kind"]), str(one["path"])
        if kind == "file":
            name = Item(tree.build([]), kind, path).name
            files.append((tree.build([Source("", str(folder / name))]), path))
        elif kind == "dir":
            files.append((_whole(folder, times=True), path))
        else:
            repo = Checkout(
                _whole(folder, times=False), str(one["repo_id"]), path, str(one["if_exists"]), str(one["title"]),
                str(one["commit"]), int(one["changed"]),
            )  # fmt: skip
    blobs = {key: blob for found in [*(t for t, _ in files), *([repo.tree] if repo else [])]
             for key, blob in found.blobs.items()}  # fmt: skip
    return RunContent(tuple(files), repo, blobs)


def _whole(folder: Path, *, times: bool) -> Tree:
    """Everything below a folder: what the ignore files leave out was left out when it was packed."""
    found = (Source(str(path.relative_to(folder)), str(path)) for path in sorted(folder.rglob("*")))
    return tree.build([Source("", str(folder), 0o755), *found], times=times)
