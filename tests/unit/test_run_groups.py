"""Groups: which host for which group, and what each rank is told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lambdactl import spec
from lambdactl.run import extras, groups


def task(*parts: dict[str, Any]) -> spec.TaskSpec:
    parsed = spec.loads(yaml.safe_dump({"type": "task", "groups": list(parts)}))
    assert isinstance(parsed, spec.TaskSpec)
    return parsed


def test_ranks_commands_ports_and_addresses_follow_the_groups() -> None:
    made = task(
        {"nodes": 2, "commands": ["a"], "ports": [1000]}, {"name": "w", "commands": ["b"], "ports": ["*:2000", 3000]}
    )
    assert [groups.commands(made, rank) for rank in range(3)] == [("a",), ("a",), ("b",)]
    assert [extras.ports(made, rank) for rank in range(3)] == [[[1000, 1000]], [], [[None, 2000], [3000, 3000]]]
    assert groups.addresses(made, ["x", "y", "z"]) == [["x", "y"], ["z"]]
    assert groups.of_rank(made, 3) is None
    plain = spec.loads("type: task\nnodes: 2\ncommands: [c]\nports: [80]\n", kind="task")
    assert isinstance(plain, spec.TaskSpec)
    assert groups.commands(plain, 1) == ("c",)
    assert [extras.ports(plain, rank) for rank in (0, 1)] == [[[80, 80]], []]
    assert groups.addresses(plain, ["x", "y"]) == [["x", "y"]]


@pytest.mark.parametrize(
    ("fits", "sizes", "wanted"),
    [
        (["abcd"], [2], ["ab"]),
        (["abcd", "abcd"], [1, 2], ["a", "bc"]),
        (["abc", "a"], [2, 1], ["bc", "a"]),
        (["ab", "bc", "cd"], [1, 2, 1], ["a", "bc", "d"]),
        (["ab", "ab"], [2, 1], None),
        (["a"], [2], None),
    ],
)
def test_hosts_for_groups(fits: list[str], sizes: list[int], wanted: list[str] | None) -> None:
    assert groups.assign(fits, sizes) == (None if wanted is None else [list(word) for word in wanted])


@given(
    fits=st.lists(st.sets(st.sampled_from("abcde")).map(sorted), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
def test_there_is_a_choice_whenever_there_can_be_one(fits: list[list[str]], sizes: list[int]) -> None:
    places = [fits[group] for group in range(len(fits)) for _ in range(sizes[group])]
    possible = len(places) <= 5 and any(
        all(host in place for host, place in zip(hosts, places, strict=True))
        for hosts in itertools.permutations("abcde", len(places))
    )
    found = groups.assign(fits, sizes[: len(fits)])
    assert (found is not None) == possible
    if found is not None:
        assert [len(hosts) for hosts in found] == sizes[: len(fits)]
        flat = [host for hosts in found for host in hosts]
        assert len(set(flat)) == len(flat)
        assert all(set(hosts) <= set(fits[group]) for group, hosts in enumerate(found))


def test_a_shortage_names_the_group() -> None:
    made = task({"name": "gpu", "nodes": 2, "commands": ["a"]}, {"commands": ["b"]})
    assert groups.shortage(made, [["x"], ["x", "y"]], [{"y": "has no GPU"}, {}]) == (
        "group gpu wants 2 nodes, 1 can take it: y has no GPU"
    )
    assert "want the same hosts" in groups.shortage(made, [["x", "y"], ["x", "y"]], [{}, {}])
