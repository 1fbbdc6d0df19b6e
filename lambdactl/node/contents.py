"""A run's files and repository: from the node's content store into their places, as the run's user.

A tree's manifest is a blob: {"entries": [{"path", "mode", "mtime"?, and one of: "parts": [[sha256, offset, length]...],
"link": target, "dir": true}]}; paths are relative to the place, "" is the place itself. Blobs are read as root and
written with the user's own rights, so that no link in anybody's folder leads a file to where the user may not write.
"""

from __future__ import annotations

import os
import time

from . import blobs, paths, places
from .errors import NodeError
from .launch import find_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from .launch import User
    from .spec import Job

PARTIAL, COMPLETE = ".git/lambdactl-partial", ".git/lambdactl-run"
SETTLE = 3.0  # seconds that another rank of the run gets to mark the folder that both see (a shared file system)
SAY_INTERVAL = 1.0


class Upload:
    """One tree that belongs to the run: what (a manifest), and where (`path`, which the node resolves)."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, dict) or not isinstance(raw.get("path"), str) or "\0" in raw["path"]:
            raise NodeError("bad-request", f"job: {where} is no object with manifest and path")
        self.manifest = blobs.digest(raw.get("manifest"))
        self.path: str = raw["path"]
        self.if_exists = str(raw.get("if_exists") or "error")


def parse_files(raw: Any) -> list[Upload]:
    """JobSpec's `files`: [{"manifest", "path"}]."""
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise NodeError("bad-request", "job: files is a list of {manifest, path}")
    return [Upload(item, f"files[{index}]") for index, item in enumerate(raw)]


def parse_repo(raw: Any) -> Upload | None:
    """JobSpec's `repo`: {"manifest", "path", "if_exists"} or null."""
    return None if raw is None else Upload(raw, "repo")


def manifests(job: Job) -> list[str]:
    """The manifests that a job's trees are made from."""
    return [item.manifest for item in [*job.files, *([job.repo] if job.repo else [])]]


def read_manifest(sha256: str) -> list[dict[str, Any]]:
    """A tree's entries. Raises NodeError (start-failed) when the store has no such manifest."""
    value = paths.read_json(blobs.path(sha256))
    if not isinstance(value, dict) or not isinstance(value.get("entries"), list):
        raise NodeError("start-failed", "the run's files are not in this node's store any more; submit the run again")
    return list(value["entries"])


def place(job: Job, say: Callable[[str], None]) -> None:
    """Put the repository, then the files, where they belong. Raises NodeError and OSError."""
    user = find_user(job.user)
    repo, directory = job.repo, places.repo_dir(job, user)
    if repo is not None and directory is not None:
        _own_folder(places.run_folder(job), user)
        with _RightsOf(user):
            wanted = _claim(directory, repo.if_exists, job.run_id)
        if wanted:
            _Tree(repo.manifest, directory, user, job, say).place()
            with _RightsOf(user):
                _complete(directory)
    base = places.working_dir(job, user)
    for item in job.files:
        _Tree(item.manifest, places.expand(item.path, base, user), user, job, say).place()


def _own_folder(path: str, user: User) -> None:
    os.makedirs(path, mode=0o755, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)


class _RightsOf:
    """Act as the user inside; the process stays root's (nothing of the user's runs in it)."""

    def __init__(self, user: User) -> None:
        self._user = user if os.geteuid() == 0 and user.uid != 0 else None

    def __enter__(self) -> None:
        if self._user is not None:
            os.setgroups(self._user.groups)
            os.setegid(self._user.gid)
            os.seteuid(self._user.uid)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._user is not None:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([])


def _claim(directory: str, if_exists: str, run: str) -> bool:
    """Whether the repository is to be checked out here; marks the folder as this run's, unfinished."""
    until = time.monotonic() + SETTLE
    while True:
        present = os.listdir(directory) if os.path.lexists(directory) else []
        partial = os.path.exists(f"{directory}/{PARTIAL}")
        mine = paths.read_text(f"{directory}/{COMPLETE}").strip() == run
        if not present or partial or mine or present != [".git"] or time.monotonic() > until:
            break
        time.sleep(0.05)
    if mine:
        return False
    if present and not partial:
        if if_exists == "skip":
            return False
        raise NodeError("start-failed", not_empty(directory))
    os.makedirs(f"{directory}/.git", exist_ok=True)
    paths.write_atomic(f"{directory}/{PARTIAL}", run.encode() + b"\n", 0o644)
    return True


def not_empty(directory: str) -> str:
    """Why a repository is not checked out, with the remedy."""
    return (
        f"the repository cannot be checked out: {directory} exists and is not empty; remove it, choose another "
        "'path', or write if_exists: skip"
    )


def inside(entry: dict[str, Any]) -> str:
    """An entry's path below its tree's place. Raises NodeError (start-failed) for one that leads outside."""
    relative = str(entry["path"])
    if relative.startswith("/") or ".." in relative.split("/") or "\0" in relative:
        raise NodeError("start-failed", f"the manifest has the path {relative[:80]!r}, which leads outside")
    return relative


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # what is in the way is told by whoever writes there
        return


def _complete(directory: str) -> None:
    try:
        os.replace(f"{directory}/{PARTIAL}", f"{directory}/{COMPLETE}")
    except FileNotFoundError:  # another rank on a shared file system was first
        return


class _Tree:
    """One manifest on its way to its place."""

    def __init__(self, manifest: str, target: str, user: User, job: Job, say: Callable[[str], None]) -> None:
        self._entries = read_manifest(manifest)
        self._target = target
        self._user = user
        self._suffix = f".{job.run_id[:8]}.{job.rank}.tmp"
        self._say = say
        self._said = time.monotonic()
        self._blob: tuple[str, int] = ("", -1)

    def place(self) -> None:
        try:
            for number, entry in enumerate(self._entries):
                path = self._path(entry)
                if "parts" in entry:
                    self._file(path, entry)
                else:
                    with _RightsOf(self._user):
                        self._other(path, entry)
                if time.monotonic() - self._said > SAY_INTERVAL:
                    self._said = time.monotonic()
                    self._say(f"placing {number + 1} of {len(self._entries)} files in {self._target}")
            with _RightsOf(self._user):
                self._folder_modes()
        except OSError as error:
            raise NodeError("start-failed", f"{error.filename or self._target}: {error.strerror}") from None
        finally:
            if self._blob[1] >= 0:
                os.close(self._blob[1])

    def _path(self, entry: dict[str, Any]) -> str:
        relative = inside(entry)
        return f"{self._target}/{relative}" if relative else self._target

    def _other(self, path: str, entry: dict[str, Any]) -> None:
        if entry.get("dir"):
            os.makedirs(path, exist_ok=True)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = path + self._suffix
        _remove(temporary)
        os.symlink(str(entry["link"]), temporary)
        os.replace(temporary, path)

    def _file(self, path: str, entry: dict[str, Any]) -> None:
        temporary = path + self._suffix
        with _RightsOf(self._user):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if os.path.isdir(path) and not os.path.islink(path):
                raise NodeError("start-failed", f"{path} is a folder on this node, and the upload is a file")
            output = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for sha256, offset, length in entry["parts"]:
                self._copy(str(sha256), int(offset), int(length), output)
            os.fchmod(output, int(entry.get("mode", 0o644)) & 0o777)
            if "mtime" in entry:
                os.utime(output, (int(entry["mtime"]),) * 2)
            with _RightsOf(self._user):
                os.replace(temporary, path)
        except BaseException:
            with _RightsOf(self._user):
                _remove(temporary)
            raise
        finally:
            os.close(output)

    def _copy(self, sha256: str, offset: int, length: int, output: int) -> None:
        if self._blob[0] != sha256:
            if self._blob[1] >= 0:
                os.close(self._blob[1])
            self._blob = ("", -1)
            self._blob = (sha256, blobs.open_blob(sha256))
        while length:
            sent = os.sendfile(output, self._blob[1], offset, length)
            if sent == 0:
                raise NodeError("start-failed", f"the blob {sha256} in this node's store is too short")
            offset, length = offset + sent, length - sent

    def _folder_modes(self) -> None:
        """Last and from the inside out, because a folder may be read-only."""
        for entry in reversed(self._entries):
            if entry.get("dir") and entry.get("mode") is not None and entry["path"]:
                os.chmod(self._path(entry), int(entry["mode"]) & 0o777)
