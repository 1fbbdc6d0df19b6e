"""`lambdactl report` and `lambdactl history` on what is kept, without a node."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lambdactl.cli import history, report
from lambdactl.errors import SpecError
from lambdactl.fleet import Fleet
from lambdactl.state import State
from lambdactl.validate.record import Validation

DATA = Path(__file__).parents[1] / "data" / "validate" / "fake-slow-node.json"


@pytest.fixture
def fleet_file(home: Path, tmp_path: Path) -> str:
    path = tmp_path / "fleet.dstack.yml"
    path.write_text("type: fleet\nname: my-fleet\nssh_config:\n  user: ubuntu\n  hosts:\n    - 10.0.0.1\n")
    return str(path)


def keep(file: str, number: int, factor: float) -> None:
    """A validation of that fleet, all bandwidths times a factor."""
    found = Validation.from_json(json.loads(DATA.read_text()))
    for step in found.steps:
        for job in step.jobs:
            job.value = None if job.value is None else job.value * factor
    found = replace(found, id=f"id-{number}", fleet_id=Fleet.load(file).id, fleet="my-fleet", started_at=float(number))
    with State() as state:
        state.remember_validation(found.id, found.fleet_id, found.started_at, found.as_json())


@pytest.mark.parametrize(("factor", "code"), [(0.94, 10), (0.98, 0)])
def test_history_flags_six_percent_and_not_two(
    fleet_file: str, capsys: pytest.CaptureFixture[str], factor: float, code: int
) -> None:
    keep(fleet_file, 1, 1.0)
    keep(fleet_file, 2, factor)
    assert history.run(fleet_file, as_json=False) == code
    shown = capsys.readouterr()
    assert f"{factor - 1:+.1%}" in shown.out
    assert ("all is slower than before: -6.0% against the last 1." in shown.err) == (code == 10)
    assert history.run(fleet_file, as_json=True) == code
    newest, oldest = json.loads(capsys.readouterr().out)["validations"]
    assert (newest["id"], len(newest["changes"]), oldest["changes"]) == ("id-2", 11, [])


def test_report_takes_the_last_validation_or_the_one_named(
    fleet_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(fleet_file, 1, 1.0)
    keep(fleet_file, 2, 1.0)
    assert report.run(None, fleet_file, tmp_path, ["json"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/my-fleet-id-2.json\n"
    assert report.run("id-1", None, tmp_path, ()) == 0
    assert len(capsys.readouterr().out.split()) == 5


@pytest.mark.parametrize(
    ("key", "formats", "words"),
    [
        ("nope", ["html"], "no validation nope was made from here"),
        (None, ["pdf"], "--format pdf is not known; choose from html,"),
        (None, [], "no validation was made from here; `lambdactl validate -f FILE` makes one."),
    ],
)
def test_what_is_not_there_is_said(
    fleet_file: str, tmp_path: Path, key: str | None, formats: list[str], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        report.run(key, None, tmp_path, formats)
    with pytest.raises(SpecError, match="no validation of my-fleet was made from here"):
        history.run(fleet_file, as_json=False)
