"""Log bytes on their way to people."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdactl.run.follow import Cursor, Follower
from lambdactl.run.screen import LogOutput, Prefixer, TerminalFilter
from lambdactl.transport.api import Failure, Transport, TransportError

HARMLESS = [b"plain\n", b"\x1b[1;31mred\x1b[0m\n", b"50%\r100%\n", "déjà vu ✓\n".encode(), b"tab\there\n"]
HARMFUL = [
    (b"\x1b[2Jgone", b"gone"),
    (b"\x1b]0;title\x07after", b"after"),
    (b"\x1b]52;c;ZXZpbA==\x1b\\after", b"after"),
    (b"\x1bP$q\x1b\\x", b"x"),
    (b"\x1b[10;10Hx", b"x"),
    (b"\x1bcx", b"x"),
    (b"a\x08b\x7fc\x00d", b"abcd"),
    ("a\x9b2Jb".encode(), b"a2Jb"),
    (b"\x1b[?1049hx", b"x"),
    (b"\x1b(0x", b"x"),
]


@pytest.mark.parametrize("data", HARMLESS)
def test_ordinary_output_is_unchanged(data: bytes) -> None:
    screen = TerminalFilter()
    assert screen.feed(data) + screen.flush() == data


@pytest.mark.parametrize(("data", "shown"), HARMFUL)
def test_what_could_drive_the_terminal_is_removed(data: bytes, shown: bytes) -> None:
    screen = TerminalFilter()
    assert screen.feed(data) + screen.flush() == shown


@pytest.mark.parametrize(("data", "shown"), HARMFUL)
def test_also_when_it_arrives_byte_by_byte(data: bytes, shown: bytes) -> None:
    screen = TerminalFilter()
    assert b"".join(screen.feed(data[i : i + 1]) for i in range(len(data))) + screen.flush() == shown


@given(st.binary(max_size=400), st.integers(1, 20))
def test_no_escape_but_colours_ever_comes_through(data: bytes, step: int) -> None:
    screen = TerminalFilter()
    result = b"".join(screen.feed(data[i : i + step]) for i in range(0, len(data), step)) + screen.flush()
    for piece in result.split(b"\x1b")[1:]:
        assert piece[:1] == b"["
        assert piece[1:].lstrip(b"0123456789:;")[:1] == b"m"


@given(st.binary(max_size=400), st.lists(st.integers(1, 30), max_size=30))
def test_prefixes_keep_every_byte_and_mark_every_line(data: bytes, cuts: list[int]) -> None:
    prefixer, out, position = Prefixer(b"3: "), b"", 0
    for cut in [*cuts, len(data)]:
        out += prefixer.feed(data[position : position + cut])
        position += cut
    out += prefixer.flush()
    expected = data if not data or data.endswith(b"\n") else data + b"\n"
    assert out == b"".join(b"3: " + line + b"\n" for line in expected.split(b"\n")[:-1])


def test_ranks_are_prefixed_only_when_there_are_several(tmp_path: Path) -> None:
    stream = io.BytesIO()
    output = LogOutput([0], stream=stream)
    output.write(0, b"a\x1b[2Jb")
    output.flush(0)
    assert stream.getvalue() == b"a\x1b[2Jb", "a pipe gets the bytes as they are"
    stream = io.BytesIO()
    output = LogOutput([0, 10], stream=stream, directory=tmp_path)
    output.write(0, b"one\ntw")
    output.write(10, b"\xff\n")
    output.write(0, b"o")
    output.flush(0)
    output.flush(10)
    output.close()
    assert stream.getvalue() == b" 0: one\n10: \xff\n 0: two\n"
    assert (tmp_path / "rank-0.log").read_bytes() == b"one\ntwo"
    assert (tmp_path / "rank-10.log").read_bytes() == b"\xff\n"


def test_a_log_that_is_not_followed_is_not_waited_for() -> None:
    class Dead:
        tries = 0

        async def channel(self, name: str, command: str) -> None:
            self.tries += 1
            raise TransportError(Failure(name, "unreachable", f"{name} is dead.", "Wake it."))

        async def connect(self, names: list[str]) -> None: ...

    dead, told = Dead(), list[str]()
    output = LogOutput([0], stream=io.BytesIO())
    transport = cast(Transport, dead)
    follower = Follower(transport, "run", {0: "h0"}, output, show=[0], follow=False, notify=told.append)
    asyncio.run(follower.run())
    assert dead.tries == 1
    assert told == ["rank 0 on h0 does not answer any more (h0 is dead.); its log is incomplete here."]


def test_a_screen_that_is_gone_is_told_as_it_is() -> None:
    """Not in a group of errors, which nobody above would know."""

    class Gone(Follower):
        async def _rank(self, cursor: Cursor) -> None:
            if cursor.rank:
                await asyncio.Event().wait()
            raise BrokenPipeError

    output = LogOutput([0, 1], stream=io.BytesIO())
    follower = Gone(cast(Transport, None), "run", {0: "h0", 1: "h1"}, output, show=[0, 1])
    with pytest.raises(BrokenPipeError):
        asyncio.run(follower.run())
