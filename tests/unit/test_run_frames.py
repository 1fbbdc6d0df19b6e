"""The log stream's frames, however the network cuts them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdactl.errors import LambdactlError
from lambdactl.run.frames import Data, FrameParser, Gap, StateChange


def encode(pieces: list[bytes], state: dict[str, object]) -> bytes:
    stream, offset = b"", 0
    for piece in pieces:
        stream += b"D %d %d\n" % (offset, len(piece)) + piece
        offset += len(piece)
    return stream + b"G 5 9\n" + b"E " + json.dumps(state).encode() + b"\n"


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 50), max_size=40))
def test_any_cut_gives_the_same_bytes(pieces: list[bytes], cuts: list[int]) -> None:
    stream = encode(pieces, {"state": "done", "message": "é\n" * 200})
    parser, frames, position = FrameParser(), [], 0
    for cut in [*cuts, len(stream)]:
        frames += list(parser.feed(stream[position : position + cut]))
        position += cut
    assert b"".join(f.data for f in frames if isinstance(f, Data)) == b"".join(pieces)
    assert [f for f in frames if isinstance(f, Gap)] == [Gap(5, 9)]
    (final,) = [f for f in frames if isinstance(f, StateChange)]
    assert final.final
    assert final.state["message"] == "é\n" * 200


def test_offsets_follow_the_pieces() -> None:
    parser = FrameParser()
    frames = [*parser.feed(b"D 100 6\nabc"), *parser.feed(b"defD 106 1\nx")]
    assert frames == [Data(100, b"abc"), Data(103, b"def"), Data(106, b"x")]


@pytest.mark.parametrize(
    "stream",
    [
        b"Last login: today\n",
        b"D x 3\n",
        b"D 1\n",
        b"G 1\n",
        b"E nonsense\n",
        b"E []\n",
        b"D " + b"9" * 100,
        b"?" * (2 << 20),
    ],
)
def test_anything_else_is_one_clear_error(stream: bytes) -> None:
    with pytest.raises(LambdactlError, match="log stream is not understood"):
        list(FrameParser().feed(stream))
