"""Failure messages of NCCL, CUDA, Open MPI and SSH with their causes and remedies (data/catalogue.yaml).

Memory is bounded whatever is fed: of each message only the first line that showed it, and a count, are kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

_EXCERPT = 200
_CARRY = 8192
_CHUNK = 1 << 18
# Lines with a match are shown: whatever looks like a secret in them is not.
_SECRET = re.compile(
    r"(?i)((?:[\w-]*(?:token|secret|passw(?:or)?d|passphrase|[_-]key|apikey|credential|auth(?:orization)?)[\w-]*)\s*[=:]\s*)"
    r"(?:bearer\s+)?\S+"
)
_JSON_TEXT = re.compile(r'"\s*[:,]\s*["\[{]')
_CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of the catalogue."""

    id: str
    area: str
    contains: tuple[bytes, ...]
    pattern: re.Pattern[str] | None
    cause: str
    remedy: str
    source: str
    hides: frozenset[str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a log's message means.

    Attributes:
        line: the first line with it, shortened, secrets removed; count: how many lines had it.
    """

    id: str
    area: str
    line: str
    count: int
    cause: str
    remedy: str
    source: str


@cache
def messages() -> tuple[Message, ...]:
    """The catalogue, in the order in which explanations are given."""
    text = files("lambdactl.nccl").joinpath("data/catalogue.yaml").read_text(encoding="utf-8")
    return tuple(
        Message(
            entry["id"], entry["area"], tuple(item.encode() for item in entry["contains"]),
            re.compile(entry["pattern"]) if "pattern" in entry else None,
            entry["cause"], entry["remedy"], entry["source"], frozenset(entry.get("hides", ())),
        )
        for entry in yaml.safe_load(text)["messages"]
    )  # fmt: skip


class Explainer:
    """Feed it a log in pieces of any size; `close()` gives the explanations, causes before consequences."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}
        self._pending: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """The next piece of the log."""
        self._pending.append(data)
        self._size += len(data)
        if self._size >= _CHUNK:
            self._flush(b"".join(self._pending), last=False)

    def close(self) -> list[Explanation]:
        """The end of the log."""
        self._flush(b"".join(self._pending), last=True)
        hidden = {other for message in messages() if message.id in self._found for other in message.hides}
        return [
            Explanation(m.id, m.area, *self._found[m.id], m.cause, m.remedy, m.source)
            for m in messages()
            if m.id in self._found and m.id not in hidden
        ]

    def _flush(self, data: bytes, *, last: bool) -> None:
        end = len(data) if last else data.rfind(b"\n") + 1
        if end == 0:  # one endless line: look at it, keep its end for what may straddle
            end = max(0, len(data) - _CARRY)
        self._search(data[:end])
        self._pending, self._size = [data[end:]], len(data) - end

    def _search(self, data: bytes) -> None:
        for message in messages():
            for at in sorted(_first_in_line(data, message.contains).values()):
                start = max(data.rfind(b"\n", 0, at) + 1, at - _CARRY)
                stop = data.find(b"\n", at)
                stop = min(len(data) if stop < 0 else stop, at + _CARRY)
                before = data[start:at].decode("utf-8", "replace")
                self._take(message, before + data[at:stop].decode("utf-8", "replace"), len(before))

    def _take(self, message: Message, line: str, at: int) -> None:
        match = message.pattern.search(line) if message.pattern else None
        if message.pattern is not None and match is None:
            return
        first, count = self._found.get(message.id, (_excerpt(line, min(match.start(), at) if match else at), 0))
        self._found[message.id] = (first, count + 1)


def _first_in_line(data: bytes, literals: tuple[bytes, ...]) -> dict[int, int]:
    """Line start -> where the first literal stands in that line."""
    found: dict[int, int] = {}
    for literal in literals:
        at = data.find(literal)
        while at >= 0:
            start = data.rfind(b"\n", 0, at) + 1
            found[start] = min(at, found.get(start, at))
            end = data.find(b"\n", at)
            at = data.find(literal, end) if end >= 0 else -1
    return found


def _excerpt(line: str, at: int) -> str:
    """The part of a line around a message, without controls and secrets."""
    if _JSON_TEXT.search(line):
        line = line[at:].split('"')[0]  # a JSON report: its environment stands in the same line
    elif at > _EXCERPT // 2:
        line = line[at:]
    clean = _SECRET.sub(r"\1***", _CONTROLS.sub("", line)).strip()
    return clean if len(clean) <= _EXCERPT else clean[: _EXCERPT - 3] + "..."


def explain(text: str | bytes) -> list[Explanation]:
    """The known causes in a log, or in the end of one. Raises nothing."""
    explainer = Explainer()
    explainer.feed(text.encode("utf-8", "replace") if isinstance(text, str) else text)
    return explainer.close()
