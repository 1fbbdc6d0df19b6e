"""Every message of the catalogue has a fixture that it alone explains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lambdactl.nccl import catalogue
from lambdactl.nccl.catalogue import Explainer, explain, messages

FIXTURES = Path(__file__).parents[1] / "data/nccl/failures"


def test_catalogue_is_complete() -> None:
    ids = [message.id for message in messages()]
    assert len(ids) == len(set(ids)) >= 30
    assert {path.stem for path in FIXTURES.glob("*.txt")} == set(ids)
    assert {message.area for message in messages()} == {"nccl", "cuda", "openmpi", "ssh"}
    for message in messages():
        assert message.source.startswith("https://"), message.id
        assert message.cause.endswith((".", ")")), message.id
        assert message.remedy.endswith((".", ")")), message.id
        assert message.hides <= set(ids) - {message.id}, message.id


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.txt")), ids=lambda path: path.stem)
def test_fixture(path: Path) -> None:
    text = path.read_bytes()
    for log in (text, b"[1,3]<stderr>:" + text, b"0: " + text, text.replace(b"\n", b"\r\n")):
        (found,) = explain(log)
        assert found.id == path.stem
        assert found.line
        assert len(found.line) <= 200
        assert found.count >= 1


def test_consequences_are_hidden_and_lines_counted() -> None:
    text = "".join(
        (FIXTURES / f"{name}.txt").read_text() for name in ("nccl-shm-full", "nccl-system-error", "mpi-nonzero-exit")
    )
    (found,) = explain(text)
    assert (found.id, found.count) == ("nccl-shm-full", 2)


def test_healthy_output_explains_nothing() -> None:
    assert explain((FIXTURES.parent / "dstack-lambda-b200-2x8.txt").read_bytes()) == []


def test_stream_in_pieces_with_bounded_memory() -> None:
    text = (FIXTURES / "nccl-ib-timeout.txt").read_bytes()
    explainer = Explainer()
    for _ in range(3000):
        explainer.feed(text)
        assert explainer._size < catalogue._CHUNK + len(text)
    (found,) = explainer.close()
    assert found.count == 3000


def test_message_in_an_endless_line_and_across_pieces() -> None:
    explainer = Explainer()
    for piece in (b"x" * 400_000, b"Duplicate GPU", b" detected : rank 0", b"y" * 400_000):
        explainer.feed(piece)
    assert [found.id for found in explainer.close()] == ["nccl-duplicate-gpu"]


@pytest.mark.parametrize(
    "secret",
    [
        "HF_TOKEN=PLANTED",
        "password: PLANTED",
        "Authorization: Bearer PLANTED",
        "AWS_ACCESS_KEY=PLANTED",
        "api-key=PLANTED",
    ],
)
def test_secrets_beside_a_message(secret: str) -> None:
    (found,) = explain(f"node: {secret} Duplicate GPU detected : rank 0 {secret}\n")
    assert "PLANTED" not in found.line
    assert "Duplicate GPU detected" in found.line


def test_control_characters_do_not_come_out() -> None:
    (found,) = explain("\x1b]0;title\x07\x1b[2JDuplicate GPU detected : rank 0\x1b[31m\n")
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", found.line)
