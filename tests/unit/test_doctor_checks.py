"""Every check against its fixtures in tests/data/doctor: evidence in, status and value out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lambdactl.doctor import Status, checks, judge
from lambdactl.doctor.catalogue import FLEET_JUDGES, NODE_JUDGES
from lambdactl.doctor.evidence import NEEDS
from lambdactl.doctor.examine import examine_one
from lambdactl.doctor.model import REACHABLE
from tests.unit.doctor_samples import BASES, DATA, changed, cpu_node, gpu_node


def cases(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load((DATA / f"{name}.yml").read_text())


NODE_CASES = [pytest.param(name, case, id=f"{name}-{n}") for name in NODE_JUDGES for n, case in enumerate(cases(name))]
FLEET_CASES = [
    pytest.param(name, case, id=f"{name}-{n}") for name in FLEET_JUDGES for n, case in enumerate(cases(name))
]


@pytest.mark.parametrize(("name", "case"), NODE_CASES)
def test_a_node_check(name: str, case: dict[str, Any]) -> None:
    finding = examine_one(checks()[name], "a", changed(case.get("base", "gpu"), case.get("set")))
    assert (finding.status.value, finding.value) == (case["status"], finding.value), finding.value
    assert case.get("value", "") in finding.value
    assert bool(finding.remedy) == (finding.status in (Status.WARN, Status.FAIL))


@pytest.mark.parametrize(("name", "case"), FLEET_CASES)
def test_a_comparison(name: str, case: dict[str, Any]) -> None:
    hosts, sets = case.get("hosts", ["a", "b", "c"]), case.get("set", {})
    evidence = {host: changed(case.get("base", "gpu"), sets.get(host)) for host in hosts}
    found = {finding.host: finding for finding in judge(hosts, evidence) if finding.check == name}
    assert {host: finding.status.value for host, finding in found.items()} == case["expect"]
    for host, value in case.get("value", {}).items():
        assert value in found[host].value


@pytest.mark.parametrize("name", checks())
def test_each_check_has_a_fixture_for_each_way_it_can_end(name: str) -> None:
    if name == REACHABLE:
        return  # has no evidence: what is missing is the answer
    check, found = checks()[name], cases(name)
    statuses = {case["status"] for case in found} if "status" in found[0] else set()
    statuses |= {status for case in found for status in case.get("expect", {}).values()}
    assert {"pass", check.severity.value} <= statuses


def test_there_are_enough_checks_and_each_says_what_it_expects_and_who_says_so() -> None:
    assert len(checks()) >= 35
    for check in checks().values():
        assert check.scope in ("node", "fleet")
        assert check.severity in (Status.WARN, Status.FAIL)
        assert all((check.title, check.threshold, check.source, check.remedy))
        assert set(check.needs) <= set(NEEDS)
        assert check.remedy.endswith((".", ")."))


def test_no_fixture_is_left_over() -> None:
    assert {path.stem for path in DATA.glob("*.yml")} == set(checks()) - {REACHABLE}


@pytest.mark.parametrize("base", BASES)
def test_a_healthy_fleet_has_no_finding(base: str) -> None:
    findings = judge(["a", "b"], {host: changed(base, {}) for host in ("a", "b")})
    assert [finding for finding in findings if finding.status not in (Status.PASS, Status.SKIP)] == []


def test_a_node_without_gpus_skips_with_a_reason() -> None:
    findings = judge(["a"], {"a": cpu_node()})
    skips = [finding.value for finding in findings if finding.status is Status.SKIP]
    assert skips.count("no NVIDIA GPU") > 20
    assert all(skips)


HOSTILE: list[Any] = [None, [], {}, "x", 7, [None], {"x": None}, [[]], -1, [{"links": 3}], {"links": [{}]}]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_hostile_evidence_never_raises(value: Any) -> None:
    for key in gpu_node():
        findings = judge(["a", "b"], {"a": {**gpu_node(), key: value}, "b": gpu_node()})
        assert len(findings) == 2 * len(checks())
    judge(["a"], {"a": {}})
    judge(["a"], {"a": value if isinstance(value, dict) else {}})
