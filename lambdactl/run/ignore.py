"""What `.gitignore` and `.dstackignore` leave out of a folder that is uploaded.

The rules are Git's (gitignore(5)): the last pattern that matches decides, a file in a deeper folder comes after one
above it, and what is below an ignored folder stays ignored. `.dstackignore` is read after `.gitignore`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FILES = (".gitignore", ".dstackignore")


@dataclass(frozen=True)
class Rule:
    """One pattern; `matches` is held against a path relative to the pattern's folder."""

    matches: re.Pattern[str]
    negated: bool
    folders_only: bool


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of one file's text; a pattern that cannot be read matches nothing, as in Git."""
    return tuple(rule for line in text.splitlines() if (rule := _rule(line)) is not None)


def _rule(line: str) -> Rule | None:
    if not line.strip() or line.startswith("#"):
        return None
    line = re.sub(r"(?<!\\)[ \t]+$", "", line)
    negated = line.startswith("!")
    pattern = line[1:] if negated else line
    folders_only = pattern.endswith("/")
    pattern = pattern.rstrip("/") if folders_only else pattern
    anchored = "/" in pattern
    pattern = pattern.removeprefix("/")
    if not pattern:
        return None
    prefix = "" if anchored else "(?:.*/)?"
    try:
        return Rule(re.compile(f"(?s:{prefix}{_translate(pattern)})"), negated, folders_only)
    except re.error:
        return None


def _translate(pattern: str) -> str:
    """A pattern as a regular expression: `*` and `?` stay within a folder, `**` between slashes spans any number."""
    found, position = [], 0
    while position < len(pattern):
        rest = pattern[position:]
        character = pattern[position]
        at_start = position == 0 or pattern[position - 1] == "/"
        if at_start and rest.startswith("**/"):
            found.append("(?:.*/)?")
            position += 3
        elif at_start and rest == "**":
            found.append(".*")
            position += 2
        elif character == "*":
            found.append("[^/]*")
            position += len(rest) - len(rest.lstrip("*"))
        elif character == "?":
            found.append("[^/]")
            position += 1
        elif character == "[" and (match := re.match(r"\[([!^]?)(\]?(?:\\.|\[:\w+:\]|[^\]\\])*)\]", rest)):
            found.append(f"(?!/)[{'^' if match[1] else ''}{_members(match[2])}]")
            position += len(match[0])
        elif character == "\\" and len(rest) > 1:
            found.append(re.escape(rest[1]))
            position += 2
        else:
            found.append(re.escape(character))
            position += 1
    return "".join(found)


_CLASSES = {
    "alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z", "space": r"\s",
    "punct": r"!-/:-@\[-`{-~", "xdigit": "0-9a-fA-F",
}  # fmt: skip


def _members(text: str) -> str:
    text = re.sub(r"\[:(\w+):\]", lambda match: _CLASSES.get(match[1], ""), text)
    return re.sub(r"(?<!\\)([\[\]^&~|])", r"\\\1", text)


class Ignore:
    """The rules that hold in one folder: its own after those of the folders above it."""

    def __init__(self, above: Ignore | None, prefix: str, rules: tuple[Rule, ...]) -> None:
        self._above = above
        self._prefix = prefix
        self._rules = rules

    @classmethod
    def of(cls, folder: Path, relative: str, above: Ignore | None) -> Ignore:
        """Read a folder's own files; `relative` is its path below the folder that is uploaded ("" for that one)."""
        rules: list[Rule] = []
        for name in FILES:
            try:
                rules += parse((folder / name).read_text(encoding="utf-8", errors="surrogateescape"))
            except OSError:
                continue
        return cls(above, f"{relative}/" if relative else "", tuple(rules))

    def ignores(self, path: str, *, folder: bool) -> bool:
        """Whether a path below the uploaded folder is left out; its own folder is not ignored."""
        return bool(self._verdict(path, folder=folder))

    def _verdict(self, path: str, *, folder: bool) -> bool | None:
        within = path.removeprefix(self._prefix)
        for rule in reversed(self._rules):
            if (folder or not rule.folders_only) and rule.matches.fullmatch(within):
                return not rule.negated
        return None if self._above is None else self._above._verdict(path, folder=folder)
