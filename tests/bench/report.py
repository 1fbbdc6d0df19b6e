"""docs/benchmarks.md from the results: the goals first, then every table, then what the figures do not mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench import words
from tests.bench.goals import verdicts
from tests.bench.growth import Growth, growths
from tests.bench.meter import Series
from tests.bench.results import Group, Results

Cell = Callable[[Group, Series], str]


@dataclass(frozen=True)
class Section:
    """A part of the report: a heading, words, and the columns that only it has."""

    key: str
    title: str
    words: str
    columns: tuple[tuple[str, Cell], ...] = ()
    seconds: str = "seconds"


def _value(name: str, form: str) -> Cell:
    return lambda _group, series: form.format(series.value(name)) if name in series.samples[0].values else "-"


def _lost(group: Group, series: Series) -> str:
    lost = [group.nodes - sample.values["answered"] for sample in series.samples]
    return ", ".join(f"{number:.0f}" for number in lost)


NODES: tuple[tuple[str, Cell], ...] = (
    ("nodes' CPU s", _value("node_cpu", "{:.1f}")),
    ("lost nodes", _value("lost", "{:.0f}")),
)
SECTIONS = (
    Section("noop", "A provisioned fleet applied again", words.NOOP, NODES),
    Section(
        "launch",
        "A task, until its first command runs on all nodes",
        words.LAUNCH,
        NODES,
        seconds="seconds to the last node",
    ),
    Section("stop", "Workers stopped after rank 0's end", words.STOP, seconds="seconds to the last worker's end"),
    Section(
        "logs",
        "The logs of eight ranks",
        words.LOGS,
        (("MB/s", _value("rate", "{:.0f}")), ("M lines/s", _value("line_rate", "{:.2f}"))),
    ),
    Section(
        "delay",
        "The delay of a line",
        words.DELAY,
        (("p50 ms", _value("p50", "{:.1f}")), ("p99 ms", _value("p99", "{:.1f}"))),
        seconds="seconds of the whole run",
    ),
    Section("inventory", "Inventory of 5,000 hosts", words.INVENTORY),
    Section("help", "The start of the command line", words.HELP),
    Section("reach", "Nodes lost behind a jump host with sshd's stock limits", words.REACH, (("lost", _lost),)),
)


def render(results: Results) -> str:
    """The whole page."""
    facts = results.facts
    counted = {"tasks": facts.get("role_tasks"), "tasks_source": facts.get("role_tasks_source")}
    parts = [_head(results), _goals(results)]
    for section in SECTIONS:
        groups = [group for group in results.groups if group.section == section.key]
        if groups:
            parts += [f"## {section.title}", words.paragraph(section.words.format(**counted)), _table(section, groups)]
    parts += [*_growths(results), _meaning(results)]
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> str:
    facts = results.facts
    rows = [[name, str(facts[name])] for name in facts if not name.startswith("role_tasks")]
    text = "Written by `make bench`; every number below comes from that one run. Do not edit.\n\n" + markdown(
        ("", ""), rows
    )
    if results.failures:
        text += "\n\nNot measured, because it failed:\n\n" + "\n".join(f"- {failure}" for failure in results.failures)
    return f"# Benchmarks\n\n{text}"


def _goals(results: Results) -> str:
    said = {True: "yes", False: "**no**", None: "-"}
    rows = [[verdict.what, verdict.goal, verdict.measured, said[verdict.met]] for verdict in verdicts(results)]
    return "## Goals\n\n" + markdown(("what", "goal", "measured", "met"), rows)


def _table(section: Section, groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        for index, series in enumerate(group.series):
            rows.append(
                [
                    group.where if index == 0 else "",
                    series.name + (f" ({series.note})" if series.note else ""),
                    f"{series.seconds:.2f}",
                    "" if index == 0 else f"{series.seconds / group.ours.seconds:.1f} x",
                    f"{series.cpu:.2f}",
                    f"{series.memory / 1e6:.0f}",
                    *(cell(group, series) for _, cell in section.columns),
                    str(len(series.samples)),
                ]
            )
    own = [name for name, _ in section.columns]
    return markdown(("where", "what", section.seconds, "to ours", "CPU s", "peak MB", *own, "runs"), rows)


def _growths(results: Results) -> list[str]:
    found = list(growths(results))
    if not found:
        return []
    rows = [
        [
            item.what,
            f"{item.few:.2f}",
            f"{item.many:.2f}",
            *("-" if ratio is None else f"{ratio:.2f} x" for ratio in _ratios(item)),
        ]
        for item in found
    ]
    heads = (
        "what",
        "8 nodes s",
        "32 nodes s",
        "growth",
        "controller's CPU",
        "24 logins",
        "24 bare Pythons",
        "nodes apart",
    )
    return ["## What of the growth is the bed's", words.paragraph(words.GROWTH), markdown(heads, rows)]


def _ratios(item: Growth) -> tuple[float | None, ...]:
    return item.ratio, item.cpu, item.logins, item.python, item.apart


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _meaning(results: Results) -> str:
    items = [words.paragraph(text.format(**results.facts)) for text in words.MEANING]
    listed = "\n".join("- " + item.replace("\n", "\n  ") for item in items)
    return f"## What this means, and what it does not\n\n{listed}"
