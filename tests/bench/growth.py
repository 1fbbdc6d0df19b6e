"""What of a growth from 8 to 32 nodes is the bed's: its nodes share this machine's cores, and log in on them.

Three figures stand beside a growth. None of them is the goal's; they say what it is made of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench import rows_apply
from tests.bench.results import Group, Results

FEW, MANY = 8, 32
TITLES = {"noop": "no-op `apply`", "launch": "`apply -f task` to the first command"}


@dataclass(frozen=True)
class Growth:
    """From `few` to `many` seconds; None where something was not measured.

    Attributes:
        cpu: the growth of the controller's CPU.
        logins: the growth if the nodes that are more did nothing but log in and run one command.
        python: the same with a start of Python that does nothing, which is the least that a runner in Python costs.
        apart: the growth of the seconds less what the nodes have worked until then, divided among the cores: about what
            is left where each node has cores of its own, if all of that work was in the way.
    """

    what: str
    few: float
    many: float
    cpu: float
    logins: float | None
    python: float | None
    apart: float | None

    @property
    def ratio(self) -> float:
        return self.many / self.few


def growth(results: Results, section: str, *, delayed: bool) -> Growth | None:
    """The growth of a section on the bed, or None where one of the sizes was not measured."""
    few = results.find(section, nodes=FEW, delayed=delayed, real=False)
    many = results.find(section, nodes=MANY, delayed=delayed, real=False)
    if few is None or many is None:
        return None
    seconds = few.ours.seconds
    more = {name: _more(results, name, delayed=delayed) for name in (rows_apply.FLOOR, rows_apply.PYTHON)}
    alone = {name: None if extra is None else (seconds + extra) / seconds for name, extra in more.items()}
    return Growth(
        what=TITLES[section] + (", behind the delay line" if delayed else ""),
        few=seconds,
        many=many.ours.seconds,
        cpu=many.ours.cpu / few.ours.cpu,
        logins=alone[rows_apply.FLOOR],
        python=alone[rows_apply.PYTHON],
        apart=_apart(few, many),
    )


def growths(results: Results) -> Iterator[Growth]:
    """All that were measured."""
    for section in TITLES:
        for delayed in (False, True):
            found = growth(results, section, delayed=delayed)
            if found is not None:
                yield found


def _more(results: Results, name: str, *, delayed: bool) -> float | None:
    """Seconds that a baseline takes longer on 32 nodes than on 8."""
    groups = [results.find("launch", nodes=nodes, delayed=delayed, real=False) for nodes in (FEW, MANY)]
    series = [group.named(name) if group is not None else None for group in groups]
    few, many = (None if found is None else found.seconds for found in series)
    return None if few is None or many is None else max(0.0, many - few)


def _apart(few: Group, many: Group) -> float | None:
    left = []
    for group in (few, many):
        worked = rows_apply.UNTIL_FIRST if group.section == "launch" else "node_cpu"
        if any(worked not in sample.values for sample in group.ours.samples):
            return None
        left.append(group.ours.seconds - group.ours.value(worked) / (os.cpu_count() or 1))
    return left[1] / left[0] if min(left) > 0 else None
