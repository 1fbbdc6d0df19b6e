"""A run's files and repository in its container: from the node's content store by the engine's own `cp`.

They go in when the container is made and before it is started, so also for an entrypoint, without any program in the
image, and before the startup gate. An archive on standard input keeps its owners (Docker), or gets the container's user
(Podman); both are that user here. Where volumes are mounted, `cp` follows them.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
import subprocess
import tarfile
import time

from . import blobs, container_argv, container_dirs, contents
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, BinaryIO

    from .container import Container
    from .container_engine import Engine
    from .spec import Job

IGNORED = "lost+found"  # the root of a fresh file system has it, and counts as empty


class Owner:
    """The container's user by number, with the home that `~` means."""

    def __init__(self, uid: int, gid: int, home: str) -> None:
        self.uid, self.gid, self.home = uid, gid, home


def find_owner(user: str, passwd: str, group: str, home: str | None) -> Owner:
    """Who `user` ("name|uid[:group|gid]", "" is root) is by the image's own files; `home` stands above them.

    Raises NodeError (start-failed) for a name that the image does not know.
    """
    name, _, group_name = user.partition(":")
    name = name or "0"
    entry = _line(passwd, name, 7)
    if entry is None and not name.isdigit():
        raise NodeError("start-failed", f"the image has no user {name}, to whom the run's files would belong")
    uid = int(entry[2]) if entry else int(name)
    gid = int(entry[3]) if entry else 0
    if group_name:
        found = _line(group, group_name, 4)
        if found is None and not group_name.isdigit():
            raise NodeError(
                "start-failed", f"the image has no group {group_name}, to which the run's files would belong"
            )
        gid = int(found[2]) if found else int(group_name)
    return Owner(uid, gid, home or (entry[5] if entry else "") or ("/root" if uid == 0 else "/"))


def _line(text: str, key: str, fields: int) -> list[str] | None:
    """The entry of a passwd or group file by its name or number."""
    for line in text.splitlines():
        parts = line.split(":")
        numbers = parts[2:4] if fields == 7 else parts[2:3]
        if len(parts) >= fields and key in (parts[0], parts[2]) and all(part.isdigit() for part in numbers):
            return parts
    return None


class _Parts:
    """A file's bytes, from the blobs that it is cut from."""

    def __init__(self, parts: list[list[Any]]) -> None:
        self._parts = [(str(sha256), int(offset), int(length)) for sha256, offset, length in parts]
        self.size = sum(length for _, _, length in self._parts)
        self._file: BinaryIO | None = None
        self._left = 0

    def read(self, size: int = -1, /) -> bytes:
        """`size` bytes, or all; fewer only at the end. Raises NodeError (start-failed) when the store has too few."""
        found = b""
        while (size < 0 or len(found) < size) and (data := self._some(size - len(found) if size >= 0 else 1 << 20)):
            found += data
        return found

    def _some(self, size: int) -> bytes:
        while not self._left:
            self.close()
            if not self._parts:
                return b""
            sha256, offset, self._left = self._parts.pop(0)
            self._file = open(blobs.open_blob(sha256), "rb")  # noqa: SIM115 (closed by close)
            self._file.seek(offset)
        assert self._file is not None  # noqa: S101 (opened above)
        data = self._file.read(min(self._left, size))
        if not data:
            raise NodeError("start-failed", "a blob in this node's store is too short; submit the run again")
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Close what is open of it."""
        if self._file is not None:
            self._file.close()


class ContainerFiles:
    """The files of a container that is made and not started."""

    def __init__(self, engine: Engine, name: str, env: dict[str, str]) -> None:
        self._engine, self._name, self._env = engine, name, env

    def names(self, path: str, most: int = 1) -> list[str] | None:
        """What the engine says is at a path: its own name, then names in it, `most` together; None: nothing there."""
        with self._archive(path) as archive:
            found: list[str] = []
            while archive is not None and len(found) < most and (member := archive.next()) is not None:
                found.append(member.name)
            return found or None

    def text(self, path: str) -> str:
        """A file's text; empty when there is none."""
        with self._archive(path) as archive:
            member = None if archive is None else archive.next()
            if archive is None or member is None or not member.isreg():
                return ""
            file = archive.extractfile(member)
            return "" if file is None else file.read(1 << 20).decode("utf-8", "replace")

    @contextlib.contextmanager
    def _archive(self, path: str) -> Iterator[tarfile.TarFile | None]:
        argv = container_argv.copy_out(self._engine, self._name, path)
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(argv, env=self._env, stdin=null, stdout=pipe, stderr=null)
        assert process.stdout is not None  # noqa: S101 (a pipe, see above)
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
        except tarfile.ReadError:  # nothing came: there is no such path
            yield None
        finally:
            process.kill()
            process.stdout.close()
            process.wait()

    @contextlib.contextmanager
    def writing(self, folder: str) -> Iterator[tarfile.TarFile]:
        """An archive whose members land below a folder that is there. Raises NodeError (start-failed)."""
        argv = container_argv.copy_in(self._engine, self._name, folder)
        process = subprocess.Popen(
            argv, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stdin is not None and process.stderr is not None  # noqa: S101, PT018 (pipes, see above)
        try:
            with contextlib.suppress(BrokenPipeError):  # its last words say why
                with tarfile.open(fileobj=process.stdin, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                    yield archive
                process.stdin.close()
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            words = process.stderr.read().decode("utf-8", "replace").split()
            code = process.wait()
        if code != 0:
            text = " ".join(words).replace("Error response from daemon: ", "")[-300:] or f"exit code {code}"
            raise NodeError("start-failed", f"the run's files cannot be put into the container: {text}")


class _Placing:
    """One tree after the other into the container."""

    def __init__(self, files: ContainerFiles, owner: Owner) -> None:
        self._files, self._owner = files, owner
        self._there = {"/"}

    def _exists(self, path: str) -> bool:
        if path not in self._there and self._files.names(path) is not None:
            self._there.add(path)
        return path in self._there

    def place(self, manifest: str, target: str, first: Sequence[tuple[str, dict[str, Any]]] = ()) -> None:
        """A tree to its place; `first` are entries that come before the manifest's, each with its path."""
        entries = contents.read_manifest(manifest)
        is_file = len(entries) == 1 and not entries[0]["path"] and not entries[0].get("dir")
        folder = posixpath.dirname(target) if is_file else target
        missing: list[str] = []
        while not self._exists(folder):
            missing.insert(0, folder)
            folder = posixpath.dirname(folder)
        with self._files.writing(folder) as archive:
            for path in missing:
                archive.addfile(self._info(_below(folder, path), tarfile.DIRTYPE, 0o755))
            begun = {""}  # folders of the tree that nobody has named: a repository's
            for path, entry in [*first, *((contents.inside(entry), entry) for entry in entries)]:
                self._parents(archive, folder, target, path, begun)
                self._add(archive, _below(folder, f"{target}/{path}"), entry)
                begun.add(path)
        self._there.update(missing)

    def _parents(self, archive: tarfile.TarFile, folder: str, target: str, path: str, begun: set[str]) -> None:
        parts = path.split("/")[:-1]
        for parent in ("/".join(parts[: number + 1]) for number in range(len(parts))):
            if parent not in begun:
                begun.add(parent)
                archive.addfile(self._info(_below(folder, f"{target}/{parent}"), tarfile.DIRTYPE, 0o755))

    def _add(self, archive: tarfile.TarFile, name: str, entry: dict[str, Any]) -> None:
        mode = entry.get("mode")
        if "text" in entry:
            info = self._info(name, tarfile.REGTYPE, 0o644)
            info.size = len(entry["text"])
            archive.addfile(info, io.BytesIO(entry["text"]))
        elif entry.get("dir"):
            if entry["path"]:
                archive.addfile(self._info(name, tarfile.DIRTYPE, 0o755 if mode is None else int(mode) & 0o777))
        elif "link" in entry:
            info = self._info(name, tarfile.SYMTYPE, 0o777)
            info.linkname = str(entry["link"])
            archive.addfile(info)
        else:
            parts = _Parts(entry["parts"])
            info = self._info(name, tarfile.REGTYPE, int(entry.get("mode", 0o644)) & 0o777)
            info.size, info.mtime = parts.size, int(entry.get("mtime", info.mtime))
            with contextlib.closing(parts):
                archive.addfile(info, parts)

    def _info(self, name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.mode = kind, mode
        info.uid, info.gid, info.mtime = self._owner.uid, self._owner.gid, int(time.time())
        return info


def _below(folder: str, path: str) -> str:
    return posixpath.relpath(path, folder)


def place(job: Job, container: Container, image: dict[str, Any], files: ContainerFiles) -> None:
    """Put the repository, then the files, where they belong in the container. Raises NodeError (start-failed)."""
    if not (job.files or job.repo):
        return
    config = image.get("Config") or {}
    image_dir = str(config.get("WorkingDir") or "")
    user = container.user or str(config.get("User") or "")
    own = dict(str(item).partition("=")[::2] for item in config.get("Env") or ())
    home = job.env.get("HOME") or own.get("HOME")
    owner = find_owner(user, files.text("/etc/passwd"), files.text("/etc/group") if ":" in user else "", home)
    placing = _Placing(files, owner)
    directory = container_dirs.repo_dir(job, container, image_dir)
    if job.repo is not None and directory is not None:
        directory = container_dirs.expand(directory, owner.home)
        if _wanted(files, directory, job):
            placing.place(job.repo.manifest, directory, [(contents.COMPLETE, {"text": job.run_id.encode() + b"\n"})])
    base = container_dirs.working_dir(job, container, image_dir)
    for item in job.files:
        placing.place(item.manifest, container_dirs.expand(container_dirs.join(base, item.path), owner.home))


def _wanted(files: ContainerFiles, directory: str, job: Job) -> bool:
    """Whether the repository is to be checked out: its place is empty, or another rank of this run has begun there."""
    names = files.names(directory, 3) or []
    if all(posixpath.basename(name.rstrip("/")) == IGNORED for name in names[1:]):
        return True
    if files.text(f"{directory}/{contents.COMPLETE}").strip() == job.run_id:
        return True
    if job.repo is not None and job.repo.if_exists == "skip":
        return False
    raise NodeError("start-failed", contents.not_empty(directory))
