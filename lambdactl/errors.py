"""Errors that reach a user: one sentence each, with what is wrong, where, and what to do.

Exception tree::

    LambdactlError            exit 1
    ├── SpecError             exit 2   a file or an option is wrong (file, line, nearest valid key)
    ├── CapacityError         exit 3   the fleet has not what a run asks for, or it is in use
    ├── ConnectionFailed      exit 4   the jump host or hosts cannot be reached or trusted
    ├── RunLost               exit 5   a node, or the gang's coordinator, was lost during a run
    └── Interrupted           exit 130 Ctrl-C, or a run that was stopped

The exit codes are part of the command line's contract (see docs/exit-codes.md).
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CAPACITY = 3
EXIT_UNREACHABLE = 4
EXIT_LOST = 5
EXIT_MAX_DURATION = 124
EXIT_INTERRUPTED = 130


class LambdactlError(Exception):
    """Base of every error shown to a user; ``str(error)`` is one complete sentence."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(message if remedy is None else f"{message} {remedy}")


class SpecError(LambdactlError):
    """A YAML file or an option is not valid.

    Attributes:
        filename: the file's name as the user gave it, or None.
        line: 1-based line in that file, or None.
    """

    exit_code = EXIT_USAGE

    def __init__(self, message: str, *, filename: str | None = None, line: int | None = None) -> None:
        self.filename = filename
        self.line = line
        where = "" if filename is None else f"{filename}: " if line is None else f"{filename}:{line}: "
        super().__init__(f"{where}{message}")


class CapacityError(LambdactlError):
    """The fleet lacks nodes, GPUs or other resources that a run asks for, or they are in use."""

    exit_code = EXIT_CAPACITY


class ConnectionFailed(LambdactlError):
    """A jump host or a node cannot be reached, refuses the login, or shows a changed host key."""

    exit_code = EXIT_UNREACHABLE


class RunLost(LambdactlError):
    """A run ended because a node or its coordinator was lost."""

    exit_code = EXIT_LOST


class Interrupted(LambdactlError):
    """The user interrupted, or the run was stopped on request."""

    exit_code = EXIT_INTERRUPTED
