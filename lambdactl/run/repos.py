"""`repos`: a Git repository as a tree that nodes get, history and uncommitted changes included.

The controller fetches, with the user's own credentials, into a bare repository under the XDG cache; only new commits
travel on the next run, and a node gets the packs of objects as blobs that it keeps. The nodes see no credentials.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lambdactl.errors import LambdactlError, SpecError
from lambdactl.run import tree
from lambdactl.run.git import GitError, git, without_credentials
from lambdactl.run.tree import Source, Tree
from lambdactl.spec import TaskSpec, line_in

_HEX = re.compile(r"[0-9a-f]{4,64}")
_ALL = "+refs/heads/*:refs/remotes/origin/*"


@dataclass(frozen=True)
class Checkout:
    """A repository at one commit, perhaps with uncommitted changes.

    Attributes:
        path: where it is checked out on the nodes, as the file says.
        commit: its commit; empty where there is none yet.
        changed: files that differ from the commit.
    """

    tree: Tree
    repo_id: str
    path: str
    if_exists: str
    title: str
    commit: str
    changed: int
    holder: Any = field(repr=False, compare=False, default=None)  # keeps the temporary files until they are sent


@dataclass(frozen=True)
class _Head:
    commit: str
    branch: str | None


def checkout(repo: Any, task: TaskSpec, base: Path) -> Checkout:
    """Get what an entry of `repos` means.

    Raises:
        SpecError: there is no such repository, branch or commit; LambdactlError: Git cannot get it.
    """
    local = base / Path(repo.local_path).expanduser() if repo.local_path else None
    where = partial(SpecError, filename=task.source.filename, line=line_in(task, "repos"))
    try:
        top = Path(git("rev-parse", "--show-toplevel", at=local).rstrip("\n")) if local is not None else None
    except (GitError, OSError):
        raise where(
            f"'repos' names {repo.local_path}, which is not a Git repository on this machine ({local}); "
            "upload a plain folder by 'files'."
        ) from None
    origin = _origin(top) if top is not None else str(repo.url)
    key = str(top) if top is not None else without_credentials(str(repo.url))
    with _cache(key) as cache:
        try:
            head = _fetch_local(cache, top, repo) if top is not None else _fetch_remote(cache, repo, _single(task))
        except GitError as error:
            shown = repo.local_path or without_credentials(str(repo.url))
            raise LambdactlError(
                f"the repository {shown} cannot be had: {error.reason}; check that `git fetch` works here."
            ) from None
        if head is None:
            wanted = repo.hash or repo.branch
            raise where(f"the repository {key} has no branch or commit {wanted}.")
        holder = tempfile.TemporaryDirectory(prefix="lambdactl-repo-")
        changed = top if top is not None and not (repo.branch or repo.hash) else None
        sources, number = _sources(cache, Path(holder.name), head, origin, changed)
        made = tree.build(sources, times=False)
    title = without_credentials(origin or key)
    return Checkout(
        made, _repo_id(title), repo.path, repo.if_exists, title, head.commit, number, holder
    )  # fmt: skip


def _single(task: TaskSpec) -> bool:
    return task.single_branch is not False


def _repo_id(title: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", title.rstrip("/").removesuffix(".git").rpartition("/")[2]) or "repo"
    return f"{name}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def _origin(top: Path) -> str:
    try:
        return git("remote", "get-url", "origin", at=top).strip()
    except GitError:
        return ""


@contextmanager
def _cache(key: str) -> Iterator[Path]:
    """A bare repository of our own for this one, locked against other commands."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lambdactl" / "repos"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = home / hashlib.sha256(key.encode()).hexdigest()[:24]
    lock = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "HEAD").is_file():
            git("init", "--quiet", "--bare", str(folder))
            # Objects stay in the packs that they came in: nodes keep those as blobs.
            for name, value in (("gc.auto", "0"), ("fetch.unpackLimit", "1"), ("maintenance.auto", "false")):
                git("config", name, value, bare=folder)
        yield folder
    finally:
        os.close(lock)


def _commit(name: str, *, at: Path | None = None, bare: Path | None = None) -> str | None:
    try:
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        return git(*words, at=at, bare=bare).strip()
    except GitError:
        return None


def _fetch_local(cache: Path, top: Path, repo: Any) -> _Head | None:
    name = repo.hash or repo.branch or "HEAD"
    commit = _commit(name, at=top)
    if commit is None:
        return _Head("", None) if name == "HEAD" else None  # a repository without commits: the working tree alone
    branch = repo.branch
    if branch is None and repo.hash is None:
        branch = git("rev-parse", "--abbrev-ref", "HEAD", at=top).strip()
        branch = None if branch == "HEAD" else branch
    if _commit(commit, bare=cache) is None:
        options = ["--quiet", "--no-tags", "--update-shallow", "--no-write-fetch-head"]
        git("fetch", *options, "origin", f"+{commit}:refs/lambdactl/{commit}", bare=cache, url=str(top))
    return _Head(commit, branch)


def _fetch_remote(cache: Path, repo: Any, single: bool) -> _Head | None:
    url, options = str(repo.url), ["--quiet", "--no-tags", "--force", "--no-write-fetch-head"]
    branch = repo.branch
    if repo.hash and _HEX.fullmatch(repo.hash) and single and (commit := _commit(repo.hash, bare=cache)):
        return _Head(commit, branch)
    if branch is None and repo.hash is None:
        first = git("ls-remote", "--symref", "origin", "HEAD", bare=cache, url=url).partition("\n")[0]
        match = re.match(r"ref: refs/heads/(\S+)\tHEAD", first)
        branch = match[1] if match else None
    refspec = f"+refs/heads/{branch}:refs/remotes/origin/{branch}" if branch and single else _ALL
    try:
        git("fetch", *options, "origin", refspec, bare=cache, url=url)
    except GitError as error:
        if "couldn't find remote ref" in error.reason:
            return None
        raise
    commit = _commit(repo.hash or f"refs/remotes/origin/{branch}", bare=cache)
    if commit is None and repo.hash and len(repo.hash) >= 40:  # a commit of no branch, such as a pull request's
        git("fetch", *options, "origin", f"+{repo.hash}:refs/lambdactl/{repo.hash}", bare=cache, url=url)
        commit = _commit(repo.hash, bare=cache)
    return None if commit is None else _Head(commit, branch)


def _sources(cache: Path, folder: Path, head: _Head, origin: str, top: Path | None) -> tuple[list[Source], int]:
    """What the tree consists of, and how many files differ from the commit; `folder` is for files made here."""
    files, changed = folder / "files", 0
    files.mkdir()
    index = {"GIT_INDEX_FILE": str(folder / "index")}
    git("read-tree", head.commit or "--empty", bare=cache, env=index)
    if top is None:
        git(f"--work-tree={files}", "checkout-index", "--all", "--force", bare=cache, env=index)
        listed = [Source(path, str(files / path)) for path in _names(git("ls-files", "-z", bare=cache, env=index))]
    else:
        listed = list(_working_tree(top, ""))
        changed = len(_names(git("status", "--porcelain", "-z", "--no-renames", at=top)))
    tracked = [Source(item.path, item.local, _mode(item.local)) for item in listed if os.path.lexists(item.local)]
    return [Source("", str(files), 0o755), *_git_folder(cache, folder, head, origin), *tracked], changed


def _names(text: str) -> list[str]:
    return sorted(name for name in text.split("\0") if name)


def _mode(path: str) -> int:
    """Git's two modes: what else a file system says does not belong to a repository."""
    status = os.lstat(path)
    return 0o755 if status.st_mode & 0o100 or stat.S_ISDIR(status.st_mode) else 0o644


def _working_tree(top: Path, prefix: str) -> Iterator[Source]:
    """Tracked and untracked files as they are now, less what is ignored; those of submodules, too."""
    tracked = set(_names(git("ls-files", "-z", "--cached", at=top)))
    others = set(_names(git("ls-files", "-z", "--others", "--exclude-standard", at=top)))
    if any(name.rpartition("/")[2] == ".dstackignore" for name in tracked | others):
        others &= set(_names(git("ls-files", "-z", "--others", "--exclude-per-directory=.dstackignore", at=top)))
    for name in sorted(tracked | others):
        path = top / name
        if path.is_dir() and not path.is_symlink():
            if (path / ".git").exists():
                yield from _working_tree(path, f"{prefix}{name.rstrip('/')}/")
        else:
            yield Source(prefix + name, str(path))


def _git_folder(cache: Path, folder: Path, head: _Head, origin: str) -> list[Source]:
    """`.git` on the nodes: the objects of our own copy, and a configuration without anything private in it."""
    made = folder / "git"
    for name in ("refs/heads", "objects/pack", "info"):
        (made / name).mkdir(parents=True)
    branch = head.branch or ("main" if not head.commit else None)
    (made / "HEAD").write_text(f"ref: refs/heads/{branch}\n" if branch else f"{head.commit}\n")
    lines = ["[core]", "\trepositoryformatversion = 0", "\tfilemode = true", "\tbare = false"]
    url = without_credentials(origin).replace("\\", "\\\\").replace('"', '\\"')
    if url:
        lines += ['[remote "origin"]', f'\turl = "{url}"', "\tfetch = +refs/heads/*:refs/remotes/origin/*"]
    (made / "config").write_text("\n".join(lines) + "\n")
    refs = {}
    for line in git("for-each-ref", "--format=%(objectname) %(refname)", "refs/remotes", bare=cache).splitlines():
        commit, _, name = line.partition(" ")
        refs[name] = commit
    if branch and head.commit:
        refs[f"refs/heads/{branch}"] = head.commit
    packed = "".join(f"{refs[name]} {name}\n" for name in sorted(refs))
    (made / "packed-refs").write_text("# pack-refs with: peeled fully-peeled sorted \n" + packed)
    if head.commit:
        (folder / "index").replace(made / "index")
    listed = [made, *sorted(made.rglob("*"))]
    sources = [
        Source(f".git/{path.relative_to(made)}".removesuffix("/."), str(path), 0o755 if path.is_dir() else 0o644)
        for path in listed
    ]
    objects = sorted((cache / "objects").rglob("*"))
    kept = [path for path in objects if path.is_file()] + [path for path in (cache / "shallow",) if path.is_file()]
    return sources + [Source(f".git/{path.relative_to(cache)}", str(path), 0o444) for path in kept]
