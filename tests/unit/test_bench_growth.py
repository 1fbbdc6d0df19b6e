"""What the benchmarks say of growths, from made-up results."""

from __future__ import annotations

import os

import pytest

from tests.bench import goals, report, rows_apply
from tests.bench.growth import growth, growths
from tests.bench.meter import Sample, Series
from tests.bench.results import Group, Results


def series(name: str, seconds: float, cpu: float = 1.0, **values: float) -> Series:
    return Series(name, [Sample(seconds, cpu, 0, seconds=seconds, values=values)])


def results(cores: int = os.cpu_count() or 1) -> Results:
    found = Results()
    for nodes, seconds, login, python in ((8, 1.0, 0.3, 0.35), (32, 1.6, 0.5, 0.6)):
        worked = {rows_apply.UNTIL_FIRST: nodes * 0.02 * cores}
        ours = series("lambdactl", seconds, cpu=1 + nodes / 100, **worked)
        floors = [series(rows_apply.FLOOR, login), series(rows_apply.PYTHON, python)]
        found.groups.append(Group("launch", f"bed, {nodes} nodes", nodes, [ours, *floors]))
        found.groups.append(Group("noop", f"bed, {nodes} nodes", nodes, [series("lambdactl", seconds)]))
    return found


def test_a_growth_stands_beside_what_it_is_made_of() -> None:
    found = growth(results(), "launch", delayed=False)
    assert found is not None
    assert found.ratio == pytest.approx(1.6)
    assert found.cpu == pytest.approx(1.32 / 1.08)
    assert found.logins == pytest.approx(1.2)
    assert found.python == pytest.approx(1.25)
    assert found.apart == pytest.approx((1.6 - 0.64) / (1.0 - 0.16))


def test_what_was_not_measured_is_left_out() -> None:
    found = {item.what: item for item in growths(results())}
    assert len(found) == 2
    assert found["no-op `apply`"].apart is None
    assert growth(results(), "launch", delayed=True) is None
    assert list(growths(Results())) == []


def test_the_verdict_goes_by_the_growth_alone() -> None:
    said = {verdict.what: verdict for verdict in goals.verdicts(results())}
    assert said["the same, 32 nodes against 8 (bed)"].met is False
    assert said["the same, 32 nodes against 8 (bed)"].measured.startswith("1.60 x (")
    assert said["the same, 32 nodes against 8 (bed behind 50 ms)"].met is None
    page = "\n".join(report._growths(results()))
    assert "| `apply -f task` to the first command | 1.00 | 1.60 | 1.60 x | 1.22 x | 1.20 x | 1.25 x | 1.14 x |" in page
