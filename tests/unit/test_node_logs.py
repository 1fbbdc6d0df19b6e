"""Logs: bytes in equal bytes out, whatever the size, the rotation, the readers, and how often these are cut off."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from lambdactl.node import logstore
from lambdactl.node.logstore import LogWriter
from lambdactl.run.frames import Data, FrameParser, Gap
from tests.unit.node_bed import PYTHONS, Bed, read_frames


def read_all(folder: str, offset: int, size: int = 1000) -> bytes:
    parts = [
        os.pread(descriptor, length, position) for descriptor, position, length in logstore.chunks(folder, offset, size)
    ]
    return b"".join(parts)


def test_rotation_keeps_the_newest_bytes_at_their_offsets(tmp_path: Path) -> None:
    folder, limit = str(tmp_path / "log"), 1 << 17
    writer, whole, source = LogWriter(folder, limit), b"", random.Random(1)
    for _ in range(2000):
        data = source.randbytes(source.randrange(1, 1000))
        writer.write(data)
        whole += data
    assert logstore.extent(folder) == (writer.start, len(whole))
    kept = len(whole) - writer.start
    assert limit - 2 * writer.segment_limit - 1000 <= kept <= limit + 1000
    for offset in (0, writer.start, writer.start + 1, len(whole) - 1, len(whole)):
        assert read_all(folder, offset) == whole[max(offset, writer.start) :]
    writer.close()
    again = LogWriter(folder, limit)
    again.write(b"more")
    assert read_all(folder, len(whole)) == b"more"


def test_since_is_early_never_late(tmp_path: Path) -> None:
    folder = str(tmp_path / "log")
    writer, moments = LogWriter(folder, 1 << 16), []
    for index in range(30):
        moments.append((time.time(), writer.size))
        writer.write(b"%d" % index * 3000)
        time.sleep(0.02)
    assert logstore.offset_since(folder, 0) == writer.start
    for moment, offset in moments:
        found = logstore.offset_since(folder, moment)
        assert found <= max(offset, writer.start)
        assert all(when <= moment + 0.001 for when, where in moments if writer.start < where <= found)
    assert logstore.offset_since(folder, time.time() + 9) > moments[-10][1]


def test_a_full_disk_drops_output_and_says_so(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import resource, sys, time
        sys.path.insert(0, sys.argv[2])
        from lambdactl.node import logstore
        logstore.RETRY_INTERVAL = 0.0
        writer = logstore.LogWriter(sys.argv[1], 1 << 20)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, hard))
        for _ in range(20):
            writer.write(b"x" * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        writer.write(b"after")
        print(writer.size, writer.dropped)
    """)
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "log"), root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, dropped = map(int, done.stdout.split())
    log = read_all(str(tmp_path / "log"), 0)
    assert len(log) == size
    assert log.startswith(b"x" * 10000)
    assert log.endswith(b"[lambdactl: the disk is full, %d bytes of output were dropped]\nafter" % dropped)


@pytest.fixture(params=PYTHONS[:1], ids=["py"])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path, request.param, 1)
    yield bed
    bed.close()


NUMBERS = "seq -f '%015.0f' {count} | cat"  # 16 bytes a line: the line's number tells its offset


def numbers_are_at_their_offsets(data: bytes, offset: int) -> bool:
    skip = -offset % 16
    lines = data[skip:].split(b"\n")[:-1]
    first = (offset + skip) // 16 + 1
    return lines == [b"%015d" % number for number in range(first, first + len(lines))]


class Reader:
    """Reads a `logs` stream to its end and keeps only what it adds up to: a test process must not grow with the log."""

    def __init__(self) -> None:
        self.digest, self.length, self.missed = hashlib.sha256(), 0, 0
        self.end: Mapping[str, Any] | None = None

    def read(self, stream: IO[bytes]) -> None:
        parser = FrameParser()
        while chunk := stream.read(1 << 20):
            for frame in parser.feed(chunk):
                if isinstance(frame, Data):
                    self.digest.update(frame.data)
                    self.length += len(frame.data)
                elif isinstance(frame, Gap):
                    self.missed += frame.end - frame.start
                elif frame.final:
                    self.end = frame.state


def test_many_readers_of_a_large_log_with_rotation(bed: Bed) -> None:
    node = bed.nodes[0]
    size = 300_000_000
    run = bed.start(f"while ! test -e go; do sleep 0.05; done; {NUMBERS.format(count=size // 16)}", log_limit=64 << 20)
    followers = [
        subprocess.Popen(node.argv("logs", run, "--follow"), env=node.env, stdout=subprocess.PIPE) for _ in range(2)
    ]
    stuck = subprocess.Popen(node.argv("logs", run, "--follow"), env=node.env, stdout=subprocess.PIPE)
    readers = [Reader() for _ in followers]
    threads = [
        threading.Thread(target=reader.read, args=(follower.stdout,))
        for reader, follower in zip(readers, followers, strict=True)
    ]
    for thread in threads:
        thread.start()
    (bed.base / "go").touch()
    value = bed.finish(run)  # the reader that never reads holds nothing up
    for thread in threads:
        thread.join()
    stuck.kill()
    stuck.wait()
    assert (value["state"], value["log_size"], value["log_dropped"]) == ("done", size, 0)
    assert size - value["log_start"] >= 50 << 20
    for reader, follower in zip(readers, followers, strict=True):
        assert follower.wait() == 0
        assert reader.length + reader.missed == size
        assert reader.end is not None
        assert reader.end["state"] == "done"
        if not reader.missed:
            assert reader.digest.digest() == expected_digest(size)
    late = read_frames(node.runner("logs", run).stdout)
    assert late["gaps"] == [(0, value["log_start"])]
    assert numbers_are_at_their_offsets(late["data"], value["log_start"])


def expected_digest(size: int) -> bytes:
    digest = hashlib.sha256()
    for start in range(1, size // 16 + 1, 100_000):
        stop = min(start + 100_000, size // 16 + 1)
        digest.update(b"".join(b"%015d\n" % number for number in range(start, stop)))
    return digest.digest()


def test_a_reader_that_is_cut_off_again_and_again_misses_nothing(bed: Bed) -> None:
    node, source = bed.nodes[0], random.Random(2)
    run = bed.start("for i in 1 2 3 4 5 6 7 8; do seq -f '%015.0f' $((i*20000-19999)) $((i*20000)); sleep 0.1; done")
    whole, ended = b"", False
    while not ended:
        reader = subprocess.Popen(
            node.argv("logs", "test", "--follow", "--offset", str(len(whole))), env=node.env, stdout=subprocess.PIPE
        )
        assert reader.stdout is not None
        stream = b""
        for _ in range(source.randrange(1, 12)):
            part = os.read(reader.stdout.fileno(), source.randrange(1, 200_000))
            stream += part
            if not part:
                break
        reader.kill()
        reader.wait()
        reader.stdout.close()
        frames = read_frames(stream)
        assert frames["gaps"] == []
        assert frames["offset"] in (None, len(whole))
        whole += frames["data"]
        ended = frames["end"] is not None
    assert len(whole) == 8 * 20000 * 16
    assert numbers_are_at_their_offsets(whole, 0)
    assert bed.finish(run)["state"] == "done"


def test_follow_is_live_and_ends_with_the_state(bed: Bed) -> None:
    node = bed.nodes[0]
    run = bed.start("echo one; while ! test -e go; do sleep 0.02; done; echo two; exit 4")
    reader = subprocess.Popen(node.argv("logs", run, "--follow"), env=node.env, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    seen = b""
    while b"one\n" not in seen:
        seen += os.read(reader.stdout.fileno(), 65536)
    (bed.base / "go").touch()
    seen += reader.stdout.read()
    assert reader.wait() == 0
    frames = read_frames(seen)
    assert frames["data"] == b"one\ntwo\n"
    assert frames["end"]["exit_code"] == 4
    assert frames["end"]["gang"]["exit_code"] == 4
    assert node.log(run, "--offset", "4") == b"two\n"
    assert node.log(run, "--since", str(time.time() + 60)) == b""


def test_a_follower_ends_when_its_client_goes(bed: Bed) -> None:
    node = bed.nodes[0]
    run = bed.start("sleep 1000")
    bed.running(run)
    reader = subprocess.Popen(node.argv("logs", run, "--follow"), env=node.env, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    os.read(reader.stdout.fileno(), 65536)
    reader.stdout.close()
    assert reader.wait(30) == 130


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing-here"], "there is no run nothing-here on this node"),
        (["../../etc/passwd"], "neither a run's name"),
        (["test", "--offset", "x"], "--offset takes a number"),
        (["test", "--offset", "-1"], "usage"),
        (["test", "--bogus"], "unknown argument"),
        ([], "usage"),
        (["test", "--offset", "999999"], "beyond the end"),
    ],
)
def test_wrong_requests_get_one_sentence(bed: Bed, args: list[str], words: str) -> None:
    bed.finish(bed.start("echo hi"))
    done = bed.nodes[0].runner("logs", *args)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(b"runner: ")
    assert words in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
