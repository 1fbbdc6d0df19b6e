"""A report's faces: exit code, table, JSON by its schema, JUnit; and a whole fleet through real sshd."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from lambdactl.cli.app import app
from lambdactl.cli.doctor import show
from lambdactl.doctor import Report, Status, checks, examine, judge
from lambdactl.doctor.actions import save
from lambdactl.doctor.examine import clocked
from lambdactl.doctor.render import junit, lines, not_applicable
from lambdactl.errors import SpecError
from lambdactl.provision import Problem, Reply
from lambdactl.transport import open_transport
from tests.bed.gang import GangBed
from tests.unit.doctor_samples import DATA, changed

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "lambdactl" / "doctor" / "data" / "report.schema.json").read_text())
ROLE = ROOT / "roles" / "doctor"


def report(sets: dict[str, dict[str, Any] | None], base: str = "gpu", unreached: tuple[str, ...] = ()) -> Report:
    evidence = {host: changed(base, values) for host, values in sets.items()}
    problems = {
        host: Problem(
            host, "unreachable", "Nothing answers on the node's SSH port.", "Check that sshd runs on the node."
        )
        for host in unreached
    }
    hosts = (*sets, *unreached)
    return Report("lambda", "0123abcd", hosts, judge(hosts, evidence, problems), evidence, 1_795_000_000.0)


SICK = {
    "worker-0": None,
    "worker-1": {"facts.gpus": [{"name": "NVIDIA H100 80GB HBM3"}] * 7, "facts.driver": "550.90.07"},
    "worker-2": {"gpus.2.ecc_errors.sram_uncorrectable": 3, "limits.nofile.hard": 1024},
    "worker-3": {"limits.nofile.hard": 1024, "deep": None},
}


def test_exit_codes() -> None:
    assert report({"a": None, "b": None}).exit_code == 0
    assert report({"a": {"limits.nofile.hard": 1024}}).exit_code == 1
    assert report(SICK).exit_code == 2
    assert report({"a": None}, unreached=("b",)).exit_code == 2
    assert report({}, unreached=("a", "b")).exit_code == 2


def test_the_table() -> None:
    console = Console(file=io.StringIO(), width=118, force_terminal=True, color_system=None)
    show(report(SICK, unreached=("worker-4",)), show_all=False, to=console)
    shown = "".join(line.rstrip() + "\n" for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]  # this console writes into a StringIO
    assert shown == (DATA / "golden" / "table.txt").read_text()


def test_all_also_shows_passes() -> None:
    console = Console(file=io.StringIO(), width=118, color_system=None)
    show(report({"a": None, "b": None}), show_all=True, to=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # this console writes into a StringIO
    assert all(f" {name} " in shown for name in checks())
    assert "FAIL" not in shown


def test_what_does_not_apply_is_one_line_a_reason() -> None:
    found = not_applicable(report({"a": None, "b": None}, base="cpu"))
    reasons = [line.partition(" (")[0] for line in found]
    assert len(reasons) == len(set(reasons))
    assert next(line for line in found if line.startswith("no NVIDIA GPU (all hosts): nvidia-smi, gpu-bus"))


@pytest.mark.parametrize(
    "found", [report(SICK, unreached=("x",)), report({"a": None}, base="cpu")], ids=["sick", "cpu"]
)
def test_json_keeps_its_schema(found: Report) -> None:
    jsonschema.validate(json.loads(json.dumps(found.as_json())), SCHEMA)


def test_junit_has_a_case_a_check() -> None:
    found = report(SICK, unreached=("worker-4",))
    root = ElementTree.fromstring(junit(found))
    suites = {suite.get("name"): suite for suite in root.findall("testsuite")}
    assert list(suites) == list(found.hosts)
    for host, suite in suites.items():
        assert len(suite.findall("testcase")) == int(suite.get("tests", "")) == len(found.of(host))
        assert len(suite.findall("testcase/failure")) == int(suite.get("failures", ""))
        assert len(suite.findall("testcase/skipped")) == int(suite.get("skipped", ""))
    assert len(suites["worker-0"].findall("testcase")) == len(checks())
    failure = suites["worker-4"].find("testcase/failure")
    assert failure is not None
    assert "sshd" in (failure.text or "")


def test_control_characters_of_a_node_reach_neither_xml_nor_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x00<b>&"
    found = report({"a": {"programs.nvidia-smi -q": {"state": "failed", "message": evil}}})
    save(found, junit_file=tmp_path / "x.xml", json_file=tmp_path / "x.json")
    ElementTree.parse(tmp_path / "x.xml")
    assert json.loads((tmp_path / "x.json").read_text())["status"] == "fail"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.xml"]
    console = Console(file=io.StringIO(), width=118, force_terminal=True, color_system=None)
    show(found, show_all=True, to=console)
    assert "\x1b[2J" not in console.file.getvalue()  # type: ignore[attr-defined]  # this console writes into a StringIO


def test_lines_for_ansible_name_host_cause_and_remedy() -> None:
    text = "\n".join(lines(report(SICK)))
    assert "FAIL same-gpu-count on worker-1: 7 GPUs, but 8 GPUs on 3 of 4 hosts (expected: the majority's)" in text
    assert "remedy for same-gpu-count: " in text


@pytest.mark.parametrize(("node_ahead", "took"), [(0.0, 0.2), (90.0, 0.2), (-3.0, 0.0)])
def test_the_skew_is_free_of_the_round_trip(node_ahead: float, took: float) -> None:
    asked, there, back = 1000.0, 0.05, 0.05
    received = asked + there + node_ahead
    answer = {"received_at": received, "answered_at": received + took}
    known = clocked(Reply(answer, asked, asked + there + took + back))
    assert known["clock"]["offset"] == pytest.approx(node_ahead, abs=1e-6)
    assert known["clock"]["uncertainty"] == pytest.approx(0.05)


# Through real sshd


@pytest.fixture(scope="module")
def bed() -> Iterator[GangBed]:
    with GangBed(nodes=3) as bed:
        yield bed


def run(bed: GangBed, *names: str) -> Report:
    async def go() -> Report:
        async with open_transport(bed.load()) as transport:
            return await examine(bed.load(), transport, names=names or None)

    return asyncio.run(go())


def test_a_fleet_is_examined_by_one_login_a_node(bed: GangBed) -> None:
    before = bed.node_logins()
    found = run(bed)
    assert set((bed.node_logins() - before).values()) == {1}
    assert found.hosts == tuple(bed.addresses)
    assert {len(found.of(host)) for host in found.hosts} == {len(checks())}
    assert all(next(iter(found.of(host))).status is Status.PASS for host in found.hosts)
    skews = [finding for finding in found.findings if finding.check == "clock-spread"]
    assert {finding.status for finding in skews} == {Status.PASS}


def test_one_host_that_is_down_hides_no_other(bed: GangBed) -> None:
    data = bed.spec()
    data["ssh_config"]["network"] = "127.0.0.0/8"
    data["ssh_config"]["hosts"].append({"hostname": "127.1.0.200", "port": 1})
    file = bed.directory / "down.dstack.yml"
    file.write_text(yaml.safe_dump(data))
    done = CliRunner().invoke(app, ["doctor", "-f", str(file), "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == told["exit_code"] == 2
    assert [host["answered"] for host in told["hosts"]] == [True, True, True, False]
    (finding,) = told["hosts"][3]["findings"]
    assert finding["check"] == "reachable"
    assert finding["value"]
    assert finding["remedy"]
    jsonschema.validate(told, SCHEMA)


def test_only_the_hosts_that_are_asked_for(bed: GangBed) -> None:
    assert run(bed, bed.addresses[1]).hosts == (bed.addresses[1],)
    bed.load()
    done = CliRunner().invoke(app, ["doctor", "-f", str(bed.fleet_file), "nobody"])
    assert isinstance(done.exception, SpecError)
    assert "nobody is not a host of" in str(done.exception)


# The role


def test_the_roles_variables_are_told_alike_everywhere() -> None:
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert {name: option["default"] for name, option in options.items()} == defaults
    assert all(name.startswith("doctor_") for name in defaults)
    assert options["doctor_state"]["choices"] == ["present", "absent"]

    def shown(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value) or '""'

    rows = [f"| `{name}` | `{shown(o['default'])}` | {o['description']} |" for name, o in options.items()]
    assert [line for line in (ROLE / "README.md").read_text().splitlines() if line.startswith("| `doctor_")] == rows


def test_the_page_lists_every_check_as_it_is() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text()
    rows = [f"| `{c.id}` | {c.title} | {c.threshold} | {c.severity.value} | {c.source} |" for c in checks().values()]
    assert [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 6] == rows
