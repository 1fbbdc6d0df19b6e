"""A report for people and for other programs: rows of a table, lines below it, JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from lambdactl.doctor.catalogue import checks
from lambdactl.doctor.model import Finding, Report, Status

COLUMNS = ("STATUS", "CHECK", "HOSTS", "FOUND", "EXPECTED")
SHOWN_HOSTS = 4
_ORDER = (Status.FAIL, Status.WARN, Status.PASS)


@dataclass(frozen=True)
class Row:
    """Equal findings of several hosts."""

    status: Status
    check: str
    hosts: tuple[str, ...]
    value: str
    threshold: str
    remedy: str


def hosts_text(hosts: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(hosts) - SHOWN_HOSTS
    return ", ".join(hosts[:SHOWN_HOSTS]) + (f" and {more} more" if more > 0 else "")


def rows(report: Report, *, show_all: bool = False) -> list[Row]:
    """Failures first, then warnings, then (with `show_all`) passes, each in the order of the checks."""
    wanted = _ORDER if show_all else _ORDER[:2]
    groups: dict[tuple[Status, str, str, str], list[Finding]] = {}
    for status in wanted:
        for name in checks():
            for finding in report.findings:
                if finding.check == name and finding.status is status:
                    key = (status, name, finding.value, finding.remedy)
                    groups.setdefault(key, []).append(finding)
    return [
        Row(status, check, tuple(finding.host for finding in found), value, found[0].threshold, remedy)
        for (status, check, value, remedy), found in groups.items()
    ]


def remedies(found: Sequence[Row]) -> list[str]:
    """One line for each check that did not pass: its id and what to do."""
    lines = [f"{row.check}: {row.remedy}" for row in found if row.remedy]
    return list(dict.fromkeys(lines))


def not_applicable(report: Report) -> list[str]:
    """One line for each reason why checks do not apply, with the hosts and the checks."""
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for finding in report.findings:
        if finding.status is Status.SKIP:
            hosts, names = reasons.setdefault(finding.value, ({}, {}))
            hosts[finding.host] = None
            names[finding.check] = None
    answered = len(report.evidence)
    lines = []
    for reason, (hosts, names) in reasons.items():
        where = "all hosts" if len(hosts) == answered > 1 else hosts_text(list(hosts))
        lines.append(f"{reason} ({where}): {', '.join(names)}")
    return lines


def summary(report: Report) -> str:
    """The verdict in one sentence."""
    counts = report.counts
    unreached = len(report.hosts) - len(report.evidence)
    word = {Status.PASS: "healthy", Status.WARN: "usable, with warnings", Status.FAIL: "not healthy"}[report.status]
    numbers = f"{counts[Status.FAIL]} failures, {counts[Status.WARN]} warnings, {counts[Status.PASS]} passes"
    silent = f", {unreached} of them did not answer" if unreached else ""
    plural = "s" if len(report.hosts) != 1 else ""
    return f"{report.fleet} is {word}: {numbers} on {len(report.hosts)} host{plural}{silent}."


def lines(report: Report) -> list[str]:
    """The report as plain lines, for Ansible's output: what is wrong, what to do, what does not apply, the verdict."""
    found = rows(report)
    told = [
        f"{row.status.value.upper()} {row.check} on {hosts_text(row.hosts)}: {row.value} (expected: {row.threshold})"
        for row in found
    ]
    todo = [f"remedy for {line}" for line in remedies(found)]
    skips = [f"does not apply: {line}" for line in not_applicable(report)]
    return [*told, *todo, *skips, summary(report)]


def junit(report: Report) -> bytes:
    """JUnit XML: a test suite a host, a test case a check; a warning passes and says so in system-out."""
    root = ElementTree.Element("testsuites", name=f"lambdactl doctor {_clean(report.fleet)}")
    for host in report.hosts:
        found = report.of(host)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_clean(host),
            tests=str(len(found)),
            failures=str(sum(finding.status is Status.FAIL for finding in found)),
            errors="0",
            skipped=str(sum(finding.status is Status.SKIP for finding in found)),
        )
        for finding in found:
            _case(suite, finding)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _case(suite: ElementTree.Element, finding: Finding) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=f"doctor.{_clean(finding.host)}", name=finding.check)
    value = _clean(finding.value)
    text = f"{finding.title}\nfound: {value}\nexpected: {finding.threshold}\nsource: {finding.source}"
    if finding.status is Status.FAIL:
        failure = ElementTree.SubElement(case, "failure", type="fail", message=value)
        failure.text = f"{text}\nremedy: {_clean(finding.remedy)}"
    elif finding.status is Status.SKIP:
        ElementTree.SubElement(case, "skipped", message=value)
    elif finding.status is Status.WARN:
        ElementTree.SubElement(case, "system-out").text = f"WARN {text}\nremedy: {_clean(finding.remedy)}"


def _clean(text: str) -> str:
    """XML 1.0 has no control characters, and a node may send some."""
    return "".join(c if c in "\t\n" or c.isprintable() else "?" for c in text)
