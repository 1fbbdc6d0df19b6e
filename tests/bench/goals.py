"""The goals, each as a function of the results: what was measured, and whether that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.bench import rows_alone, rows_apply, rows_run
from tests.bench.growth import growth
from tests.bench.results import Group, Results


@dataclass(frozen=True)
class Verdict:
    """One line of the table of goals; `met` is None where nothing was measured that could say so."""

    what: str
    goal: str
    measured: str
    met: bool | None


def verdicts(results: Results) -> list[Verdict]:
    """All goals, in the order of the report."""
    return [verdict for judge in _JUDGES for verdict in judge(results)]


def _missing(what: str, goal: str) -> Verdict:
    return Verdict(what, goal, "not measured", None)


def _no_op(results: Results) -> Iterator[Verdict]:
    places = [
        (True, 8, rows_apply.ROLES, 10.0),
        (False, 8, rows_apply.TASKS, 10.0),
        (False, 32, rows_apply.TASKS, 20.0),
    ]
    for real, nodes, name, factor in places:
        place = "sandbox" if real else "bed"
        what, goal = f"no-op `apply`, {nodes} nodes ({place})", f">= {factor:.0f} x faster than tuned ansible-core"
        group = results.find("noop", nodes=nodes, delayed=False, real=real)
        baseline = group.named(name) if group else None
        if group is None or baseline is None:
            yield _missing(what, goal)
            continue
        ratio = baseline.seconds / group.ours.seconds
        yield Verdict(what, goal, f"{ratio:.1f} x ({group.ours.seconds:.2f} s)", ratio >= factor)
    for delayed, bed in BEDS:
        yield _growth(results, "noop", f"no-op `apply`, 32 nodes against 8 ({bed})", 1.5, delayed=delayed)


BEDS = ((False, "bed"), (True, "bed behind 50 ms"))


def _growth(results: Results, section: str, what: str, limit: float, *, delayed: bool) -> Verdict:
    found = growth(results, section, delayed=delayed)
    goal = f"<= {limit:g} x"
    if found is None:
        return _missing(what, goal)
    # What the controller spends does not depend on how many "nodes" share its cores; seconds on the bed do.
    parts = [f"controller's CPU {found.cpu:.2f} x"]
    if found.python is not None:
        parts.append(f"with nothing but a login and a bare Python on the 24 more {found.python:.2f} x")
    return Verdict(what, goal, f"{found.ratio:.2f} x ({'; '.join(parts)})", found.ratio <= limit)


def _launch(results: Results) -> Iterator[Verdict]:
    for real, nodes, limit in ((True, 8, 3.0), (False, 8, 3.0), (False, 32, 4.0)):
        what = f"`apply -f task` to the first command on all {nodes} nodes ({'sandbox' if real else 'bed'})"
        group = results.find("launch", nodes=nodes, delayed=False, real=real)
        verdict = _at_most(group, what, limit)
        if group is not None and "node_cpu" in group.ours.samples[0].values:
            work = (
                f"{verdict.measured} (the nodes' own work on the same cores: {group.ours.value('node_cpu'):.1f} CPU s)"
            )
            verdict = replace(verdict, measured=work)
        yield verdict
    for delayed, bed in BEDS:
        yield _growth(results, "launch", f"the same, 32 nodes against 8 ({bed})", 1.3, delayed=delayed)


def _at_most(group: Group | None, what: str, limit: float) -> Verdict:
    goal = f"<= {limit:g} s"
    if group is None:
        return _missing(what, goal)
    return Verdict(what, goal, f"{group.ours.seconds:.2f} s", group.ours.seconds <= limit)


def _stop(results: Results) -> Iterator[Verdict]:
    for group in (group for group in results.groups if group.section == "stop"):
        # The coordinator is a node, so the delay line in front of the jump host is not between it and the workers.
        yield _at_most(group, f"workers stopped after rank 0's end ({group.where})", 0.5)


def _logs(results: Results) -> Iterator[Verdict]:
    group = results.find("logs", delayed=False)
    what = "logs of 8 ranks, prefixed, with complete copies"
    if group is None:
        yield _missing(what, ">= 100 MB/s")
    else:
        rate, lines, memory = group.ours.value("rate"), group.ours.value("line_rate"), group.ours.memory / 1e6
        yield Verdict(what, ">= 100 MB/s", f"{rate:.0f} MB/s", rate >= 100)
        yield Verdict(what, ">= 1 M lines/s", f"{lines:.2f} M lines/s", lines >= 1)
        size = rows_run.RANKS * rows_run.LOG / 1e6
        yield Verdict(what, "memory bounded", f"{memory:.0f} MB for {size:.0f} MB of logs", memory < size / 2)
    group = results.find("delay", delayed=False)
    if group is None:
        yield _missing("delay of a line", "p50 <= 5 ms")
    else:
        p50, p99 = group.ours.value("p50"), group.ours.value("p99")
        yield Verdict("delay of a line", "p50 <= 5 ms", f"{p50:.1f} ms (p99 {p99:.1f} ms)", p50 <= 5)


def _alone(results: Results) -> Iterator[Verdict]:
    group = results.find("inventory")
    baseline = group.named(rows_alone.YAML) if group else None
    what, goal = "inventory of 5,000 hosts", "<= 1.2 x Ansible's YAML plugin on the same hosts"
    if group is None or baseline is None:
        yield _missing(what, goal)
    else:
        ratio = group.ours.seconds / baseline.seconds
        yield Verdict(what, goal, f"{ratio:.2f} x ({group.ours.seconds:.2f} s)", ratio <= 1.2)
    yield _at_most(results.find("help"), "`lambdactl --help`", 0.3)


def _reach(results: Results) -> Iterator[Verdict]:
    for group in (group for group in results.groups if group.section == "reach"):
        for name in (rows_alone.ASYNCSSH, rows_alone.OPENSSH):
            series = group.named(name)
            if series is not None:
                lost = group.nodes - min(sample.values["answered"] for sample in series.samples)
                what = f"nodes lost behind a stock jump host, {group.nodes} nodes ({name})"
                yield Verdict(what, "0", f"{lost:.0f}", lost == 0)


_JUDGES: tuple[Callable[[Results], Iterator[Verdict]], ...] = (_no_op, _launch, _stop, _logs, _alone, _reach)
