"""What `docker info` prints, asked for at Docker's socket: starting the command costs more than the rest of a look.

Docker itself starts three programs for that answer. So it is remembered for as long as the same daemon runs, with the
same configuration; a ping, which costs Docker next to nothing, then says that it still answers.
"""

from __future__ import annotations

import os
import time

from . import light, paths, programs
from .sockets import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_ANSWER = 1 << 22  # bytes
PLACE = paths.STATE + "/docker-info.answer.json"
PID_FILE = "/run/docker.pid"  # dockerd writes it at every start
CONFIGURATION = "/etc/docker/daemon.json"  # some of it is read again without a new start


class DockerInfo:
    """An answer that is on its way; where the socket gives none, the command is asked, which says why."""

    def __init__(self, address: str, argv: list[str]) -> None:
        self._argv = argv
        self._until = time.monotonic() + programs.time_limit()
        self._key = [address, *map(programs.state_of, (PID_FILE, CONFIGURATION))]
        self._known = self._remembered()
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        what = b"/info" if self._known is None else b"/_ping"
        try:
            self._socket.settimeout(programs.time_limit())
            self._socket.connect(address)
            self._socket.sendall(b"GET " + what + b" HTTP/1.0\r\nHost: docker\r\n\r\n")
        except OSError:
            self._socket.close()
            self._socket = None

    def _remembered(self) -> str | None:
        """The answer of the daemon that runs now, if it is known which one that is."""
        known: Any = paths.read_json(PLACE) if self._key[1] else None
        return str(known["answer"]) if isinstance(known, dict) and known.get("key") == self._key else None

    def _remember(self, answer: str) -> None:
        try:
            whole = self._key[1] and not light.loads(answer).get("ServerErrors")
        except (ValueError, AttributeError):
            return
        same = self._key[1:] == [*map(programs.state_of, (PID_FILE, CONFIGURATION))]
        if whole and same and os.access(paths.STATE, os.W_OK):
            paths.write_json(PLACE, {"key": self._key, "answer": answer})

    def _read(self) -> bytes:
        answer = b""
        if self._socket is not None:
            try:
                while len(answer) < MAX_ANSWER:
                    self._socket.settimeout(max(0.01, self._until - time.monotonic()))
                    data = self._socket.recv(1 << 16)
                    if not data:
                        break
                    answer += data
            finally:
                self._socket.close()
        return answer

    def result(self, problems: list[str]) -> tuple[int | None, str]:
        """(exit code, output) as the command gives them; see programs.Program."""
        try:
            head, _, body = self._read().partition(b"\r\n\r\n")
        except socket.timeout:
            problems.append(f"docker did not answer within {programs.time_limit():g} s")
            return None, ""
        except OSError:
            head = body = b""
        if head.split(b" ", 2)[1:2] == [b"200"]:
            if self._known is not None:
                return 0, self._known
            if body.rstrip().endswith(b"}"):
                answer = body.decode("utf-8", "replace")
                self._remember(answer)
                return 0, answer
        return programs.Program(self._argv).result(problems)
