"""JUnit XML: one suite a step and one case a run; the pairs and the doctor's checks are suites of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from lambdactl.nccl.verdict import Status
from lambdactl.validate.blame import SLOW
from lambdactl.validate.record import StepRecord, Validation

# What XML 1.0 cannot hold, not even escaped.
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(found: Validation) -> str:
    """The whole file."""
    root = ET.Element("testsuites", name=f"lambdactl validate {found.fleet}", time=f"{found.seconds:g}")
    for suite in (*(_step(step) for step in found.steps), *_pairs(found), *_doctor(found)):
        root.append(suite)
    for count in ("tests", "failures", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(name: str, cases: list[ET.Element]) -> ET.Element:
    suite = ET.Element("testsuite", name=_clean(name), tests=str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suite.extend(cases)
    return suite


def _case(suite: str, name: str, status: str, message: str, seconds: float = 0.0) -> ET.Element:
    """A warning passes, with its text: JUnit knows no third outcome."""
    case = ET.Element("testcase", classname=_clean(suite), name=_clean(name), time=f"{seconds:g}")
    if status == Status.FAIL:
        ET.SubElement(case, "failure", message=_clean(message), type="validation")
    elif status == Status.NONE:
        ET.SubElement(case, "skipped", message=_clean(message))
    else:
        ET.SubElement(case, "system-out").text = _clean(f"{status}: {message}")
    return case


def _step(step: StepRecord) -> ET.Element:
    cases = [_case(step.name, ", ".join(job.nodes), job.status, job.sentence, job.seconds) for job in step.jobs]
    return _suite(step.title, cases)


def _pairs(found: Validation) -> Iterator[ET.Element]:
    if not found.pairs or not found.typical_pair:
        return
    cases = []
    for a, b, values in found.pairs:
        share = values[-1] / found.typical_pair
        text = f"{values[-1]:.4g} GB/s, {share:.0%} of the typical pair's {found.typical_pair:.4g}"
        cases.append(_case("pairs", f"{a} with {b}", str(Status.FAIL if share < SLOW else Status.PASS), text))
    yield _suite("pairs of nodes", cases)


def _doctor(found: Validation) -> Iterator[ET.Element]:
    statuses = {"fail": Status.FAIL, "warn": Status.WARN, "skip": Status.NONE}

    def case(finding: dict[str, Any]) -> ET.Element:
        status = str(statuses.get(str(finding.get("status")), Status.PASS))
        text = f"{finding.get('value', '')} {finding.get('remedy', '')}".strip()
        return _case("doctor", f"{finding.get('check', '')} on {finding.get('host', '')}", status, text)

    if found.doctor:
        yield _suite("doctor", [case(finding) for finding in found.doctor])


def _clean(text: str) -> str:
    return _NO_XML.sub("?", text)
