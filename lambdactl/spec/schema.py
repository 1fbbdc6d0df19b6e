"""JSON Schema and the reference page, both made from the field tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from lambdactl.errors import SpecError

from .engine import Key, Schema, Struct
from .load import FILES, KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_INTRODUCTION = """\
# The YAML files

This page is made from the field tables of `lambdactl/spec`; `lambdactl schema fleet` (or `task`,
`dev-environment`, `service`) prints the same as JSON Schema for editors. The files are dstack's, unchanged.
Fields marked with **+** are lambdactl's additions; none of them is ever needed.

- **Durations** are seconds, or a number with `s`, `m`, `h`, `d` or `w`: `90`, `90s`, `2h`. Where `off` is
  allowed, `false` is the same, and `true` is the default.
- **Sizes** are GB, or a number with `MB`, `GB` or `TB` in any case: `512MB`, `1.5TB`. A GB has 1024 MB.
- **Ranges** are `2..8`, `2..`, `..8`, or a bare value, which means exactly that value; `{min: 2, max: 8}` is
  the same as `2..8`.
- **GPUs** are parts with `:` between them, in any order: vendor (`nvidia`, `amd`, `google` or `tpu`, `intel`,
  `tenstorrent` or `tt`), names (`H100,H200`), memory with a unit (`80GB..`), count (`8`, `1..8`):
  `nvidia:B200:8`, `H100:80GB:1..2`.
- Unknown keys, and keys given twice, are errors. Text may be written as a number (`python: 3.10`), never as
  `yes`.
- Where dstack lets nonsense through, it is an error here: `true` as a number, negative or infinite sizes, fractions
  of seconds, ports beyond 65535, spaces or a leading `-` in host and login names.

"""


def json_schema(kind: str) -> Schema:
    """The JSON Schema (draft 2020-12) of a kind of file.

    Raises:
        SpecError: there is no such kind.
    """
    if kind not in FILES:
        raise SpecError(f"there is no schema for {kind!r}; allowed: {', '.join(KINDS)}")
    definitions: dict[str, Schema] = {}
    root = FILES[kind].object_schema(definitions)
    definitions.pop(FILES[kind].cls.__name__, None)
    return {"$schema": DIALECT, **root, "title": f"lambdactl {kind} file", "$defs": dict(sorted(definitions.items()))}


def reference_markdown() -> str:
    """The page docs/yaml.md: every field of every kind, with type, default and description."""
    parts = [_INTRODUCTION]
    nested: dict[str, Struct[Any]] = {}
    for kind, struct in FILES.items():
        parts.append(f"## {struct.title.capitalize()}\n\n`type: {kind}`\n\n{_table(struct)}\n")
        nested.update({inner.title: inner for inner in _nested(struct) if inner is not struct})
    parts.append("# Parts\n\n")
    parts.extend(f"## {title}\n\n{_summary(nested[title])}\n\n{_table(nested[title])}\n" for title in sorted(nested))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _nested(struct: Struct[Any]) -> Iterator[Struct[Any]]:
    for row in struct.keys.values():
        for inner in row.kind.structs():
            yield inner
            yield from _nested(inner)


def _summary(struct: Struct[Any]) -> str:
    lines = (struct.cls.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(lines.split()).replace("``", "`")


def _table(struct: Struct[Any]) -> str:
    rows = [f"| {_name(row)} | {row.kind.label} | {_default(row)} | {row.doc} |" for row in struct.keys.values()]
    return "\n".join(["| field | type | default | |", "|---|---|---|---|", *rows, ""])


def _name(row: Key) -> str:
    return f"`{row.name}`" + (" **+**" if row.ours else "")


def _default(row: Key) -> str:
    if row.required:
        return "**required**"
    if row.default_text is not None:
        return row.default_text
    if dataclasses.is_dataclass(row.default):
        return "its defaults"
    if isinstance(row.default, bool):
        return str(row.default).lower()
    if row.default is None or row.default == ():
        return "none"
    return f"`{row.default}`"
