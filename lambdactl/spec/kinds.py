"""Kinds of scalar values: text, numbers, switches, choices, durations, and what a little language reads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from yaml.constructor import SafeConstructor
from yaml.nodes import Node, ScalarNode

from .engine import Kind, Schema
from .nodes import Problem, describe, is_null, nearest, scalar, show
from .values import DURATION, read_duration

T = TypeVar("T")
_NUMBERS = SafeConstructor()
_TRUE = frozenset({"true", "yes", "on", "1", "t", "y"})
_FALSE = frozenset({"false", "no", "off", "0", "f", "n"})


def whole_text(text: str) -> str:
    """A YAML integer (``0x10``, ``1_000``) in plain decimal digits; what looks like a time (``80:22``) as written."""
    if ":" in text or len(text) > 40:
        return text
    return str(_NUMBERS.construct_yaml_int(ScalarNode("tag:yaml.org,2002:int", text)))


class Read(Kind[T]):
    """What a reader of :mod:`.values` makes of the text of a string or a number.

    Args:
        reader: text -> value; its ValueError is a predicate ("must be ...").
        label: for the reference page.
        wanted: for values that are no text at all: "must be <wanted>, not a list".
        schema: JSON Schema of what the file may hold.
    """

    def __init__(self, reader: Callable[[str], T], label: str, wanted: str, schema: Schema) -> None:
        self.reader = reader
        self.label = label
        self.wanted = wanted
        self._schema = schema

    def read(self, node: Node) -> T:
        if not isinstance(node, ScalarNode):
            raise self.wrong(node)
        tag, text = scalar(node)
        if tag in ("bool", "null"):
            raise self.wrong(node)
        try:
            return self.reader(whole_text(text) if tag == "int" else text)
        except ValueError as error:
            raise Problem(node, str(error)) from None

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return dict(self._schema)


class Text(Kind[str]):
    """Text; numbers are taken as they are written, booleans are not (``yes`` could mean two things).

    Args:
        pattern: the whole text must match.
        wanted: what is wanted when the pattern does not match.
        check: looks at the text; raises ValueError with a predicate.
        secret: never show the value in a message.
    """

    label = "text"

    def __init__(
        self,
        pattern: str | None = None,
        wanted: str = "text",
        *,
        label: str = "text",
        most: int | None = None,
        check: Callable[[str], str] | None = None,
        secret: bool = False,
    ) -> None:
        self.pattern = None if pattern is None else re.compile(pattern, re.ASCII)
        self.wanted = wanted
        self.label = label
        self.most = most
        self.check = check
        self.secret = secret

    def read(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self.wrong(node)
        tag, text = scalar(node)
        if tag == "bool":
            raise Problem(node, f"must be {self.wanted}; write {show(text)} in quotes if you mean the word")
        if tag == "null":
            raise self.wrong(node)
        if "\0" in text:
            raise Problem(node, "must not contain a NUL character")
        if self.pattern is not None and self.pattern.fullmatch(text) is None:
            raise Problem(node, f"must be {self.wanted}" + ("" if self.secret else f", not {describe(node)}"))
        if self.most is not None and len(text) > self.most:
            raise Problem(node, f"may have at most {self.most} characters, not {len(text)}")
        if self.check is None:
            return text
        try:
            return self.check(text)
        except ValueError as error:
            raise Problem(node, str(error)) from None

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        schema: Schema = {"type": ["string", "number"]}
        if self.pattern is not None:
            schema["pattern"] = f"^(?:{self.pattern.pattern})$"
        if self.most is not None:
            schema["maxLength"] = self.most
        return schema


class Whole(Kind[int]):
    """A whole number within bounds (both included)."""

    def __init__(self, least: int, most: int | None = None, *, what: str = "a whole number") -> None:
        self.least = least
        self.most = most
        self.label = "whole number"
        self.wanted = f"{what} of at least {least}" if most is None else f"{what} from {least} to {most}"

    def read(self, node: Node) -> int:
        if not isinstance(node, ScalarNode):
            raise self.wrong(node)
        tag, text = scalar(node)
        if tag in ("bool", "null"):
            raise self.wrong(node)
        digits = whole_text(text) if tag == "int" else text.strip().removesuffix(".0")
        if re.fullmatch(r"[-+]?\d{1,19}", digits, re.ASCII) is None:
            raise self.wrong(node)
        value = int(digits)
        if value < self.least or (self.most is not None and value > self.most):
            raise self.wrong(node)
        return value

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        bounds: Schema = {"minimum": self.least} | ({} if self.most is None else {"maximum": self.most})
        return {"anyOf": [{"type": "integer", **bounds}, {"type": "string", "pattern": r"^\d+$"}]}


class Number(Kind[float]):
    """A finite number within bounds."""

    label = "number"

    def __init__(
        self, wanted: str, *, above: float | None = None, least: float | None = None, most: float | None = None
    ) -> None:
        self.wanted = wanted
        self.above = above
        self.least = least
        self.most = most

    def read(self, node: Node) -> float:
        if not isinstance(node, ScalarNode):
            raise self.wrong(node)
        tag, text = scalar(node)
        if tag in ("bool", "null"):
            raise self.wrong(node)
        try:
            value = float(whole_text(text) if tag == "int" else text)
        except ValueError:
            raise self.wrong(node) from None
        if (
            not math.isfinite(value)
            or (self.above is not None and value <= self.above)
            or (self.least is not None and value < self.least)
            or (self.most is not None and value > self.most)
        ):
            raise self.wrong(node)
        return value

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        bounds = {"exclusiveMinimum": self.above, "minimum": self.least, "maximum": self.most}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        return {"anyOf": [{"type": "number", **given}, {"type": "string"}]}


class Switch(Kind[bool]):
    """true or false."""

    label = "true or false"
    wanted = "true or false"

    def read(self, node: Node) -> bool:
        if isinstance(node, ScalarNode):
            word = scalar(node)[1].lower()
            if word in _TRUE:
                return True
            if word in _FALSE:
                return False
        raise self.wrong(node)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"type": "boolean"}


class Choice(Kind[str]):
    """One of a few words."""

    def __init__(self, *words: str, aliases: Mapping[str, str] | None = None) -> None:
        self.words = words
        self.aliases = aliases or {}
        self.label = ", ".join(f"`{word}`" for word in words)
        self.wanted = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"

    def read(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self.wrong(node)
        text = scalar(node)[1]
        text = self.aliases.get(text, text)
        if text in self.words:
            return text
        meant = None if is_null(node) else nearest(text, self.words)
        raise Problem(
            node,
            f"{self.wrong(node).text}"
            + (f"; did you mean '{meant}'?" if meant and text[:1].isalpha() and len(self.words) > 4 else ""),
        )

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        numbers = [float(word) for word in self.words if word[:1].isdigit()]  # 3.10 without quotes is the number 3.1
        return {"enum": [*self.words, *self.aliases, *numbers]}


class Blocks(Kind[int | str]):
    """How many blocks a host is divided into: a number, or ``auto``."""

    label = "whole number or `auto`"
    wanted = "auto, or a whole number of at least 1"

    def read(self, node: Node) -> int | str:
        if isinstance(node, ScalarNode) and node.value == "auto":
            return "auto"
        try:
            return Whole(1).read(node)
        except Problem:
            raise self.wrong(node) from None

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"anyOf": [{"const": "auto"}, *Whole(1).schema(definitions)["anyOf"]]}


class Duration(Kind[int]):
    """Seconds."""

    label = "duration"
    wanted = DURATION

    def __init__(self, *, least: int = 0, among: tuple[int, ...] = ()) -> None:
        self.least = least
        self.among = among

    def read(self, node: Node) -> int:
        if not isinstance(node, ScalarNode):
            raise self.wrong(node)
        tag, text = scalar(node)
        if tag in ("bool", "null"):
            raise self.wrong(node)
        try:
            seconds = read_duration(whole_text(text) if tag == "int" else text)
        except ValueError as error:
            raise Problem(node, str(error)) from None
        if seconds < self.least:
            raise Problem(node, f"must be at least {self.least}s, not {describe(node)}")
        if self.among and seconds not in self.among:
            words = ", ".join(f"{value}s" for value in self.among)
            raise Problem(node, f"must be one of {words}, not {describe(node)}")
        return seconds

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {
            "anyOf": [{"type": "integer", "minimum": self.least}, {"type": "string", "pattern": r"^\d+ *[smhdw]?$"}]
        }


class OffDuration(Kind[int | None]):
    """Seconds, or ``off`` / false (None); true means the default.

    Args:
        default: what true (and an absent key) means; None is off.
        negative: a negative number also means off, as dstack has it for ``idle_duration``.
    """

    label = "duration or `off`"
    wanted = f"{DURATION}, or off"

    def __init__(self, default: int | None, *, negative: bool = False) -> None:
        self.default = default
        self.negative = negative

    def read(self, node: Node) -> int | None:
        if not isinstance(node, ScalarNode):
            raise self.wrong(node)
        tag, text = scalar(node)
        if tag == "bool":
            return self.default if text.lower() in _TRUE else None
        if text == "off" or (self.negative and re.fullmatch(r"-\d{1,12}", text, re.ASCII)):
            return None
        try:
            return read_duration(whole_text(text) if tag == "int" else text)
        except ValueError:
            raise self.wrong(node) from None

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        pattern = r"^(?:off|\d+ *[smhdw]?)$"
        least = {} if self.negative else {"minimum": 0}
        return {"anyOf": [{"type": "integer", **least}, {"type": "boolean"}, {"type": "string", "pattern": pattern}]}
