"""What all commands print with: results on stdout, progress and questions on stderr, plain text without a terminal."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lambdactl.cli import ReaderGone
from lambdactl.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def out() -> Console:
    """The console of results."""
    return _console(soft_wrap=False)


def err() -> Console:
    """The console of progress, notes and questions."""
    return _console(stderr=True)


def _console(**options: Any) -> Console:
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            raise ReaderGone

    return Ours(highlight=False, **options)


def note(text: str) -> None:
    """One line for people, on stderr, never interpreted as markup or escapes."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: object) -> str:
    """Text from nodes and files with its control characters made visible."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in str(text))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, sort_keys=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A borderless table, as the tools around it print them; cells are plain text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(
        box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, show_edge=False, header_style="bold"
    )
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    return result


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, to: Console | None = None) -> None:
    """Print a table; without a terminal every line is whole, however long (for grep and awk)."""
    console = to or out()
    if not console.is_terminal:
        console.width = 10_000
    console.print(table(columns, rows))


STATE_STYLES = {
    "done": "green", "running": "cyan", "starting": "cyan", "pulling": "cyan", "scheduled": "cyan",
    "queued": "yellow", "resting": "yellow",
    "reserved": "yellow", "stopping": "yellow", "failed": "bold red", "stopped": "yellow", "unknown": "magenta",
    "ready": "green", "busy": "cyan", "new": "yellow", "outdated": "yellow", "unreachable": "bold red",
}  # fmt: skip


def state_text(state: str) -> Any:
    """A state in its colour."""
    from rich.text import Text

    return Text(state, style=STATE_STYLES.get(state.split(" ")[-1 if state[:1].isdigit() else 0], ""))


def confirm(question: str, *, yes: bool) -> bool:
    """Ask, unless told not to.

    Raises:
        SpecError: nobody is there to be asked.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise SpecError(f"{question} Nobody can answer here; pass -y to go on without a question.")
    with _interruptible():
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends a question. asyncio would note the first one and leave it to an `await`, which no question has."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def counted(number: int, noun: str) -> str:
    """1 host, 2 hosts."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(amount: float | None) -> str:
    """Bytes as people read them, in powers of 1024."""
    if amount is None:
        return "-"
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f}{unit}"
        amount /= 1024
    return f"{amount:.1f}TB"


def ago(moment: float | None, now: float | None = None) -> str:
    """How long ago a moment was."""
    if not moment:
        return "-"
    seconds = max(0, int((now or time.time()) - moment))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit} ago"
    return f"{seconds}s ago"


def duration(seconds: float | None) -> str:
    """A length of time, such as 1h02m."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{seconds:.1f}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
