"""schedule on a node: dstack's cron dialect, and a gang that a node starts by itself."""

from __future__ import annotations

import calendar
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.node.cron import Cron, next_of
from lambdactl.node.errors import NodeError
from tests.unit.node_bed import PYTHONS, Bed, Refused
from tests.unit.test_node_contents import file, sha, store, tree


def at(text: str) -> float:
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M")))


@pytest.mark.parametrize(
    ("cron", "now", "due"),
    [
        ("* * * * *", "2026-11-25 10:00", "2026-11-25 10:01"),
        ("30 2 * * *", "2026-11-25 02:30", "2026-11-26 02:30"),
        ("*/20 9-17 * * *", "2026-11-25 17:41", "2026-11-26 09:00"),
        ("10/20 8 * * *", "2026-11-25 08:11", "2026-11-25 08:30"),
        ("0 0 * * 0", "2026-11-25 10:00", "2026-11-30 00:00"),  # Monday is 0
        ("0 0 * * sun", "2026-11-25 10:00", "2026-11-29 00:00"),
        ("0 0 13 * fri", "2026-11-25 10:00", "2027-08-13 00:00"),  # both must match
        ("5 4 last feb *", "2026-11-25 10:00", "2027-02-28 04:05"),
        ("0 0 29 2 *", "2026-11-25 10:00", "2028-02-29 00:00"),
        ("0 0 30 2 *", "2026-11-25 10:00", None),
        ("0 12 1,15 */3 mon-fri", "2026-11-25 10:00", "2027-01-01 12:00"),
    ],
)
def test_when_a_run_is_due(cron: str, now: str, due: str | None) -> None:
    assert Cron(cron).after(at(now)) == (None if due is None else at(due))
    if shutil.which("systemd-analyze") and due is not None:
        command = ["systemd-analyze", "calendar", f"--base-time={now} UTC", *Cron(cron).on_calendar()]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TZ": "UTC"})
        assert done.returncode == 0, done.stderr
        assert f"{due}:00 UTC" in done.stdout


def test_several_expressions_and_wrong_ones() -> None:
    now = at("2026-11-25 10:00")
    assert next_of([Cron("0 9 * * *"), Cron("0 8 * * *")], now) == at("2026-11-26 08:00")
    assert Cron("0 0 1,last * *").on_calendar() == [
        "Mon,Tue,Wed,Thu,Fri,Sat,Sun *-01,02,03,04,05,06,07,08,09,10,11,12-01 00:00:00 UTC",
        "Mon,Tue,Wed,Thu,Fri,Sat,Sun *-01,02,03,04,05,06,07,08,09,10,11,12~01 00:00:00 UTC",
    ]
    for wrong in ("* * * *", "60 * * * *", "x * * * *", "5-1 * * * *", "*/0 * * * *", None, "0 0 * * 7"):
        with pytest.raises(NodeError):
            Cron(wrong)


@pytest.fixture(params=PYTHONS, ids=lambda path: "py38" if "3.8" in path else "py")
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 2)
    yield bed
    bed.close()


def planned(bed: Bed, script: str, **fields: Any) -> dict[str, Any]:
    job = bed.job(script, 2, run_name="nightly", **fields)
    return {"name": "nightly", "cron": ["0 3 * * *"], "owner": "me", "jobs": [{**job, "rank": rank} for rank in (0, 1)]}


def fire(bed: Bed) -> subprocess.CompletedProcess[bytes]:
    """What the timer does."""
    return bed.nodes[0].runner("scheduled", "nightly")


def test_a_node_starts_the_gang_and_tells_when_and_what_became_of_it(bed: Bed) -> None:
    manifest = store(bed, tree(file("", b"data")), b"data")
    files = [{"manifest": manifest, "path": str(bed.base / "landed")}]
    due = bed.nodes[0].call("schedule", **planned(bed, "cat landed; echo rank $DSTACK_NODE_RANK", files=files))["next"]
    assert time.gmtime(due)[3:5] == (3, 0)
    (shown,) = bed.nodes[0].call("status", run=None)["ranks"]
    assert (shown["state"], shown["run_name"], shown["nodes_num"], shown["next_at"]) == ("scheduled", "nightly", 2, due)
    assert shown["message"].startswith("next at ")
    (bed.nodes[1].state / "blobs" / sha(b"data")).unlink()  # as after two weeks without use
    done = fire(bed)
    assert done.returncode == 0, done.stdout + done.stderr
    run = done.stdout.decode().split()[-1]
    bed.runs.append(run)
    assert bed.finish(run)["gang"]["state"] == "done"
    assert bed.nodes[1].log(run) == b"datarank 1\n"
    assert bed.nodes[0].rank("nightly")["run_id"] == run, "a name means the run, where there is one"
    shown = next(rank for rank in bed.nodes[0].call("status", run=None)["ranks"] if rank["state"] == "scheduled")
    assert "was started at" in shown["message"]
    assert bed.nodes[0].call("unschedule", name="nightly") == {"removed": ["nightly"]}
    assert bed.nodes[0].call("unschedule", name="nightly") == {"removed": []}
    assert fire(bed).returncode == 1


def test_a_time_is_missed_when_a_node_is_in_use_or_the_run_before_goes_on(bed: Bed) -> None:
    bed.nodes[0].call("schedule", **planned(bed, "sleep 1000"))
    bed.nodes[1].call("reserve", run_id=bed.job("")["run_id"], run_name="other", owner="ann", gpus="all", ttl=600)
    done = fire(bed)
    assert done.returncode == 1
    (shown,) = bed.nodes[0].call("status", run=None)["ranks"]
    assert "was missed at" in shown["message"]
    assert "n1: the node is in use by run other of ann" in shown["message"]
    assert bed.nodes[0].call("probe")["leases"] == [], "all nodes or none"
    other = bed.nodes[1].call("probe")["leases"][0]["run_id"]
    bed.nodes[1].call("release", run_id=other)
    run = fire(bed).stdout.decode().split()[-1]
    bed.runs.append(run)
    bed.running(run)
    assert b"the run before had not ended" in fire(bed).stdout
    bed.nodes[0].call("stop", run=run, abort=True)
    bed.finish(run)


def test_a_schedule_that_cannot_be_is_refused(bed: Bed) -> None:
    for fields in ({"cron": ["x"]}, {"cron": []}, {"name": "../x"}, {"jobs": []}, {"jobs": [{}]}):
        with pytest.raises(Refused):
            bed.nodes[0].call("schedule", **{**planned(bed, "true"), **fields})
    assert bed.nodes[0].call("status", run=None)["ranks"] == []
