"""From hostile text to YAML nodes with line numbers, or one sentence that says what is wrong.

The text is composed, never constructed: a node keeps the characters that the user wrote and the line where they stand,
so ``python: 3.10`` stays ``3.10``. libyaml is used where PyYAML was built with it. Depth is bounded while composing
(libyaml's composer recurses on the C stack), and what aliases expand to is bounded before anything walks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

if TYPE_CHECKING:
    _Base: TypeAlias = yaml.SafeLoader
else:
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64
"""Levels of nesting; dstack's deepest field sits on the eighth."""

EXPANSION = 4
"""What aliases may expand a file to: this many nodes per character (a file without aliases has at most two)."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{name}": name for name in ("str", "int", "float", "bool", "null")} | {
    # A date is text here, and so are the characters that YAML 1.1 gives a meaning of their own.
    f"{_TAG}{name}": "str"
    for name in ("timestamp", "value", "merge")
}
_COLLECTIONS = (f"{_TAG}seq", f"{_TAG}map")
_MERGE = f"{_TAG}merge"
_SHOWN = 60


class Problem(Exception):
    """What is wrong at one node. The path to it is filled in on the way up.

    Args:
        node: where; its first line is reported. None: no line is known.
        text: what follows the quoted path ("'ssh_config.port' <text>"), or the whole sentence at the top of the file.
        before: what stands before the path ("unknown key 'x'"); ``text`` then follows the path.
    """

    def __init__(self, node: Node | None, text: str, *, before: str | None = None) -> None:
        super().__init__(text)
        self.line: int | None = None if node is None else line_of(node)
        self.text = text
        self.before = before
        self.path: list[str | int] = []

    def under(self, key: str | int) -> Problem:
        """The same problem, seen from one level up."""
        self.path.append(key)
        return self

    def sentence(self) -> str:
        """The message: path and text, without file and line."""
        where = ""
        for step in reversed(self.path):
            where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
        if self.before is None:
            return f"'{where}' {self.text}" if where else self.text
        return f"{self.before} in {where}{self.text}" if where else f"{self.before}{self.text}"


def line_of(node: Node) -> int:
    """The 1-based line where a node starts."""
    return int(node.start_mark.line) + 1


def show(text: str) -> str:
    """A user's value for a message: quoted, control characters escaped, long ones shortened."""
    short = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
    return f"'{escape(short)}'"


def escape(text: str) -> str:
    """``text`` with everything that a terminal might act upon written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def describe(node: Node) -> str:
    """What a node is, for "..., not <this>": a shown value, or "a list", "a mapping", "empty"."""
    if isinstance(node, SequenceNode):
        return "a list"
    if isinstance(node, MappingNode):
        return "a mapping"
    tag, text = scalar(node)
    return "empty" if tag == "null" else text if tag == "bool" else show(text)


def scalar(node: Node) -> tuple[str, str]:
    """A scalar's type (str, int, float, bool or null) and its text as written.

    Raises:
        Problem: the node carries a tag of its own (``!vault``, ``!!binary``, ...).
    """
    tag = _SCALARS.get(node.tag)
    if tag is None:
        raise Problem(node, f"has {_tag_shown(node)}")
    return tag, node.value


def _tag_shown(node: Node) -> str:
    return f"the YAML tag {show(node.tag.removeprefix(_TAG))}, which has no meaning here; remove the tag"


def is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and _SCALARS.get(node.tag) == "null"


def entries(node: MappingNode) -> list[tuple[str, Node, Node]]:
    """The mapping's (key, key's node, value's node) in file order, with merge keys (``<<``) applied after the own ones.

    Raises:
        Problem: a key twice (both lines are named), or a key that is not a plain word.
    """
    own: dict[str, tuple[str, Node, Node]] = {}
    merged: list[Node] = []
    for key_node, value in node.value:
        if not isinstance(key_node, ScalarNode):
            raise Problem(key_node, "; a key must be a word", before=f"{describe(key_node)} cannot be a key")
        if key_node.tag == _MERGE:
            merged.append(value)
            continue
        key = key_node.value
        if key in own:
            first = line_of(own[key][1])
            problem = Problem(
                key_node, f" (first on line {first}); remove one", before=f"the key {show(key)} is given twice"
            )
            raise problem
        own[key] = (key, key_node, value)
    for value in merged:
        for base in value.value if isinstance(value, SequenceNode) else [value]:
            if not isinstance(base, MappingNode):
                raise Problem(base, "; only a mapping can be", before=f"{describe(base)} cannot be merged ('<<')")
            for entry in entries(base):
                own.setdefault(entry[0], entry)
    return list(own.values())


_TOO_DEEP = f"the file is nested more than {MAX_DEPTH} levels deep"


class _Loader(_Base):
    """Composes; refuses what is nested too deeply before the recursion can hurt."""

    depth = 0

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Problem(current_node, _TOO_DEEP)

    def ascend_resolver(self) -> None:
        self.depth -= 1


def compose(text: str) -> MappingNode:
    """The one mapping that ``text`` consists of.

    Raises:
        Problem: invalid YAML, not exactly one document, not a mapping, too deep, too large, or an alias bomb.
    """
    if len(text) > MAX_BYTES:
        raise Problem(None, f"the file is larger than {MAX_BYTES >> 20} MiB, which no fleet or run needs")
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _from_yaml(error, text) from None
    except yaml.reader.ReaderError as error:
        raise _unreadable(text, error.position) from None
    except UnicodeEncodeError as error:
        raise _unreadable(text, error.start) from None
    except (RecursionError, ValueError) as error:
        raise Problem(None, f"this is not valid YAML: {escape(str(error))[:200]}") from None
    if root is None or (isinstance(root, ScalarNode) and is_null(root)):
        raise Problem(None, "the file is empty; it must be a mapping that starts with 'type:'")
    if not isinstance(root, MappingNode):
        raise Problem(root, f"the file must be a mapping of keys to values, not {describe(root)}")
    if "*" in text:
        _refuse_bombs(root, EXPANSION * len(text))
    if "!" in text:
        _refuse_tags(root)
    return root


_PLAIN_WORDS = {
    "but found another document": "a second document starts here ('---'); put one document in a file",
    "cannot start any token": "a value cannot start with this character; put the value in quotes",
    # libyaml 0.2.6 and newer have a limit of their own, which a hostile file meets before ours.
    "exceeded maximum nesting depth": _TOO_DEEP,
    "mapping values are not allowed": "a ':' is not expected here; check the indentation, or put the value in quotes",
}
"""What YAML's own messages that users meet most often mean."""


def _from_yaml(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = f" {error.context}" if error.context else ""
    problem = Problem(None, f"this is not valid YAML: {escape(str(error.problem))}{escape(context)}")
    for phrase, meaning in _PLAIN_WORDS.items():
        if phrase in str(error.problem):
            problem = Problem(None, meaning)
    if mark is not None:
        problem.line = mark.line + 1
        line = text.split("\n", mark.line + 1)[mark.line] if mark.line <= text.count("\n") else ""
        indentation = line[: len(line) - len(line.lstrip())]
        if "\t" in indentation and mark.column <= len(indentation):
            problem.text = "a tab is used for indentation, which YAML does not allow; use spaces"
    return problem


def _unreadable(text: str, position: int) -> Problem:
    character = text[position : position + 1] or "\0"
    problem = Problem(None, f"the character U+{ord(character):04X} is not allowed in YAML; remove it")
    problem.line = text.count("\n", 0, position) + 1
    return problem


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, SequenceNode):
        yield from node.value


def _refuse_bombs(root: Node, limit: int) -> None:
    """Counts what the aliases expand to, visiting every node once."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        key = id(node)
        if done:
            sizes[key] = 1 + sum(sizes[id(child)] for child in _children(node))
            open_.discard(key)
            if sizes[key] > limit:
                raise Problem(
                    node, "the aliases ('*name') expand to far more than the file holds; write the values out"
                )
        elif key in open_:
            raise Problem(node, "an alias ('*name') refers to the value that contains it")
        elif key not in sizes:
            open_.add(key)
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node))


def _refuse_tags(root: Node) -> None:
    """Lists and mappings with a tag of their own (``!!python/...``); scalars tell theirs when they are read."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen or isinstance(node, ScalarNode):
            continue
        seen.add(id(node))
        if node.tag not in _COLLECTIONS:
            raise Problem(node, f"{describe(node)} has {_tag_shown(node)}")
        stack.extend(_children(node))


def nearest(word: str, allowed: Sequence[str]) -> str | None:
    """The allowed word that was probably meant, or None."""
    import difflib  # only needed once something is wrong

    folded = {candidate.lower().replace("-", "_"): candidate for candidate in allowed}
    match = difflib.get_close_matches(word[:_SHOWN].lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[match[0]] if match else None
