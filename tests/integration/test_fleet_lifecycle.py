"""A fleet's life by the command line: dry run, first run, no-op, host added, host removed, deleted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from tests.integration.conftest import STACK, Cli

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(900)]

TRACES = "/opt/lambdactl /var/lib/lambdactl /etc/lambdactl /etc/ssh/*/50-lambdactl.conf ~ubuntu/.ssh/lambdactl*"
PACKAGES = ["dpkg-query", "--show", "--showformat=${Package}\\n"]  # names: apt may have upgraded perl-base on the way


def traces(cluster: Sandbox, node: str) -> list[str]:
    """What of ours is on a node."""
    return cluster.exec(
        node,
        f"ls -d {TRACES} 2>/dev/null; grep -l node-shell /home/ubuntu/.ssh/*",
    ).stdout.split()


def test_a_fleets_life(make_sandbox, cli: Cli, tmp_path: Path) -> None:
    cluster: Sandbox = make_sandbox(workers=2, packages=STACK)
    packages = {node.name: cluster.exec(node.name, PACKAGES).stdout for node in cluster.workers}

    refused = cli("apply", "-f", cluster.fleet_file)
    assert refused.rc == 2
    assert "pass -y" in refused.err
    assert re.search(r"^worker-0 .* new .*runner, node_ssh", refused.err, re.MULTILINE)

    dry = cli("apply", "-f", cluster.fleet_file, "--check", timeout=300)
    assert dry.rc == 0, dry.err + dry.out
    assert "runner.pyz" in dry.out
    assert traces(cluster, "worker-0") == []

    first = cli("apply", "-f", cluster.fleet_file, "-y", timeout=600)
    assert first.rc == 0, first.err
    assert re.search(r"^worker-1: Role openmpi|^worker-1: openmpi", first.err, re.MULTILINE), (
        "progress by host and step"
    )
    assert "ansible-playbook -i" in first.err
    assert len(re.findall(r"^worker-\d .* ready", first.out, re.MULTILINE)) == 2

    second = cli("apply", "-f", cluster.fleet_file, "-y")
    assert (second.rc, second.err.splitlines()[-1]) == (0, f"sandbox-{cluster.name}: nothing to change.")

    cluster = sandboxes.up(cluster.name, 3)
    packages["worker-2"] = cluster.exec("worker-2", PACKAGES).stdout
    added = cli("apply", "-f", cluster.fleet_file, "-y", timeout=600)
    assert added.rc == 0, added.err
    assert re.search(r"^worker-2 .* new ", added.err, re.MULTILINE)
    assert re.search(r"^worker-0 .* outdated .*node_ssh", added.err, re.MULTILINE), (
        "the others learn the new node's key"
    )
    assert cluster.exec("worker-0", ["ssh", "-o", "BatchMode=yes", "worker-2", "true"], user="ubuntu").returncode == 0

    text = cluster.fleet_file.read_text()
    cluster.fleet_file.write_text(text.replace("    - worker-2\n", ""))
    removed = cli("apply", "-f", cluster.fleet_file, "-y", timeout=300)
    assert removed.rc == 0, removed.err
    assert "worker-2 is not in the file any more" in removed.err
    assert traces(cluster, "worker-2") == []
    assert cluster.exec("worker-2", PACKAGES).stdout == packages["worker-2"]
    assert "worker-2" not in cluster.exec("worker-0", "cat /home/ubuntu/.ssh/authorized_keys").stdout

    listed = json.loads(cli("fleet", "list", "--json").out)
    mine = [fleet for fleet in listed if fleet["name"] == f"sandbox-{cluster.name}"]
    assert [fleet["hosts"] for fleet in mine] == [["worker-0", "worker-1"]]
    shown = json.loads(cli("fleet", "get", f"sandbox-{cluster.name}", "--json").out)
    assert [(host["name"], host["state"]) for host in shown["hosts"]] == [("worker-0", "ready"), ("worker-1", "ready")]

    gone = cli("delete", "-f", cluster.fleet_file, "-y", timeout=300)
    assert gone.rc == 0, gone.err
    for node in ("worker-0", "worker-1"):
        assert traces(cluster, node) == []
        assert cluster.exec(node, PACKAGES).stdout == packages[node]
