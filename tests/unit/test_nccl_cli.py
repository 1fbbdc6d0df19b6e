"""`lambdactl nccl` as a program: what it prints where, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.nccl import samples
from tests.data.nccl.samples import GIB, REFERENCE, output

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/data/nccl/golden"
HARDWARE = ["--gpu", "B200", "--gpus-per-node", "8", "--nodes", "2", "--nic-gbps", "400", "--nics", "8"]


def nccl(*arguments: str, data: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "lambdactl", "nccl", *arguments],
        input=data.encode() if isinstance(data, str) else data, capture_output=True, cwd=ROOT, timeout=120, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    result = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in result.stderr
    return result


def pair(busbw: float, **more: object) -> str:
    return output({GIB: busbw * 0.97, 2 * GIB: busbw}, **more)  # type: ignore[arg-type]  # flags of any kind, by name


@pytest.mark.parametrize("name", ["parse", "verdict", "explain"])
def test_golden(name: str) -> None:
    """The text output, to the column."""
    arguments, data = {
        "parse": (["-"], REFERENCE),
        "verdict": (["-", *HARDWARE], REFERENCE),
        "explain": (["-"], (ROOT / "tests/data/nccl/failures/nccl-shm-full.txt").read_bytes()),
    }[name]
    done = nccl(name, *arguments, data=data)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == (GOLDEN / f"{name}.txt").read_text()


def test_parse_json_and_csv(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(REFERENCE)
    document = json.loads(nccl("parse", str(log), "--json").stdout)
    figures = document["tables"][0]["summary"]
    assert (figures["rows"], figures["ranks_inferred"], figures["peak"]["busbw"]) == (29, [16, 16], 702.91)
    assert round(figures["mean_busbw"], 3) == 137.178
    rows = list(csv.DictReader(io.StringIO(nccl("parse", str(log), "--csv").stdout)))
    assert len(rows) == 29
    assert rows[-1]["in_busbw"] == "702.91"


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (pair(703), 0, "PASS: "),
        (pair(200), 1, "FAIL: "),
        (pair(703, nodes=1), 1, "FAIL: a single-node run"),
        (pair(468), 10, "WARN: "),
        (output({GIB: 677.0}), 11, "no verdict: "),
    ],
)
def test_verdict_exit_codes(data: str, code: int, word: str) -> None:
    done = nccl("verdict", "-", *HARDWARE, data=data)
    assert done.returncode == code
    assert done.stdout.startswith(word)


def test_gpu_of_the_rank_lines() -> None:
    done = nccl("verdict", "-", *HARDWARE[2:], data=pair(703))
    assert (done.returncode, done.stdout[:6]) == (0, "PASS: ")
    done = nccl("verdict", "-", *HARDWARE[2:], data=pair(703, gpu="NVIDIA L40S"))
    assert (done.returncode, done.stdout[:12]) == (11, "no verdict: ")


def test_cpu_benchmark_gets_no_verdict() -> None:
    done = nccl("verdict", "-", "--gpus-per-node", "1", "--nodes", "2", data=samples.CPU_BENCHMARK)
    assert (done.returncode, done.stdout[:12]) == (11, "no verdict: ")


def test_verdict_json() -> None:
    document = json.loads(nccl("verdict", "-", *HARDWARE, "--json", data=REFERENCE).stdout)
    assert document["status"] == "PASS"
    assert document["bound"]["busbw"] == 750
    assert document["participation"]["ranks_seen"] == 16
    assert document["neighbours"][0]["source"].startswith("https://")


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (["parse", "/nonexistent/log"], b""), (["parse", "-"], b"hello"),
        (["parse", "-", "--json", "--csv"], REFERENCE),
        (["verdict", "-", *HARDWARE], b""), (["verdict", "-"], REFERENCE), (["parse"], b""),
        (["verdict", "-", "--gpus-per-node", "0", "--nodes", "2"], REFERENCE), (["explain", "/nonexistent/log"], b""),
        (["parse", "/"], b""),
    ],
)  # fmt: skip
def test_usage_errors_are_one_sentence(arguments: list[str], data: bytes) -> None:
    done = nccl(*arguments, data=data)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr


def test_output_without_a_row() -> None:
    done = nccl("parse", "-", data="# nccl-tests version 2.19.6 nccl-headers=22807 nccl-library=22807\n")
    assert done.returncode == 1
    assert "the test ended before its first measurement" in done.stderr


def test_explain_without_a_known_message() -> None:
    done = nccl("explain", "-", data=b"all is well\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "No known failure message found.\n"


def test_secrets_of_a_report() -> None:
    data = json.dumps(samples.report())
    for arguments in (
        ["parse", "-"],
        ["parse", "-", "--json"],
        ["parse", "-", "--csv"],
        ["verdict", "-", *HARDWARE, "--json"],
    ):
        done = nccl(*arguments, data=data)
        assert done.returncode == 0
        assert "PLANTED" not in done.stdout + done.stderr
