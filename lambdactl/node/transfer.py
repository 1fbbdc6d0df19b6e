"""Blobs on the wire: `runner.pyz receive` takes them from standard input, `runner.pyz push` sends them to a peer.

On the wire a blob is a line `B <sha256> <size>` and its bytes; the end of input ends the transfer. `receive` answers
each with a line {"stored": sha256}, and ends with {"error": {"code", "message"}} at the first that it cannot store.
`push` reads one line {"to": {"name", "ip", "ssh_user", "ssh_port"}, "blobs": [sha256...]} and passes its peer's answers
on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading

from . import blobs, paths, peer
from .errors import NodeError, as_object
from .launch import find_user
from .spec import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

CHUNK = 1 << 20
MAX_HEADER = 200


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _store(source: BinaryIO, sha256: str, size: int) -> None:
    """Take one blob's bytes; it appears under its name only when they are all there and right."""
    if size > blobs.free_space():
        raise blobs.no_space(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), size)
    temporary = f"{blobs.folder()}/{blobs.TEMPORARY}{os.getpid()}-{sha256[:16]}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        right = _copy(source, size, descriptor) == sha256
        if right:
            os.replace(temporary, blobs.path(sha256))
    except OSError as error:
        raise blobs.no_space(error, size) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.close(descriptor)
    if not right:
        raise NodeError("damaged", f"what came as {sha256} is something else: it was cut, or changed while it was sent")


def _copy(source: BinaryIO, size: int, descriptor: int) -> str | None:
    """The digest of what was copied; None when the input ended too early."""
    seen = hashlib.sha256()
    while size:
        data = source.read(min(CHUNK, size))
        if not data:
            return None
        seen.update(data)
        size -= len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    return seen.hexdigest()


def _header(line: bytes) -> tuple[str, int]:
    words = line.split()
    if len(words) != 3 or words[0] != b"B" or not words[2].isdigit() or not line.endswith(b"\n"):
        raise NodeError("bad-request", "receive: a blob begins with a line 'B <sha256> <size>'")
    return blobs.digest(words[1].decode("ascii", "replace")), int(words[2])


def receive(args: list[str]) -> int:
    """Store blobs from standard input until it ends."""
    if args:
        raise NodeError("bad-request", "usage: runner.pyz receive")
    paths.make_state_dirs()
    blobs.make_folder()
    source = sys.stdin.buffer
    try:
        while header := source.readline(MAX_HEADER):
            sha256, size = _header(header)
            _store(source, sha256, size)
            _say({"stored": sha256})
    except NodeError as error:
        _say({"error": {"code": error.code, "message": error.message}})
        return 1
    return 0


def _command(node: Node) -> list[str]:
    replacement = os.environ.get("LAMBDACTL_PEER_COMMAND") if paths.ROOT else None
    if replacement:  # tests: the agent's command, with another verb
        return peer.replaced(replacement.replace("agent {run}", "receive"), "", node)
    return peer.ssh_command(node, ["receive"])


def _feed(sink: BinaryIO, wanted: list[str]) -> None:
    try:
        for sha256 in wanted:
            with open(blobs.open_blob(sha256), "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                sink.write(f"B {sha256} {size}\n".encode())
                while data := file.read(CHUNK):
                    sink.write(data)
        sink.close()
    except (OSError, NodeError):  # the peer's own words, or its exit code, say why
        with contextlib.suppress(OSError):
            sink.close()


def send(node: Node, wanted: list[str], on_answer: Callable[[str], None] = lambda _: None) -> str | None:
    """Send blobs to a peer by node-to-node SSH; None when all of them are stored there, else why not.

    `on_answer(line)` gets the peer's answers as they come.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    environment.pop("LC_LAMBDACTL_RUN", None)
    if os.geteuid() == 0 and not paths.ROOT:
        environment["HOME"] = find_user("root").home
    pipe = subprocess.PIPE
    process = subprocess.Popen(_command(node), stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 (pipes)
    words: list[bytes] = []
    threads = [
        threading.Thread(target=_feed, args=(process.stdin, wanted), daemon=True),
        threading.Thread(target=lambda errors: words.append(errors.read()), args=(process.stderr,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    stored = 0
    for line in process.stdout:
        if line.startswith(b"{"):  # not a login message
            stored += line.startswith(b'{"stored"')
            on_answer(line.decode("utf-8", "replace"))
    code = process.wait()
    threads[1].join()
    if code != 0 or stored != len(wanted):
        text = " ".join(b"".join(words).decode("utf-8", "replace").split())[-400:]
        return f"{node.name} ({node.ip}): {text or f'exit code {code}'}"
    return None


def push(args: list[str]) -> int:
    """Send blobs to a peer; 0 when all of them are stored there."""
    if args:
        raise NodeError("bad-request", "usage: runner.pyz push")
    request = as_object(json.loads(sys.stdin.readline()))
    wanted = [blobs.digest(item) for item in request.get("blobs") or []]

    def say(line: str) -> None:
        sys.stdout.write(line)
        sys.stdout.flush()

    problem = send(Node(request.get("to"), 0), wanted, say)
    if problem is not None:
        _say({"error": {"code": "peer", "message": problem}})
    return 0 if problem is None else 1
