"""The field tables: what a key of a file may hold, read, described and documented from one declaration.

A file's model is a frozen dataclass whose fields are made by :func:`key`: kind of value, one-line description, default.
:class:`Struct` reads a mapping into it, and the same declaration gives the JSON Schema and the reference page.
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Generic, TypeVar

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .nodes import Problem, describe, entries, is_null, line_of, nearest, scalar, show

T = TypeVar("T")
Schema = dict[str, Any]


class Kind(ABC, Generic[T]):
    """What a value may be. ``label`` names it in the reference page; ``wanted`` ends "... must be ..."."""

    label: str
    wanted: str

    @abstractmethod
    def read(self, node: Node) -> T:
        """The value of a node; raises Problem."""

    @abstractmethod
    def schema(self, definitions: dict[str, Schema]) -> Schema:
        """JSON Schema of the value; structs put themselves into ``definitions`` and return a reference."""

    def structs(self) -> Sequence[Struct[Any]]:
        """The structs inside, for the reference page."""
        return ()

    def wrong(self, node: Node) -> Problem:
        return Problem(node, f"must be {self.wanted}, not {describe(node)}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a mapping: the table's row."""

    name: str
    kind: Kind[Any]
    doc: str
    required: bool
    nullable: bool
    default: Any
    default_text: str | None
    ours: bool


def key(
    kind: Kind[Any],
    doc: str,
    *,
    default: Any = None,
    default_text: str | None = None,
    required: bool = False,
    nullable: bool | None = None,
    ours: bool = False,
    secret: bool = False,
) -> Any:
    """Declares a dataclass field that is a key of the file.

    Args:
        kind: what the value may be.
        doc: one line for the reference page and for editors.
        default: the value when the key is absent, or null where null is allowed.
        default_text: the default as the reference page shows it, where it differs.
        required: the key must be there.
        nullable: null means absent. By default, where the default is None.
        ours: lambdactl's addition to dstack's grammar.
        secret: keep the value out of ``repr``.
    """
    meta = {
        "kind": kind,
        "doc": doc,
        "required": required,
        "nullable": default is None and not required if nullable is None else nullable,
        "default_text": default_text,
        "ours": ours,
    }
    if required:
        return dataclasses.field(metadata=meta, repr=not secret)
    return dataclasses.field(default=default, metadata=meta, repr=not secret)


@dataclass(frozen=True, slots=True)
class At:
    """Where a struct was read: for checks that look at several keys."""

    node: Node
    keys: Mapping[str, Node]

    def has(self, name: str) -> bool:
        """The file gives the key, and not as null."""
        return name in self.keys and not is_null(self.keys[name])

    def problem(self, name: str, text: str) -> Problem:
        """A problem with one of the keys (with the mapping itself when the file does not have the key)."""
        return Problem(self.keys.get(name, self.node), text).under(name)


class Struct(Kind[T]):
    """A mapping with known keys, read into a dataclass.

    The fields ``line`` (the mapping's line) and ``explicit`` (the keys that the file gives) are filled in where the
    dataclass has them; the others come from :func:`key`.

    Args:
        cls: the dataclass.
        title: what the mapping is called in the reference page.
        shorthand: reads a scalar in the mapping's place into the values of some of its keys.
        check: looks at the whole; may return another value; raises Problem.
        aliases: other spellings of keys (deprecated ones).
    """

    def __init__(
        self,
        cls: type[T],
        title: str,
        *,
        shorthand: Kind[dict[str, Any]] | None = None,
        check: Callable[[T, At], T] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.cls = cls
        self.title = title
        self.shorthand = shorthand
        self.check = check
        self.aliases = aliases or {}
        self.keys: dict[str, Key] = {}
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # T is always a dataclass here
        for field in sorted(fields, key=_rank(cls)):
            if "kind" in field.metadata:
                default = None if field.default is MISSING else field.default
                self.keys[field.name] = Key(name=field.name, default=default, **field.metadata)
        names = {field.name for field in fields}
        self._wants_line = "line" in names
        self._wants_explicit = "explicit" in names
        self._required = [row.name for row in self.keys.values() if row.required]
        self.label = f"[{title}](#{anchor(title)})"
        self.wanted = "a mapping" if shorthand is None else f"{shorthand.wanted}, or a mapping"
        if shorthand is not None:
            self.label = f"{shorthand.label} or {self.label}"

    def read(self, node: Node, **extra: Any) -> T:
        if isinstance(node, MappingNode):
            values, nodes = self.values(node)
        elif self.shorthand is not None and isinstance(node, ScalarNode):
            values, nodes = self.shorthand.read(node), {}
        else:
            raise self.wrong(node)
        if self._wants_line:
            extra["line"] = line_of(node)
        if self._wants_explicit:
            extra["explicit"] = frozenset(values)
        result = self.cls(**values, **extra)
        return result if self.check is None else self.check(result, At(node, nodes))

    def values(self, node: MappingNode) -> tuple[dict[str, Any], dict[str, Node]]:
        """The values of the keys that the mapping gives, and where they stand."""
        values: dict[str, Any] = {}
        nodes: dict[str, Node] = {}
        for written, key_node, value in entries(node):
            name = self.aliases.get(written, written)
            row = self.keys.get(name)
            if row is None:
                raise self._unknown(written, key_node)
            nodes[name] = value
            if row.nullable and is_null(value):
                continue
            try:
                values[name] = row.kind.read(value)
            except Problem as problem:
                raise problem.under(written) from None
        for name in self._required:
            if name not in values:
                raise Problem(node, "; it is required", before=f"'{name}' is missing")
        return values, nodes

    def _unknown(self, written: str, key_node: Node) -> Problem:
        meant = nearest(written, tuple(self.keys))
        help_ = f"; did you mean '{meant}'?" if meant else f"; allowed: {', '.join(self.keys)}"
        return Problem(key_node, help_, before=f"unknown key {show(written)}")

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        name = self.cls.__name__
        if name not in definitions:
            definitions[name] = {}  # held, for structs that contain themselves
            definitions[name] = self.object_schema(definitions)
        reference = {"$ref": f"#/$defs/{name}"}
        return reference if self.shorthand is None else {"anyOf": [self.shorthand.schema(definitions), reference]}

    def object_schema(self, definitions: dict[str, Schema]) -> Schema:
        properties = {row.name: _property(row, definitions) for row in self.keys.values()}
        for alias, name in self.aliases.items():
            properties[alias] = properties[name] | {"deprecated": True}
        schema: Schema = {
            "type": "object",
            "title": self.title,
            "properties": properties,
            "additionalProperties": False,
        }
        required = [name for name in self._required if name not in self.aliases.values()]
        return schema | {"required": required} if required else schema

    def structs(self) -> Sequence[Struct[Any]]:
        return (self,)


def _rank(cls: type[Any]) -> Callable[[dataclasses.Field[Any]], int]:
    """People look for ``type`` and ``name`` first, then for what is this mapping's own, then for what is shared."""
    layers = [inspect.get_annotations(layer) for layer in cls.__mro__]
    first = {"type": -2, "name": -1}
    return lambda field: first.get(field.name, next(i for i, names in enumerate(layers) if field.name in names))


def _property(row: Key, definitions: dict[str, Schema]) -> Schema:
    schema = row.kind.schema(definitions)
    if row.nullable:
        schema = (
            {"anyOf": [*schema["anyOf"], {"type": "null"}]}
            if set(schema) == {"anyOf"}
            else {"anyOf": [schema, {"type": "null"}]}
        )
    schema = schema | {"description": row.doc}
    if isinstance(row.default, str | int | float | bool):
        schema["default"] = row.default
    return schema


def anchor(title: str) -> str:
    """GitHub's anchor of a heading."""
    return title.lower().replace(" ", "-")


class ListOf(Kind[tuple[T, ...]]):
    """A list of values of one kind.

    Args:
        item: what each value is.
        least: the fewest that there may be.
        most: the most that there may be.
        single: one value may stand without a list.
        check: looks at the whole list; raises Problem.
    """

    def __init__(
        self,
        item: Kind[T],
        *,
        least: int = 0,
        most: int | None = None,
        single: bool = False,
        check: Callable[[tuple[T, ...], SequenceNode], None] | None = None,
    ) -> None:
        self.item = item
        self.least = least
        self.most = most
        self.single = single
        self.check = check
        self.label = f"{item.label}, or a list" if single else f"list of {item.label}"
        self.wanted = f"{item.wanted}, or a list of them" if single else "a list"

    def read(self, node: Node) -> tuple[T, ...]:
        if not isinstance(node, SequenceNode):
            if self.single and not is_null(node):
                return (self.item.read(node),)
            raise self.wrong(node)
        if len(node.value) < self.least:
            raise Problem(node, "must not be empty" if self.least == 1 else f"must have at least {self.least} items")
        if self.most is not None and len(node.value) > self.most:
            raise Problem(node, f"may have at most {self.most} item{'s' * (self.most > 1)}, not {len(node.value)}")
        read = self.item.read
        items: list[T] = []
        for child in node.value:
            try:
                items.append(read(child))
            except Problem as problem:
                raise problem.under(len(items)) from None
        result = tuple(items)
        if self.check is not None:
            self.check(result, node)
        return result

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        item = self.item.schema(definitions)
        schema: Schema = {"type": "array", "items": item}
        if self.least:
            schema["minItems"] = self.least
        if self.most is not None:
            schema["maxItems"] = self.most
        return {"anyOf": [item, schema]} if self.single else schema

    def structs(self) -> Sequence[Struct[Any]]:
        return self.item.structs()


class Either(Kind[Any]):
    """One of two kinds: scalars are read by the first, mappings (and lists) by the second."""

    def __init__(self, plain: Kind[Any], other: Kind[Any]) -> None:
        self.plain = plain
        self.other = other
        self.label = f"{plain.label} or {other.label}"
        self.wanted = f"{plain.wanted}, or {other.wanted}"

    def read(self, node: Node) -> Any:
        if isinstance(node, ScalarNode):
            tag, _ = scalar(node)
            if tag == "null":
                raise self.wrong(node)
            return self.plain.read(node)
        return self.other.read(node)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"anyOf": [self.plain.schema(definitions), self.other.schema(definitions)]}

    def structs(self) -> Sequence[Struct[Any]]:
        return (*self.plain.structs(), *self.other.structs())
