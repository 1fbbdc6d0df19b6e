"""Lower rooms never import upper ones: the order written in docs/architecture.md, held by reading every import."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lambdactl"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Slow to import, and most commands do not need them.
HEAVY = {"aiohttp", "asyncssh", "ansible", "ansible_runner", "kubernetes", "matplotlib", "rich", "jinja2", "typer"}
# The grammar is typer's, and tables are rich's: only the command line prints.
HEAVY_ALLOWED = {"cli": {"rich", "typer"}, "__main__": {"rich", "typer"}}
# The parts of the runner that are used here, too, because they are the same on hosts and in clusters: the proxy's
# rules, and when a schedule is due. Both are pure.
SHARED = {f"lambdactl.node.{module}" for module in ("service_rules", "cron", "errors")}
# What runs where nothing can be installed: on nodes, and in any AWX execution environment.
STANDALONE = {"node": set(), "spec": {"yaml"}, "fleet": {"yaml"}}


@dataclass(frozen=True)
class Import:
    """One imported module, where, and whether importing the file imports it."""

    module: str
    line: int
    at_top: bool


def documented_order() -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    line = re.search(r"^ +errors < .*$", text, re.MULTILINE)
    assert line, "docs/architecture.md no longer says the import order"
    return [room.strip() for room in line.group().split("<")]


ORDER = documented_order()


def imports(path: Path) -> Iterator[Import]:
    yield from _imports(ast.parse(path.read_text()), path, at_top=True)


def _imports(tree: ast.AST, path: Path, *, at_top: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from_import(node, path, at_top=at_top)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(node, path, at_top=at_top and not inside)


def _from_import(node: ast.ImportFrom, path: Path, *, at_top: bool) -> Iterator[Import]:
    module = node.module or ""
    if node.level:
        parents = path.resolve().relative_to(ROOT).with_suffix("").parts
        base = parents[: len(parents) - node.level]
        module = ".".join([*base, *([module] if module else [])])
    if module == "lambdactl":
        yield from (Import(f"lambdactl.{alias.name}", node.lineno, at_top) for alias in node.names)
    else:
        yield Import(module, node.lineno, at_top)


def room(path: Path) -> str:
    """The room that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_room_is_in_the_documented_order() -> None:
    rooms = {room(path) for path in MODULES} - {"node", "__init__", "__main__"}
    assert sorted(rooms - set(ORDER)) == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_room_imports_only_lower_rooms(path: Path) -> None:
    here = room(path)
    wrong = []
    for found in imports(path):
        first, _, rest = found.module.partition(".")
        target = rest.partition(".")[0]
        if first != "lambdactl" or target in ("", here, "__version__"):
            continue
        if here in ("__main__",):
            allowed = target == "cli"
        elif here == "node" or target == "node":
            allowed = here == "backends" and found.module in SHARED
        else:
            allowed = here in ORDER and target in ORDER and ORDER.index(target) < ORDER.index(here)
        if not allowed:
            wrong.append(f"{name(path)}:{found.line} imports {found.module}")
    assert wrong == []


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loaded_with(path: Path, files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(module outside of this package, where it is imported) for all that importing a file imports, through our own."""
    waiting, seen = [path], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for found in imports(current):
            if not found.at_top:
                continue
            if found.module.partition(".")[0] != "lambdactl":
                yield found.module.partition(".")[0], f"{name(current)}:{found.line}"
                continue
            parts = found.module.split(".")
            packages = [".".join(parts[: length + 1]) for length in range(len(parts))]
            waiting += [files[package] for package in packages if package in files]


def doors() -> list[Path]:
    """What others import: each room's own module, and each command."""
    rooms = [path for path in MODULES if path.name == "__init__.py" or path.parent == PACKAGE]
    return [*rooms, *(path for path in MODULES if room(path) == "cli" and path not in rooms)]


@pytest.mark.parametrize("path", doors(), ids=name)
def test_a_door_opens_without_heavy_modules(path: Path) -> None:
    heavy = HEAVY - HEAVY_ALLOWED.get(room(path), set())
    files = {module_name(file): file for file in MODULES}
    wrong = [f"{where} imports {module}" for module, where in loaded_with(path, files) if module in heavy]
    assert wrong == []


@pytest.mark.parametrize("here", STANDALONE)
def test_what_runs_anywhere_needs_no_package(here: str) -> None:
    wrong = [
        f"{name(path)}:{found.line} imports {found.module}"
        for path in MODULES
        if room(path) == here
        for found in imports(path)
        if found.module.partition(".")[0] not in {"lambdactl", *STANDALONE[here], *sys.stdlib_module_names}
    ]
    assert wrong == []


def test_the_inventory_plugin_needs_only_yaml_and_ansible_itself() -> None:
    allowed = {"lambdactl", "ansible", "yaml", *sys.stdlib_module_names}
    ours = {f"lambdactl.{lower}" for lower in ("errors", "spec", "fleet")}
    for path in (ROOT / "inventory_plugins").glob("*.py"):
        for found in imports(path):
            where = f"{name(path)}:{found.line} imports {found.module}"
            assert found.module.partition(".")[0] in allowed, where
            if found.module.startswith("lambdactl.backends.kubernetes") and not found.at_top:
                continue  # a Kubernetes fleet needs the package kubernetes, and says so where it is missing
            if found.module.startswith("lambdactl."):
                assert ".".join(found.module.split(".")[:2]) in ours, where
