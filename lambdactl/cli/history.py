"""`lambdactl history -f FLEET`: a fleet's validations, each against its own past."""

from __future__ import annotations

import time
from dataclasses import asdict

from lambdactl.cli.console import note, print_json, print_table
from lambdactl.cli.nccl import EXIT_WARN
from lambdactl.cli.validate import named_fleet
from lambdactl.errors import EXIT_OK, SpecError
from lambdactl.state import State
from lambdactl.validate.history import Change, Comparison, compare
from lambdactl.validate.record import Validation


def run(file: str | None, *, as_json: bool) -> int:
    """List the validations with their changes; exit code 10 when the newest is slower than its past."""
    fleet = named_fleet(file)
    with State() as state:
        found = [Validation.from_json(document) for document in state.validations(fleet.id)]
    if not found:
        raise SpecError(f"no validation of {fleet.name} was made from here; `lambdactl validate -f FILE` makes one.")
    compared = [(each, compare(each, found[place + 1 :])) for place, each in enumerate(found)]
    if as_json:
        print_json({"validations": [_json(each, comparison) for each, comparison in compared]})
    else:
        _print(compared)
    return EXIT_WARN if compared[0][1].flagged else EXIT_OK


def _print(compared: list[tuple[Validation, Comparison]]) -> None:
    rows = [row for each, comparison in compared for row in _rows(each, comparison)]
    print_table(("VALIDATION", "WHEN", "STATUS", "STEP", "GB/s", "BEFORE", "CHANGE", ""), rows)
    newest, comparison = compared[0]
    for change in comparison.flagged:
        note(f"{change.step} is slower than before: {change.relative:+.1%} against the last {change.runs}.")
    if comparison.changed:
        note(f"versions differ from the validations before {newest.id}: {'; '.join(comparison.changed)}")


def _rows(each: Validation, comparison: Comparison) -> list[tuple[object, ...]]:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.started_at))
    changes = {change.step: change for change in comparison.changes}
    return [
        (
            each.id,
            when,
            step.status,
            step.name,
            "-" if step.value is None else f"{step.value:.4g}",
            *_change(changes.get(step.name)),
        )
        for step in each.steps
    ]


def _change(change: Change | None) -> tuple[str, str, str]:
    if change is None:
        return ("-", "-", "")
    return (f"{change.before:.4g}", f"{change.relative:+.1%}", "slower" if change.flagged else "")


def _json(each: Validation, comparison: Comparison) -> dict[str, object]:
    return {
        "id": each.id, "started_at": each.started_at, "status": each.status, "sentence": each.sentence,
        "topology": each.topology, "versions": each.versions, "versions_changed": list(comparison.changed),
        "changes": [{**asdict(change), "relative": change.relative} for change in comparison.changes],
    }  # fmt: skip
