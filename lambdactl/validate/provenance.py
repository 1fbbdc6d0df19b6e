"""What exactly was measured: versions and checksums of all that takes part, read from the nodes in one command each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lambdactl.fleet.facts import NodeFacts
from lambdactl.run.plan import NodeView
from lambdactl.transport.api import Completed
from lambdactl.validate.hardware import Network, network
from lambdactl.validate.steps import NCCL_TESTS, Plan

if TYPE_CHECKING:
    from lambdactl.nccl.model import Result
    from lambdactl.transport.api import Runner

# One "name value" line each; a node that lacks a thing prints no line for it. Only reads.
_ASK = (
    f"sha256sum {NCCL_TESTS}/all_reduce_perf 2>/dev/null | sed 's/^\\([0-9a-f]*\\).*/tests_sha256 \\1/'; "
    "cat /sys/class/infiniband/*/fw_ver 2>/dev/null | sort -u | paste -sd, - | sed '/./!d;s/^/nic_firmware /'; "
    "uname -r | sed 's/^/kernel /'"
)
_TIMEOUT = 20.0


async def ask(transport: Runner, nodes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Checksum, firmware and kernel of each node; a node that does not answer has none."""
    answers = await transport.fan_out(_ASK, names=list(nodes), timeout=_TIMEOUT)
    return {
        name: dict(line.split(" ", 1) for line in answer.stdout.decode("utf-8", "replace").splitlines() if " " in line)
        if isinstance(answer, Completed)
        else {}
        for name, answer in answers.items()
    }


def versions(
    plan: Plan, views: Mapping[str, NodeView], asked: Mapping[str, Mapping[str, str]], result: Result | None
) -> dict[str, str]:
    """Every version that may change a bandwidth; unlike ones of several nodes stand side by side."""
    facts = [node for name in plan.nodes if (node := views[name].facts) is not None]
    table = next(iter(result.tables), None) if result else None
    library = table.nccl_library if table else None
    found = {
        "driver": _all(node.driver for node in facts),
        "cuda": _all(node.cuda for node in facts),
        "openmpi": _all(str((node.openmpi or {}).get("version") or "") for node in facts),
        "nccl": nccl_version(library) if library else (result.nccl_version or "") if result else "",
        "nccl_tests": (table.version or "") if table else "",
    }
    for name in ("tests_sha256", "nic_firmware", "kernel"):
        found[name] = _all(node.get(name) for node in asked.values())
    return {name: value for name, value in found.items() if value}


def nccl_version(code: int) -> str:
    """22602 -> 2.26.2 (NCCL_VERSION of nccl.h)."""
    major, rest = divmod(code, 10000) if code >= 10000 else divmod(code, 1000)
    minor, patch = divmod(rest, 100)
    return f"{major}.{minor}.{patch}"


def topology(plan: Plan, views: Mapping[str, NodeView], given: Network | None = None) -> str:
    """What makes two validations comparable: number of nodes, GPUs and NICs (those that the user states come first)."""
    kinds = {_node(found, given) for name in plan.nodes if (found := views[name].facts) is not None}
    return f"{len(plan.nodes)} nodes: {' + '.join(sorted(kinds))}"


def _node(facts: NodeFacts, given: Network | None) -> str:
    gpus = f"{len(facts.gpus)} x {facts.gpus[0].name}" if facts.gpus else f"{facts.cpus} CPUs"
    nics = given or network(facts)
    return f"{gpus}, {nics.nics} x {nics.nic_gbps:g} Gb/s" if nics else gpus


def _all(values: Any) -> str:
    return ", ".join(sorted({str(value) for value in values if value}))
