"""`lambdactl ps -w` on the wide bed: one document or table after the other until Ctrl-C, and who does not answer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl.cli import ps
from tests.bed.gang import GangBed

LAMBDACTL = Path(sys.executable).with_name("lambdactl")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def bed() -> Iterator[GangBed]:
    with GangBed(nodes=2) as bed:
        bed.load()
        yield bed


def watch(bed: GangBed, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAMBDACTL, "ps", "-w", "--fleet", str(bed.fleet_file), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_like_a_shell,
    )  # fmt: skip


def _like_a_shell() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_one_document_a_line_names_who_does_not_answer(bed: GangBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bed.home))
    (bed.root(bed.addresses[1]) / "opt/lambdactl/runner.pyz").write_text("import sys; sys.exit('broken')")
    process = watch(bed, "--json")
    assert process.stdout is not None
    documents = [json.loads(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (0, False)
    for document in documents:
        assert document["runs"] == []
        assert list(document["unanswered"]) == [f"{bed.name}/{bed.addresses[1]}"]


def test_a_table_is_printed_again_and_a_problem_once(bed: GangBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bed.home))
    process = watch(bed)
    assert process.stdout is not None
    headings = 0
    while headings < 3:
        headings += process.stdout.readline().startswith("NAME")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (0, False)
    assert said.count(bed.addresses[1]) >= 1
    assert len([line for line in said.splitlines() if bed.addresses[1] in line]) == 1


def test_the_document_is_what_the_docs_say() -> None:
    assert ps._document([], {"f/h": "why"}, []) == {"runs": [], "services": [], "unanswered": {"f/h": "why"}}
