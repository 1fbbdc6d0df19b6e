"""The runner's stand-ins for heavy modules say what these say."""

from __future__ import annotations

import glob
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lambdactl.node import light, paths, spec
from tests.unit.node_bed import PYTHONS

VALUES: list[Any] = [
    {}, [], "", None, True, 0, -1.5, 1e300, float("inf"), "\u00e4\ud83d\ude00\ud800\x00\"\\",
    {"a": [1, {"b": (2, 3)}]}, {1: 2, None: 3},
]  # fmt: skip
WRONG = ["", "{", "[1,", "{} {}", "nul", "1e", '"abc', '{"a" 1}', "\ud800", b"\xff"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_json_is_written_and_read_as_json_does(value: Any) -> None:
    assert light.dumps(value) == json.dumps(value)
    assert light.compact(value) == json.dumps(value, separators=(",", ":"))
    assert light.loads(f" {json.dumps(value)}\n".encode()) == json.loads(json.dumps(value))


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_no_json_is_a_value_error_also_while_json_is_not_loaded(python: str) -> None:
    program = (
        "import sys; sys.path.insert(0, %r)\nfrom lambdactl.node import light\nassert 'json' not in sys.modules\n"
        "assert light.loads('[1]') == [1] and 'json' not in sys.modules\n"
        "for text in %r:\n try: light.loads(text)\n except ValueError: continue\n else: raise SystemExit(repr(text))\n"
        "try: light.loads('[' * 100000)\nexcept RecursionError: print('well')"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([python, "-I", "-S", "-c", program % (root, WRONG)], capture_output=True, text=True)
    assert done.stdout == "well\n", done


def test_what_cannot_be_json_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        light.dumps({"a": set()})


WORDS = [
    "", "a", "A", "-a", "a-", "a_b", "9", "a" * 64, "a" * 65, "a" * 100, "a" * 101, "a b", "a\n", "a:b", "a:", ":a",
    "a:b:c", "a.b", "10.0.0.1", "fe80::1%eth0", ".a", "\u00e4", "\u0663", "_a", "a" * 32 + ":b", "a" * 33,
    "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000A",
    "0000000-00000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000a\n",
]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "check"),
    [
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", paths.is_run_id),
        (r"[a-z0-9][a-z0-9-]{0,99}", paths.is_run_name),
        (r"[a-z][a-z0-9_]{0,63}", paths.is_role_name),
        (r"[a-zA-Z_][a-zA-Z0-9_]*", spec.is_env_name),
        (r"[0-9A-Za-z][0-9A-Za-z.:%-]{0,253}", spec.is_address),
        (r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?", spec.is_user),
    ],
)
@pytest.mark.parametrize("word", WORDS)
def test_checks_by_hand_pass_what_their_patterns_pass(pattern: str, check: Any, word: str) -> None:
    assert check(word) == bool(re.fullmatch(pattern, word, re.ASCII))


def test_a_pattern_is_a_regular_expression() -> None:
    pattern = light.Pattern(r"^a (\w)$", "MULTILINE", "ASCII")
    assert pattern.findall("a b\na c\n") == ["b", "c"]
    assert pattern.search("x") is None


def test_names_are_those_that_a_glob_finds(tmp_path: Path) -> None:
    for name in ("node0", "node1", "has_cpu", ".node2"):
        (tmp_path / name).touch()
    assert light.named(str(tmp_path), "node") == sorted(glob.glob(f"{tmp_path}/node*"))
    assert light.named(str(tmp_path), end="cpu") == glob.glob(f"{tmp_path}/*cpu")
    assert light.named(str(tmp_path / "none")) == []


def test_the_light_modules_load_no_heavy_ones() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r}); before = set(sys.modules)\n"
    )
    program += "from lambdactl.node import light, sockets\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    own = {"lambdactl", "lambdactl.node", "lambdactl.node.light", "lambdactl.node.sockets"}
    assert set(done.stdout.split()) - own <= {"__future__", "_json", "_socket"}
