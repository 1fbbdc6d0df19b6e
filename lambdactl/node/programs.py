"""Running other programs for their output: all at once, each under a time limit, none able to hang the caller.

What starts programs is imported when the first one is started: most starts of the runner start none.
"""

from __future__ import annotations

import os
import time

from . import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import IO, Any

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT = 20.0


def find(name: str, *directories: str) -> str | None:
    """The path of a program: PATH, the usual folders, then the given ones."""
    for folder in (*os.environ.get("PATH", "").split(":"), *SEARCH.split(":"), *directories):
        path = f"{folder}/{name}"
        if folder and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


def time_limit() -> float:
    """Seconds that a program may take to answer."""
    return float(os.environ.get("LAMBDACTL_PROBE_TIMEOUT", TIMEOUT)) if paths.ROOT else TIMEOUT


class Program:
    """A started program. Its output goes to a file, so that a full pipe never stops it."""

    def __init__(self, argv: list[str], limit: float | None = None) -> None:
        import subprocess
        import tempfile

        self.name = os.path.basename(argv[0])
        self._limit = time_limit() if limit is None else limit
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the program)
        self._until = time.monotonic() + self._limit
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            self._output.write((error.strerror or str(error)).encode())

    def result(self, problems: list[str]) -> tuple[int | None, str]:
        """(exit code, output); the code is None, with a problem named, when the program did not answer in time."""
        import subprocess

        code: int | None = 127
        if self._process is not None:
            try:
                code = self._process.wait(max(0.0, self._until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()  # one in an uninterruptible wait stays; nobody waits for it
                problems.append(f"{self.name} did not answer within {self._limit:g} s")
                code = None
        self._output.seek(0)
        return code, self._output.read(1 << 20).decode("utf-8", "replace")


def is_binary(path: str) -> bool:
    """Whether a program is compiled; a script may say something else when what it calls has changed."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def _state_of(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]


class Remembered(Program):
    """A program whose answer depends on nothing but its files: while these are as they were, it is started once."""

    def __init__(self, argv: list[str], *files: str) -> None:
        path = os.path.realpath(argv[0])
        self._key: list[Any] = [argv, [[file, _state_of(file)] for file in (path, *files)]]
        self._place = f"{paths.STATE}/{os.path.basename(argv[0])}.answer.json"
        known = paths.read_json(self._place) if is_binary(path) else None
        known = known if isinstance(known, dict) and known.get("key") == self._key else {}
        self._known: str | None = known.get("answer")
        if self._known is None:
            super().__init__(argv)

    def result(self, problems: list[str]) -> tuple[int | None, str]:
        """See Program."""
        if self._known is not None:
            return 0, self._known
        code, text = super().result(problems)
        if code == 0 and is_binary(self._key[0][0]) and os.access(paths.STATE, os.W_OK):
            paths.write_json(self._place, {"key": self._key, "answer": text})
        return code, text
