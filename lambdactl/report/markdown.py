"""The report as Markdown, for tickets and pull requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lambdactl.report import facts
from lambdactl.validate.record import Validation


def page(found: Validation) -> str:
    """The whole file."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Validation) -> Iterator[str]:
    yield f"# Validation of {_text(found.fleet)}"
    yield ""
    yield f"**{_text(found.sentence)}**"
    yield ""
    yield from _table(facts.STEP_COLUMNS, [facts.step_row(step) for step in found.steps])
    for blame in found.blames:
        yield ""
        yield f"To blame: **{_text(str(blame['text']))}**"
        yield ""
        yield from (f"- {_text(str(line))}" for line in blame["evidence"])
    notes = [(step.title, note) for step in found.steps for job in step.jobs for note in job.notes]
    if notes or found.left_out:
        yield ""
        yield "## Notes"
        yield ""
        yield from dict.fromkeys(f"- {_text(title)}: {_text(note)}" for title, note in notes)
        yield from (f"- left out: {_text(host)} {_text(why)}" for host, why in found.left_out.items())
    yield from _doctor(found)
    yield ""
    yield "## How to reproduce"
    yield ""
    yield from _table(("What", "Value"), facts.provenance_rows(found))
    for title, command in facts.commands(found):
        yield ""
        yield f"{_text(title)}:"
        yield ""
        yield f"    {' '.join(command.split())}"


def _doctor(found: Validation) -> Iterator[str]:
    wrong = [finding for finding in found.doctor or () if finding.get("status") in ("warn", "fail")]
    if found.doctor is None:
        return
    yield ""
    yield "## Doctor"
    yield ""
    if not wrong:
        yield f"{len(found.doctor)} checks, nothing to remark."
        return
    keys = ("host", "status", "title", "value", "remedy")
    yield from _table([key.capitalize() for key in keys], [[str(item.get(key, "")) for key in keys] for item in wrong])


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    yield from ("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)


def _text(text: str) -> str:
    """Host names and messages are data: nothing of them is markup."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    for char in "\\`*_[]<>|":
        clean = clean.replace(char, f"\\{char}") if char != "<" else clean.replace(char, "&lt;")
    return clean
