"""What `docker info` prints, asked for at Docker's socket: starting the command costs more than the rest of a look."""

from __future__ import annotations

import time

from . import programs
from .sockets import socket

MAX_ANSWER = 1 << 22  # bytes


class DockerInfo:
    """An answer that is on its way; where the socket gives none, the command is asked, which says why."""

    def __init__(self, address: str, argv: list[str]) -> None:
        self._argv = argv
        self._until = time.monotonic() + programs.time_limit()
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(programs.time_limit())
            self._socket.connect(address)
            self._socket.sendall(b"GET /info HTTP/1.0\r\nHost: docker\r\n\r\n")
        except OSError:
            self._socket.close()
            self._socket = None

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
        if head.split(b" ", 2)[1:2] == [b"200"] and body.rstrip().endswith(b"}"):
            return 0, body.decode("utf-8", "replace")
        return programs.Program(self._argv).result(problems)
