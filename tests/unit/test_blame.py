"""The blame logic on simulated clusters: right in at least 99 % of 1,000 seeded cases, silent on healthy ones."""

from __future__ import annotations

import random

import pytest

from lambdactl.validate.blame import Investigation, typical
from lambdactl.validate.simulate import Fault, draw, investigate
from lambdactl.validate.tournament import most_rounds, pack, schedule

CASES = 1000
FAULTS: tuple[Fault, ...] = ("node", "path", "leaf", "uplink")


def size(seed: int, least: int) -> int:
    """3 to 1,024 nodes, small fleets as often as large ones."""
    return round(least * (1024 / least) ** random.Random(seed).random())


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8, 9, 31, 64])
def test_rounds_are_disjoint_and_a_full_tournament_has_every_pair_once(nodes: int) -> None:
    seen: set[tuple[int, int]] = set()
    for pairs in schedule(nodes, nodes):
        met = [node for pair in pairs for node in pair]
        assert len(met) == len(set(met))
        assert not seen & set(pairs)
        seen |= set(pairs)
    assert len(seen) == nodes * (nodes - 1) // 2


@pytest.mark.parametrize("nodes", [4, 6, 16, 128])
def test_the_first_two_rounds_are_the_ring_in_rank_order(nodes: int) -> None:
    first, second, far = schedule(nodes, 3)
    assert {*first, *second} == {(0, nodes - 1)} | {(node, node + 1) for node in range(nodes - 1)}
    distances = sorted(min(b - a, nodes - b + a) for a, b in far)
    assert nodes < 16 or distances[len(distances) // 3] > nodes // 8


def test_packing_leaves_what_does_not_fit() -> None:
    assert pack([(0, 1), (1, 2), (2, 3), (0, 3)]) == ([(0, 1), (2, 3)], [(1, 2), (0, 3)])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_culprit_is_named(fault: Fault) -> None:
    least = 6 if fault in ("leaf", "uplink") else 3
    right = 0
    for seed in range(CASES):
        cluster = draw(seed, size(seed, least), fault)
        finding = investigate(cluster)
        assert finding.rounds <= most_rounds(cluster.nodes)
        right += cluster.judged_right(finding)
    assert right >= 0.99 * CASES


@pytest.mark.timeout(120)
def test_a_healthy_fleet_is_left_alone() -> None:
    right = 0
    for seed in range(CASES):
        cluster = draw(seed, size(seed, 2), "none")
        finding = investigate(cluster)
        assert finding.rounds <= most_rounds(cluster.nodes)
        right += cluster.judged_right(finding)
    assert right >= 0.99 * CASES


def test_two_nodes_are_not_told_apart() -> None:
    finding = Investigation(["a", "b"]).finding()
    assert (finding.blames, finding.rounds) == ((), 0)
    assert "each node alone" in finding.sentence


def test_the_evidence_names_the_proven_partners() -> None:
    finding = investigate(draw(1, 8, "node"))
    (blame,) = finding.blames
    assert len({line.split(":")[0] for line in blame.evidence}) >= 4  # three of the tournament, two proven nodes
    assert finding.sentence.startswith(f"To blame: node {blame.nodes[0]} (")


def test_a_pair_that_cannot_run_is_slow() -> None:
    investigation = Investigation([f"n{number}" for number in range(6)])
    while pairs := investigation.next_round():
        investigation.record({pair: None if 4 in pair else 700.0 for pair in pairs})
    assert [(blame.kind, blame.nodes) for blame in investigation.finding().blames] == [("node", ("n4",))]


def test_when_no_pair_runs_nobody_is_blamed() -> None:
    investigation = Investigation(["a", "b", "c", "d"])
    while pairs := investigation.next_round():
        investigation.record(dict.fromkeys(pairs))
    finding = investigation.finding()
    assert finding.blames == ()
    assert "common to all" in finding.sentence


def test_all_alike_slow_is_no_nodes_fault() -> None:
    investigation = Investigation(["a", "b", "c", "d"])
    while pairs := investigation.next_round():
        investigation.record(dict.fromkeys(pairs, 70.0))
    assert investigation.finding().sentence.startswith(
        "No node, path or group stands out: the pairs give about 70 GB/s"
    )


def test_two_bad_nodes_are_both_named() -> None:
    investigation = Investigation([f"n{number}" for number in range(16)])
    while pairs := investigation.next_round():
        investigation.record({pair: 350.0 if {3, 9} & set(pair) else 700.0 for pair in pairs})
    assert [(blame.kind, blame.nodes) for blame in investigation.finding().blames] == [
        ("node", ("n3",)),
        ("node", ("n9",)),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([0, 0], None), ([700, 350, 350], 700), ([700, 690, 710, 350, 340], 700), ([5], 5)],
)
def test_the_typical_pair(values: list[float], expected: float | None) -> None:
    assert typical(values) == expected
