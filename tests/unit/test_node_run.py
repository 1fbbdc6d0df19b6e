"""One rank on one node: real processes under a temporary root."""
# ruff: noqa: E501 (tables of vectors read better in long lines)

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.node_bed import PYTHONS, Bed, Refused, kill

Make = Callable[[], Bed]


@pytest.fixture(params=PYTHONS, ids=lambda path: "py38" if "3.8" in path else "py")
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 1)
    yield bed
    bed.close()


@pytest.mark.parametrize(
    ("script", "state", "reason", "code"),
    [
        ("true", "done", "exited", 0),
        ("exit 7", "failed", "exited", 7),
        ("cd / && false && echo never", "failed", "exited", 1),
        ("kill -9 $$", "failed", "signalled", 137),
        ("kill -TERM $$", "failed", "signalled", 143),
        ("no-such-program-anywhere", "failed", "exited", 127),
    ],
)
def test_exit(bed: Bed, script: str, state: str, reason: str, code: int) -> None:
    run = bed.start(script)
    value = bed.finish(run)
    assert (value["state"], value["reason"], value["exit_code"]) == (state, reason, code)
    assert (value["gang"]["state"], value["gang"]["exit_code"]) == (state, code)
    assert value["gang"]["first_failed_rank"] == (None if code == 0 else 0)
    assert bed.nodes[0].call("probe")["leases"] == []


def test_output_is_a_terminal_with_unchanged_bytes(bed: Bed) -> None:
    run = bed.start(
        "test -t 1 && test -t 2 && ! test -t 0 && printf 'a\\nb\\r\\n\\000\\377{{ 7*7 }}${{ x }}' && echo >&2 err"
    )
    assert bed.finish(run)["state"] == "done"
    assert bed.nodes[0].log(run) == b"a\nb\r\n\0\xff{{ 7*7 }}${{ x }}err\n"


def test_environment(bed: Bed) -> None:
    hostile = 'it\'s "q"\n$(touch /nope) `x` \\ {{ y }} é'
    run = bed.start(
        "env -0; cat $DSTACK_MPI_HOSTFILE", env={"MY": hostile, "DSTACK_REPO_ID": "mine"}, mpi_network="10.0.0.0/8"
    )
    bed.finish(run)
    *pairs, hostfile = bed.nodes[0].log(run).decode().split("\0")
    env = dict(pair.split("=", 1) for pair in pairs)
    assert hostfile == "127.0.0.1\n"
    assert env["MY"] == hostile
    assert env["DSTACK_REPO_ID"] == "mine"
    expected = {
        "DSTACK_RUN_ID": run, "DSTACK_RUN_NAME": "test", "DSTACK_NODE_RANK": "0", "DSTACK_NODES_NUM": "1",
        "DSTACK_GPUS_PER_NODE": "0", "DSTACK_GPUS_NUM": "0", "DSTACK_NODES_IPS": "127.0.0.1", "DSTACK_NODE_IP": "127.0.0.1",
        "DSTACK_MASTER_NODE_IP": "127.0.0.1", "DSTACK_WORKING_DIR": str(bed.base), "DSTACK_REPO_DIR": str(bed.base),
        "OMPI_MCA_btl_tcp_if_include": "10.0.0.0/8", "PRTE_MCA_prte_if_include": "10.0.0.0/8",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "LC_LAMBDACTL_RUN": run,
    }  # fmt: skip
    assert {name: env.get(name) for name in expected} == expected
    assert {"DSTACK_JOB_ID", "DSTACK_MPI_HOSTFILE"} <= env.keys()
    assert os.stat(bed.nodes[0].run_dir(run) / "hostfile").st_mode & 0o777 == 0o644
    assert os.stat(bed.nodes[0].run_dir(run) / "job.json").st_mode & 0o777 == 0o600


def test_script_larger_than_one_argument(bed: Bed) -> None:
    run = bed.start(": " + "x" * 300_000 + "\necho end")
    assert bed.finish(run)["state"] == "done"
    assert bed.nodes[0].log(run) == b"end\n"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"user": "nobody-here"}, "user 'nobody-here' does not exist"),
        ({"shell": "/no/such/shell"}, "executing /no/such/shell: No such file or directory"),
        ({"working_dir": "/proc/1/nowhere/at/all"}, "entering the working directory /proc/1/nowhere/at/all"),
    ],
)
def test_start_fails_with_the_cause(bed: Bed, fields: dict[str, str], words: str) -> None:
    value = bed.finish(bed.start("true", **fields))
    assert (value["state"], value["reason"]) == ("failed", "start-failed")
    assert words in value["message"]
    assert "n0" in value["message"]


ORPHANS = """
setsid sleep 1000 &
(setsid sh -c 'trap "" INT TERM HUP; sleep 1001 & sleep 1002' &)
trap '' INT TERM
echo ready
"""


def test_stop_with_grace(bed: Bed) -> None:
    run = bed.start("trap 'echo bye; exit 3' INT; echo ready; while :; do sleep 0.05; done")
    bed.wait_log(run, b"ready")
    assert bed.nodes[0].call("stop", run="test", reason="stopped-by-user")["ranks"][0]["run_id"] == run
    value = bed.finish(run)
    assert (value["state"], value["reason"], value["exit_code"]) == ("stopped", "stopped-by-user", 3)
    assert value["gang"]["state"] == "stopped"
    assert bed.nodes[0].log(run).endswith(b"bye\n")


@pytest.mark.parametrize("request_", [{"grace": 0.2}, {"abort": True}], ids=["grace", "abort"])
def test_stop_kills_what_ignores_signals_and_orphans(bed: Bed, request_: dict[str, object]) -> None:
    run = bed.start(ORPHANS + "while :; do sleep 0.1; done")
    bed.wait_log(run, b"ready")
    assert len(bed.leftovers(run)) >= 4
    bed.nodes[0].call("stop", run=run, **request_)
    assert bed.finish(run)["state"] == "stopped"
    bed.no_leftovers(run)


def test_nothing_is_left_after_a_normal_end(bed: Bed) -> None:
    run = bed.start(ORPHANS + "exit 0")
    assert bed.finish(run)["state"] == "done"
    assert bed.leftovers(run) == []


def test_abort_hurries_a_stop(bed: Bed) -> None:
    run = bed.start("trap '' INT; echo ready; while :; do sleep 0.1; done", stop_grace=1000)
    bed.wait_log(run, b"ready")
    bed.nodes[0].call("stop", run=run)
    bed.until(run, 0, lambda value: value["state"] == "stopping")
    bed.nodes[0].call("stop", run=run, abort=True)
    assert bed.finish(run)["state"] == "stopped"
    bed.nodes[0].call("stop", run=run)  # nothing to do


def test_max_duration(bed: Bed) -> None:
    run = bed.start("trap '' INT; sleep 1000 & wait; sleep 1000", max_duration=0.3, stop_grace=0.2)
    value = bed.finish(run)
    assert (value["state"], value["reason"], value["exit_code"]) == ("failed", "max-duration", 124)
    assert (value["gang"]["state"], value["gang"]["reason"]) == ("failed", "max-duration")
    bed.no_leftovers(run)


def test_killed_supervisor(bed: Bed) -> None:
    run = bed.start(ORPHANS + "sleep 1000")
    bed.wait_log(run, b"ready")
    kill(bed.nodes[0].supervisor(run))
    value = bed.finish(run)
    assert (value["state"], value["reason"]) == ("failed", "runner-killed")
    assert value["gang"]["reason"] == "runner-killed"
    bed.no_leftovers(run)
    bed.nodes[0].call("reserve", run_id=run[:-1] + ("0" if run[-1] != "0" else "1"), run_name="next", gpus="all", ttl=9)


def test_reboot(bed: Bed) -> None:
    run = bed.start("sleep 1000")
    bed.running(run)
    kill(bed.nodes[0].supervisor(run))
    bed.no_leftovers(run)
    node = bed.nodes[0]
    bed.finish(run)
    bed.no_runner(run)  # the guard writes the state once more before it goes
    state_file = node.run_dir(run) / "state.json"
    state_file.write_text(state_file.read_text().replace('"failed"', '"running"').replace("runner-killed", "x"))
    node.close()
    node._serve = None
    node.env["LAMBDACTL_BOOT"] = "another boot"
    value = node.rank(run)
    assert (value["state"], value["reason"], value["gang"]["reason"]) == ("failed", "node-rebooted", "node-rebooted")
    assert node.call("probe")["leases"] == []


def test_upgrade_and_removal_of_the_runner_while_a_rank_runs(bed: Bed) -> None:
    run = bed.start("echo ready; while ! test -e go; do sleep 0.05; done; echo after; exit 5")
    bed.wait_log(run, b"ready")
    kept = bed.base / "kept.pyz"
    shutil.copy(bed.runner, kept)
    bed.runner.unlink()
    bed.runner.write_bytes(b"not a zip")
    (bed.base / "go").touch()
    bed.until(run, 0, lambda value: value["state"] == "failed")
    shutil.copy(kept, bed.runner)
    assert bed.finish(run)["exit_code"] == 5
    assert bed.nodes[0].log(run) == b"ready\nafter\n"


def test_start_twice_is_one_start(bed: Bed) -> None:
    job = bed.job("echo once; sleep 0.2")
    node = bed.nodes[0]
    node.call("reserve", run_id=job["run_id"], run_name="test", gpus="all")
    bed.runs.append(job["run_id"])
    for _ in range(3):
        assert node.call("start", job=job)["run_id"] == job["run_id"]
    bed.finish(job["run_id"])
    assert node.call("start", job=job)["state"] == "done"
    assert node.log(job["run_id"]) == b"once\n"


def test_start_needs_a_reservation(bed: Bed) -> None:
    with pytest.raises(Refused, match="no-reservation"):
        bed.nodes[0].call("start", job=bed.job("true"))
    assert bed.nodes[0].call("status", run=None) == {"ranks": []}


def test_names_mean_the_newest_run_and_finished_runs_can_be_forgotten(bed: Bed) -> None:
    node = bed.nodes[0]
    runs = [bed.start("echo first")]
    bed.finish(runs[0])
    runs.append(bed.start("echo second; sleep 1000"))
    bed.running(runs[1])
    assert node.rank("test")["run_id"] == runs[1]
    with pytest.raises(Refused, match="active"):
        node.call("forget", run="test")
    node.call("stop", run="test", abort=True)
    bed.finish(runs[1])
    bed.no_runner(runs[1])  # it says its last word a moment before it is gone
    node.call("forget", run="test")
    assert node.rank("test")["run_id"] == runs[0]
    assert node.call("gc", keep=0) == {"removed": [runs[0]]}
    assert node.call("status", run="test") == {"ranks": []}
    assert os.listdir(node.state / "runs") == []
