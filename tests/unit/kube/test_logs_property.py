"""A log that is cut anywhere, any number of times, comes through whole: by hypothesis, without a network."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdactl.backends.kubernetes import logs
from tests.fakes.kube.kubelet import stamped

NANO = 10**9
LINES = st.lists(
    st.tuples(
        st.integers(0, 4 * NANO).map(lambda step: step // NANO * NANO // 2 + step % 3),  # few times, many of them equal
        st.binary(max_size=30).map(lambda text: text.replace(b"\n", b"_")),
    ),
    max_size=30,
)


def server(lines: list[tuple[int, bytes]], since: float | None) -> bytes:
    """What the kubelet sends: every line that is not older, each by its own time."""
    return b"".join(stamped(at, text + b"\n") for at, text in lines if since is None or at >= int(since) * NANO)


@settings(max_examples=300, deadline=None)
@given(LINES, st.lists(st.floats(0, 1), max_size=6), st.integers(1, 50), st.data())
def test_nothing_is_lost_or_repeated(
    steps: list[tuple[int, bytes]], cuts: list[float], size: int, data: st.DataObject
) -> None:
    moment, lines = 1_800_000_000 * NANO, []
    for step, text in steps:
        moment += step
        # The two streams of a container may be up to a second out of order.
        lines.append((moment - data.draw(st.sampled_from([0, 0, 0, NANO // 3, NANO - 1])), text))
    reader: Any = logs._Reader(SimpleNamespace(namespace="n"), "p", None, None, None)
    got = b""
    for position in [*cuts, None]:
        since, again = reader._reopened()
        stream = server(lines, since)
        stream = stream if position is None else stream[: int(len(stream) * position)]
        for start in range(0, len(stream), size):
            got += reader._take(stream[start : start + size], again)
    assert got + reader.tail() == b"".join(text + b"\n" for _, text in lines)


@pytest.mark.parametrize("limit", [40, 100])
@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 200), max_size=5), cuts=st.lists(st.floats(0, 1), max_size=4))
def test_lines_longer_than_the_limit(limit: int, lengths: list[int], cuts: list[float]) -> None:
    lines = [(1_800_000_000 * NANO + number, bytes([65 + number]) * length) for number, length in enumerate(lengths)]
    before, logs.LONGEST_LINE = logs.LONGEST_LINE, limit
    try:
        reader: Any = logs._Reader(SimpleNamespace(namespace="n"), "p", None, None, None)
        got = b""
        for position in [*cuts, None]:
            since, again = reader._reopened()
            stream = server(lines, since)
            stream = stream if position is None else stream[: int(len(stream) * position)]
            for start in range(0, len(stream), 7):
                got += reader._take(stream[start : start + 7], again)
        assert got + reader.tail() == b"".join(text + b"\n" for _, text in lines)
    finally:
        logs.LONGEST_LINE = before


def test_the_kubelets_word_for_a_removed_container_is_no_line_of_the_log() -> None:
    reader: Any = logs._Reader(SimpleNamespace(namespace="n"), "p", None, None, None)
    line = b"2026-01-01T00:00:00.000000001Z the last\n"
    assert (
        reader._take(line + b"unable to retrieve container logs for containerd://e1255d8d", Counter()) == b"the last\n"
    )
    assert reader.tail() == b""
