"""The report as one HTML file: no script, nothing from the network, readable offline, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from lambdactl.report import facts, svg
from lambdactl.report.style import CSS
from lambdactl.report.svg import Series
from lambdactl.validate.record import StepRecord, Validation

_MOST_NODES = 40  # in the heat map
_MOST_FINDINGS = 200
_SMALL = 1 << 20  # bytes up to which a message's time is its latency
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(found: Validation) -> str:
    """The whole file."""
    title = escape(f"{found.fleet}: {found.status}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{CSS}</style></head><body>\n" + "\n".join(_body(found)) + "\n</body></html>\n"
    )


def _body(found: Validation) -> Iterator[str]:
    yield f"<header><h1>Validation of {escape(found.fleet)}</h1>"
    yield f'<p class="verdict {_class(found.status)}">{_bold(found.status, found.sentence)}</p>'
    minutes = f"{found.seconds / 60:.0f} minutes" if found.seconds >= 90 else f"{found.seconds:.0f} seconds"
    yield f'<p class="sub">{escape(found.topology)}. {facts.when(found)}, {minutes}.</p></header>'
    yield f"<main><h2>What was measured</h2>{_steps(found)}"
    yield from _charts(found)
    yield from _pairs(found)
    yield from _doctor(found)
    yield from _notes(found)
    yield "<h2>How to reproduce</h2>"
    yield _facts_table(facts.provenance_rows(found))
    for title, command in facts.commands(found):
        yield f"<p>{escape(title)}</p><pre>{escape(command)}</pre>"
    if hosts := facts.hostfile(found):
        yield f"<details><summary>Addresses in rank order</summary><pre>{escape(chr(10).join(hosts))}</pre></details>"
    yield "</main>"


def _class(status: str) -> str:
    return {"PASS": "pass", "WARN": "warn", "FAIL": "fail"}.get(status, "none")


def _bold(status: str, sentence: str) -> str:
    rest = escape(sentence.removeprefix(status))
    return f'<strong class="badge {_class(status)}">{escape(status)}</strong>{rest}'


def _steps(found: Validation) -> str:
    head = "".join(f"<th{' class=n' if place > 1 else ''}>{name}</th>" for place, name in enumerate(facts.STEP_COLUMNS))
    rows = []
    for step in found.steps:
        title, status, *numbers = facts.step_row(step)
        cells = "".join(
            f'<td class="n" data-label="{name}">{escape(number)}</td>'
            for name, number in zip(facts.STEP_COLUMNS[2:], numbers, strict=True)
        )
        badge = f'<span class="badge {_class(status)}">{escape(status)}</span>'
        rows.append(
            f'<tr title="{escape(step.sentence, quote=True)}"><td>{escape(title)}</td><td>{badge}</td>{cells}</tr>'
        )
    return (
        f'<table class="steps"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        '<p class="sub">busbw: all-reduce bus bandwidth at 1 GiB and more, of the slowest run of each step; '
        "bound: what this hardware allows.</p>"
    )


def _charts(found: Validation) -> Iterator[str]:
    curves = [(step, job) for step in found.steps if (job := facts.slowest(step)) and len(job.curve) > 3]
    bandwidth = [
        Series(_label(step), tuple((p.size, p.busbw) for p in job.curve if p.busbw is not None), job.bound)
        for step, job in curves
    ]
    latency = [
        Series(
            _label(step), tuple((p.size, p.time_us) for p in job.curve if p.time_us is not None and p.size <= _SMALL)
        )
        for step, job in curves
    ]
    charts = [
        svg.chart("Bandwidth against the bound", "GB/s", bandwidth),
        svg.chart("Latency of small messages", "µs", [series for series in latency if len(series.points) > 1]),
    ]
    if any(charts):
        yield f'<h2>Bandwidth and latency</h2><div class="charts">{"".join(charts)}</div>'


def _label(step: StepRecord) -> str:
    return f"{step.title}, slowest node" if len(step.jobs) > 1 else step.title


def _pairs(found: Validation) -> Iterator[str]:
    if found.pairs and found.typical_pair:
        yield "<h2>Pairs of nodes</h2>"
        if found.finding:
            yield f"<p>{escape(found.finding)}</p>"
        yield _heat(found, found.typical_pair)
    for blame in found.blames:
        lines = "".join(f"<li>{escape(str(line))}</li>" for line in blame["evidence"])
        yield f"<p><strong>To blame: {escape(str(blame['text']))}.</strong> The evidence:</p><ul>{lines}</ul>"


def _heat(found: Validation, typical: float) -> str:
    """All nodes, or on a large fleet those that are slow and their partners."""
    values = {(a, b): measured[-1] for a, b, measured in found.pairs if measured}
    names = list(dict.fromkeys(name for key in sorted(values) for name in key))
    order = {name: place for place, name in enumerate(found.provenance.get("hostfile_order", names))}
    names.sort(key=lambda name: order.get(name, len(order)))
    note = ""
    if len(names) > _MOST_NODES:
        by_speed = sorted(names, key=lambda name: min(value for key, value in values.items() if name in key))
        kept = set(by_speed[:_MOST_NODES])
        note = f"<p class=sub>The {_MOST_NODES} nodes with the slowest pairs, of {len(names)}.</p>"
        names = [name for name in names if name in kept]
    shares = {key: value / typical for key, value in values.items()}
    steps = (
        (0.95, "95 % and more"),
        (0.85, "85 to 95 %"),
        (0.7, "70 to 85 %"),
        (0.5, "50 to 70 %"),
        (0.0, "below 50 %"),
    )
    square = '<svg viewBox="0 0 14 14"><rect class="{}" width="14" height="14" rx="3"/></svg>'
    key = "".join(f"<span>{square.format(svg.heat_class(least))}{text}</span>" for least, text in steps)
    legend = f'<p class="key">GB/s; colour: share of the typical pair, {typical:.4g} GB/s: {key}</p>'
    return f'{note}<div class="scroll">{svg.heat_map(names, shares, values)}</div>{legend}'


def _doctor(found: Validation) -> Iterator[str]:
    if found.doctor is None:
        return
    wrong = [finding for finding in found.doctor if finding.get("status") in ("warn", "fail")]
    shown = sorted(wrong, key=lambda finding: finding["status"] != "fail")[:_MOST_FINDINGS]
    yield "<h2>Doctor</h2>"
    if not wrong:
        yield f"<p>{len(found.doctor)} findings, nothing to remark.</p>"
        return
    head = "".join(f"<th>{name}</th>" for name in ("Host", "Status", "Check", "Found", "Remedy"))
    rows = "".join(
        f"<tr><td>{_cell(item, 'host')}</td><td><span class='badge {escape(str(item['status']))}'>"
        f"{_cell(item, 'status').upper()}</span></td><td>{_cell(item, 'title')}</td><td>{_cell(item, 'value')}</td>"
        f"<td>{_cell(item, 'remedy')}</td></tr>"
        for item in shown
    )
    yield f'<div class="scroll"><table class="doctor"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    left = f"{len(wrong) - len(shown)} more are in the JSON; " if len(wrong) > len(shown) else ""
    yield f'<p class="sub">{left}{len(found.doctor) - len(wrong)} further findings are fine or do not apply.</p>'


def _cell(item: dict[str, object], name: str) -> str:
    return escape(str(item.get(name, "")))


def _notes(found: Validation) -> Iterator[str]:
    lines = [f"{step.title}: {note}" for step in found.steps for job in step.jobs for note in job.notes]
    lines += [f"left out: {host} {why}" for host, why in found.left_out.items()]
    if lines:
        items = "".join(f"<li>{escape(line)}</li>" for line in dict.fromkeys(lines))
        yield f"<h2>Notes</h2><ul>{items}</ul>"


def _facts_table(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'
