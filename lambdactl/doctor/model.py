"""What a check is, what it finds, and the report of a whole fleet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1
REACHABLE = "reachable"


class Status(StrEnum):
    """How a check ended; skip: it does not apply here, and the value says why."""

    PASS = "pass"  # noqa: S105 (no password)
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Outcome:
    """What a check's own function says: the status and the value that it found, for people."""

    status: Status
    value: str


Evidence = Mapping[str, Any]
Judge = Callable[[Evidence], Outcome]
FleetJudge = Callable[[Mapping[str, Evidence]], Mapping[str, Outcome]]


@dataclass(frozen=True)
class Finding:
    """One check's result for one host. `threshold` is what was expected, `remedy` empty unless it is a warn or fail."""

    check: str
    title: str
    host: str
    status: Status
    value: str
    threshold: str = ""
    source: str = ""
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """The finding as docs/doctor.md describes it."""
        return {
            "check": self.check,
            "title": self.title,
            "host": self.host,
            "status": self.status.value,
            "value": self.value,
            "threshold": self.threshold,
            "source": self.source,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class Check:
    """One check: its words (`data/checks.yaml`) and the pure function that judges evidence.

    Attributes:
        scope: "node", judged for each node alone, or "fleet", a comparison of the nodes with each other.
        severity: the worst that this check can say.
        needs: names in `evidence.NEEDS`; where one is not there, the check is skipped with the reason.
        threshold: what is expected, and `source`, who says so.
    """

    id: str
    title: str
    scope: str
    severity: Status
    threshold: str
    source: str
    remedy: str
    needs: tuple[str, ...] = ()

    def finding(self, host: str, outcome: Outcome) -> Finding:
        """The outcome in full; never worse than the severity."""
        status = outcome.status
        if status is Status.FAIL and self.severity is Status.WARN:
            status = Status.WARN
        remedy = self.remedy if status in (Status.WARN, Status.FAIL) else ""
        return Finding(self.id, self.title, host, status, outcome.value, self.threshold, self.source, remedy)


@dataclass(frozen=True)
class Report:
    """Everything that was found in a fleet.

    Attributes:
        hosts: in rank order, those that did not answer included.
        findings: by host in rank order, then in the order of the checks.
        evidence: of each host that answered, as it came, for other tools.
        examined_at: seconds since 1970.
    """

    fleet: str
    fleet_id: str
    hosts: tuple[str, ...]
    findings: Sequence[Finding]
    evidence: Mapping[str, Evidence]
    examined_at: float
    deep: bool = False

    @property
    def counts(self) -> dict[Status, int]:
        """How many findings of each status."""
        return {status: sum(finding.status is status for finding in self.findings) for status in Status}

    @property
    def status(self) -> Status:
        """The worst of all findings; skips do not count."""
        counts = self.counts
        return Status.FAIL if counts[Status.FAIL] else Status.WARN if counts[Status.WARN] else Status.PASS

    @property
    def exit_code(self) -> int:
        """0: all pass or do not apply, 1: warnings, 2: failures (a host that does not answer is one)."""
        return {Status.PASS: 0, Status.WARN: 1, Status.FAIL: 2}[self.status]

    def of(self, host: str) -> list[Finding]:
        """The findings of one host."""
        return [finding for finding in self.findings if finding.host == host]

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`, described in docs/doctor.md."""
        return {
            "schema_version": SCHEMA_VERSION,
            "fleet": self.fleet,
            "fleet_id": self.fleet_id,
            "examined_at": self.examined_at,
            "deep": self.deep,
            "status": self.status.value,
            "exit_code": self.exit_code,
            "counts": {status.value: count for status, count in self.counts.items()},
            "hosts": [
                {
                    "name": host,
                    "answered": host in self.evidence,
                    "findings": [finding.as_json() for finding in self.of(host)],
                }
                for host in self.hosts
            ],
        }
