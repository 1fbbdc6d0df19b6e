"""The fleet's known_hosts file: looked up, appended to, and shared with OpenSSH, which uses it at the same time.

Lookup follows OpenSSH (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"): plain and hashed names, wildcards, negation,
@cert-authority and @revoked; ``[host]:port`` for ports other than 22. A host with any key on file accepts no other key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hmac
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

DEFAULT_PORT = 22


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of one line: ``blob`` is the base64 text as it stands in the file."""

    line: int
    marker: str  # "", "@cert-authority" or "@revoked"
    key_type: str
    blob: str

    @property
    def text(self) -> str:
        """The key as OpenSSH writes a public key."""
        return f"{self.key_type} {self.blob}"


class HostKeyChanged(Exception):
    """A host shows another key than the one on file; ``line`` is where that one stands."""

    def __init__(self, name: str, path: Path, line: int, *, revoked: bool = False) -> None:
        self.name = name
        self.path = path
        self.line = line
        self.revoked = revoked
        super().__init__(f"host key of {name} differs from {path}:{line}")


def host_name(host: str, port: int) -> str:
    """The name a host has in known_hosts."""
    return host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"


@dataclass
class _Index:
    exact: dict[str, list[Entry]] = field(default_factory=dict)
    hashed: list[tuple[bytes, bytes, Entry]] = field(default_factory=list)
    patterns: list[tuple[list[str], Entry]] = field(default_factory=list)
    lines: int = 0

    def load(self, text: str) -> None:
        for line in text.splitlines():
            self.lines += 1
            fields = line.split()
            marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
            if len(fields) >= 3 and not fields[0].startswith("#"):
                self._add(fields[0], Entry(self.lines, marker, fields[1], fields[2]))

    def _add(self, names: str, entry: Entry) -> None:
        if names.startswith("|1|"):
            with contextlib.suppress(ValueError, binascii.Error):
                salt, digest = (base64.b64decode(part) for part in names[3:].split("|"))
                self.hashed.append((salt, digest, entry))
        elif any(character in names for character in "*?!"):
            self.patterns.append((names.lower().split(","), entry))
        else:
            for name in names.lower().split(","):
                self.exact.setdefault(name, []).append(entry)

    def find(self, name: str) -> list[Entry]:
        found = list(self.exact.get(name, ()))
        encoded = name.encode()
        found += (entry for salt, digest, entry in self.hashed if hmac.digest(salt, encoded, "sha1") == digest)
        found += (entry for patterns, entry in self.patterns if _matches(patterns, name))
        return found


def _matches(patterns: list[str], name: str) -> bool:
    positive = False
    for pattern in patterns:
        # Brackets stand for themselves in known_hosts, and for a set in fnmatch.
        if fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            positive = True
    return positive


class KnownHosts:
    """One known_hosts file. Reads what others append while it is in use; never rewrites what is there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._index = _Index()
        self._seen: tuple[int, int] = (0, 0)  # inode, bytes read

    def entries(self, host: str, port: int) -> list[Entry]:
        """Entries that apply to a host; a key filed without the port counts only where none is filed with it."""
        self._refresh()
        found = self._index.find(host_name(host, port))
        if port != DEFAULT_PORT and not any(entry.marker == "" for entry in found):
            found += self._index.find(host_name(host, DEFAULT_PORT))
        return found

    def check(self, host: str, port: int, key: str) -> bool:
        """Whether this key ("type base64") is known. Raises HostKeyChanged for another or a revoked key."""
        self._refresh()
        name = host_name(host, port)
        found = self._index.find(name)
        blob = key.split()[1]
        plain = self._index.find(host_name(host, DEFAULT_PORT)) if port != DEFAULT_PORT else []
        for entry in (*found, *plain):
            if entry.marker == "@revoked" and entry.blob == blob:
                raise HostKeyChanged(name, self.path, entry.line, revoked=True)
        own = [entry for entry in found if not entry.marker]
        if any(entry.blob == blob for entry in own):
            return True
        if own:
            raise HostKeyChanged(name, self.path, own[0].line)
        return any(entry.blob == blob and not entry.marker for entry in plain)

    def accept(self, host: str, port: int, key: str) -> None:
        """File a new host's key. Raises HostKeyChanged when another process filed another key meanwhile."""
        with self._locked() as file:
            if self.check(host, port, key):
                return
            line = f"{host_name(host, port)} {' '.join(key.split()[:2])}\n"
            end = os.fstat(file).st_size
            if end and os.pread(file, 1, end - 1) != b"\n":
                line = "\n" + line
            os.write(file, line.encode())  # O_APPEND: one write, never mixed with OpenSSH's own

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _refresh(self) -> None:
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._index, self._seen = _Index(), (0, 0)
            return
        try:
            status = os.fstat(file)
            inode, offset = self._seen
            if inode != status.st_ino or offset > status.st_size:  # ssh-keygen -R puts a new file in its place
                self._index, offset = _Index(), 0
            if offset < status.st_size:
                data = os.pread(file, status.st_size - offset, offset)
                complete = data.rfind(b"\n") + 1 if offset or data.endswith(b"\n") else len(data)
                self._index.load(data[:complete].decode(errors="replace"))
                offset += complete
            self._seen = (status.st_ino, offset)
        finally:
            os.close(file)
