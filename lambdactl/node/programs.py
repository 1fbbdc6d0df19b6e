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
MAX_WRAPPER, MAX_WRAPPERS = 4096, 3  # bytes that a wrapper is read of; wrappers around wrappers


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


def behind(path: str) -> list[str]:
    """The files that decide what a program says: its own, and what a wrapper that does nothing but `exec` executes.

    Empty where that is not known, because the program is a script that may do anything.
    """
    files = [os.path.realpath(path)]
    while not is_binary(files[-1]):
        target = _executed_by(files[-1])
        if target is None or len(files) > MAX_WRAPPERS:
            return []
        files.append(os.path.realpath(target))
    return files


def _executed_by(path: str) -> str | None:
    """The program of a shell script whose only command is `exec /its/path "$@"`."""
    lines = [line.strip() for line in paths.read_text(path)[:MAX_WRAPPER].splitlines() if line.strip()]
    commands = [line for line in lines[1:] if not line.startswith("#")]
    words = commands[0].split() if len(commands) == 1 and lines[0].startswith("#!") else []
    plain = len(words) == 3 and words[1].startswith("/") and not set(words[1]) & set("$`\\\"';&|<>()*?")
    return words[1] if plain and words[0] == "exec" and words[2] == '"$@"' else None


def state_of(path: str) -> list[int]:
    """What changes with a file, also where its time is put back; empty when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class Remembered(Program):
    """A program whose answer depends on nothing but its files: while these are as they were, it is started once."""

    def __init__(self, argv: list[str], *files: str) -> None:
        own = behind(argv[0])
        self._lasts = bool(own)
        self._key: list[Any] = [argv, [[file, state_of(file)] for file in (*own, *files)]]
        self._place = f"{paths.STATE}/{os.path.basename(argv[0])}.answer.json"
        known = paths.read_json(self._place) if self._lasts else None
        known = known if isinstance(known, dict) and known.get("key") == self._key else {}
        self._known: str | None = known.get("answer")
        if self._known is None:
            super().__init__(argv)

    def result(self, problems: list[str]) -> tuple[int | None, str]:
        """See Program."""
        if self._known is not None:
            return 0, self._known
        code, text = super().result(problems)
        if code == 0 and self._lasts and os.access(paths.STATE, os.W_OK):
            paths.write_json(self._place, {"key": self._key, "answer": text})
        return code, text
