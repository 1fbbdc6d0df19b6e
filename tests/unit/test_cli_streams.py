"""What the command line does when a standard stream is closed, full, or read no further."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)
LAMBDACTL = Path(sys.executable).with_name("lambdactl")
# By print, by rich's tables, and more than a pipe holds.
PRINTING = ("nccl parse --json {sample}", "fleet list", "schema task")


@pytest.fixture
def sample() -> Path:
    return Path(__file__).parents[1] / "data/nccl/dstack-lambda-b200-2x8.txt"


def words(line: str, sample: Path) -> list[str]:
    return [str(LAMBDACTL), *line.format(sample=sample).split()]


@pytest.mark.parametrize("line", PRINTING)
def test_a_reader_that_went_away_is_141_and_no_word(line: str, sample: Path, home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(words(line, sample), stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("line", PRINTING)
def test_a_stream_that_is_closed_is_nowhere(line: str, sample: Path, home: Path) -> None:
    for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *words(line, sample)], capture_output=True)
        assert done.returncode == 0
        assert done.stderr == b""
        assert (done.stdout == b"") == (closed != "2>&-" and closed != "<&-")


def test_an_error_never_goes_among_the_results(home: Path) -> None:
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", LAMBDACTL, "schema", "nothing"], capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_disk_that_is_full_is_one_sentence(home: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([LAMBDACTL, "schema", "task"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"lambdactl: No space left on device.\n")
