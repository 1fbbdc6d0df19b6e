"""What all commands print with: results on stdout, progress and questions on stderr, plain text without a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lambdactl.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def out() -> Console:
    """The console of results."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def err() -> Console:
    """The console of progress, notes and questions."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


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
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


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
