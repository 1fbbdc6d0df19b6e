"""Kinds of values that are mappings with the user's own keys: environment variables and tags."""

from __future__ import annotations

from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from .engine import Kind, Schema
from .kinds import Read, Text
from .nodes import Problem, entries, is_null, show
from .values import EnvVar, read_env


class Variables(Kind[tuple[EnvVar, ...]]):
    """Environment variables: a list of ``NAME=value`` and ``NAME``, or a mapping."""

    label = "list of `NAME=value` or `NAME`, or a mapping"
    wanted = "a list of NAME=value or NAME, or a mapping"

    def __init__(self) -> None:
        self._item = Read(read_env, "variable", "NAME=value or NAME", {"type": "string"})
        self._name = Text(r"[a-zA-Z_][a-zA-Z0-9_]*", "a variable's name (letters, digits, '_')")
        self._value = Text(wanted="text", secret=True)

    def read(self, node: Node) -> tuple[EnvVar, ...]:
        if isinstance(node, MappingNode):
            return self._mapping(node)
        if not isinstance(node, ScalarNode):
            return self._list(node)
        raise self.wrong(node)

    def _list(self, node: Node) -> tuple[EnvVar, ...]:
        found: dict[str, EnvVar] = {}
        for index, child in enumerate(node.value):
            try:
                variable = self._item.read(child)
                if variable.name in found:
                    raise _twice(child, variable.name)
            except Problem as problem:
                raise problem.under(index) from None
            found[variable.name] = variable
        return tuple(found.values())

    def _mapping(self, node: MappingNode) -> tuple[EnvVar, ...]:
        found: list[EnvVar] = []
        for name, key_node, value in entries(node):
            if self._name.pattern is not None and self._name.pattern.fullmatch(name) is None:
                raise Problem(
                    key_node, "; use letters, digits and '_'", before=f"{show(name)} is not a variable's name"
                )
            try:
                if is_null(value):
                    raise _no_value(value, name)
                found.append(EnvVar(name, self._value.read(value)))
            except Problem as problem:
                raise problem.under(name) from None
        return tuple(found)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        names = {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}
        items = {"type": "string", "pattern": r"^[a-zA-Z_][a-zA-Z0-9_]*(=|$)"}
        values = {"type": ["string", "number"]}
        return {
            "anyOf": [
                {"type": "array", "items": items},
                {"type": "object", "propertyNames": names, "additionalProperties": values},
            ]
        }


def _twice(node: Node, name: str) -> Problem:
    return Problem(node, f"gives the variable {show(name)} a second time; remove one")


def _no_value(node: Node, name: str) -> Problem:
    return Problem(node, f"has no value; write \"\" for an empty one, or use a list ('- {name}') to pass yours on")


class Table(Kind[dict[str, str]]):
    """A mapping of words to words, each held to a pattern."""

    def __init__(self, names: Text, values: Text, label: str) -> None:
        self.names = names
        self.values = values
        self.label = label
        self.wanted = "a mapping"

    def read(self, node: Node) -> dict[str, Any]:
        if not isinstance(node, MappingNode):
            raise self.wrong(node)
        found = {}
        for name, key_node, value in entries(node):
            if self.names.pattern is not None and self.names.pattern.fullmatch(name) is None:
                raise Problem(key_node, f"has the key {show(name)}; a key must be {self.names.wanted}")
            try:
                found[name] = self.values.read(value)
            except Problem as problem:
                raise problem.under(name) from None
        return found

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": self.names.schema({})["pattern"]},
            "additionalProperties": self.values.schema(definitions),
        }
