"""References to other nodes in commands: ``${{ groups[0].nodes[1].IP_ADDRESS }}``.

They are filled in once the addresses are known; here they are only held against the groups that the file declares.
Source: dstack's documentation of node groups; ``$${{ ... }}`` is an escape and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .engine import At
from .nodes import Problem, show
from .values import EnvVar

_ANY = re.compile(r"(?<!\$)\$\{\{\s*([^}]+?)\s*\}\}")
_ADDRESS = re.compile(r"groups\[(\d{1,9})\]\.(nodes|replicas)\[(\d{1,9})\]\.IP_ADDRESS", re.ASCII)


def _references(text: str) -> list[str]:
    names = (match[1].strip() for match in _ANY.finditer(text)) if "${{" in text else iter(())
    return [name for name in names if re.match(r"groups\b", name)]


def check_references(commands: Sequence[str], sizes: Sequence[int], member: str) -> str | None:
    """The predicate of the first reference that points at nothing, or None.

    Args:
        commands: the commands of one list.
        sizes: how many nodes (or replicas) each group surely has.
        member: ``nodes`` or ``replicas``: what the groups of this kind of file consist of.
    """
    for command in commands:
        for name in _references(command):
            match = _ADDRESS.fullmatch(name)
            if match is None or match[2] != member:
                return f"has the reference {show(name)}; it must be groups[i].{member}[j].IP_ADDRESS"
            group, index = int(match[1]), int(match[3])
            if group >= len(sizes) or index >= sizes[group]:
                return f"has the reference {show(name)}, which is beyond the groups of this file"
    return None


def check_no_references(env: Sequence[EnvVar], at: At) -> None:
    """References work in commands only."""
    for variable in env:
        if variable.value is not None and _references(variable.value):
            raise at.problem("env", f"has a groups reference in {show(variable.name)}; they work in commands only")


def unique_names(names: Sequence[str], at: At) -> None:
    """Every group of ``groups`` has a name of its own."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise (
                Problem(at.keys["groups"].value[index], f"has the name {show(name)} of an earlier group")
                .under(index)
                .under("groups")
            )
        seen.add(name)
