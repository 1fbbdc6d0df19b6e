"""The backend fleet file as an Ansible inventory, through the real ansible-inventory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.resources import NODES
from tests.fakes.kube import FakeCluster
from tests.unit.kube.bed import ROOT

REFERENCE = ROOT / "examples" / "lambda-kubernetes-fleet.dstack.yml"


@pytest.fixture(autouse=True)
def configured(home: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))


def run(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(REFERENCE), *map(str, args)]
    options = {"cwd": ROOT, **options}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, **options)


def rank(run_name: str, index: int) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/managed-by": "lambdactl", "lambdactl.dev/run": run_name, "lambdactl.dev/run-id": "uuid",
        "batch.kubernetes.io/job-completion-index": str(index),
    }  # fmt: skip
    spec = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "x"}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{run_name}-{index}-x", "labels": labels},
        "spec": spec,
    }


def test_graph_has_nodes_and_running_ranks(cluster: FakeCluster) -> None:
    for index in (1, 0):
        cluster.put(rank("nccl-tests", index))
        cluster.pod(f"nccl-tests-{index}").run(address=f"10.1.2.{index}")
    cluster.put(rank("waits", 0))
    done = run("--graph")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "@all:",
        "  |--@ungrouped:",
        "  |--@lambda_fleet:",
        "  |  |--node-1",
        "  |  |--node-2",
        "  |--@run_nccl_tests:",
        "  |  |--nccl-tests-0",
        "  |  |--nccl-tests-1",
    ]
    found = json.loads(run("--list", "--export").stdout)["_meta"]["hostvars"]
    assert found["node-1"]["lambdactl_facts"]["gpus"] == 8
    assert found["node-2"]["lambdactl_rank_order"] == 1
    shown = {name: found["nccl-tests-1"][name] for name in found["nccl-tests-1"] if name.startswith("lambdactl_")}
    assert shown.pop("lambdactl_fleet_id")
    assert shown == {
        "lambdactl_backend": "kubernetes", "lambdactl_fleet": "lambda-fleet", "lambdactl_cluster": "fake",
        "lambdactl_namespace": "default", "lambdactl_run": "nccl-tests", "lambdactl_run_id": "uuid",
        "lambdactl_rank": 1,
        "lambdactl_node": cluster.pod("nccl-tests-1").object["spec"]["nodeName"], "lambdactl_internal_ip": "10.1.2.1",
    }  # fmt: skip


def test_what_a_node_says_is_never_a_template(cluster: FakeCluster) -> None:
    evil = "{{ lookup('pipe', 'touch /tmp/x') }}"
    cluster.change(NODES, "node-1", lambda node: node["status"]["nodeInfo"].update(osImage=evil))
    done = run("--list")
    assert done.returncode == 0, done.stderr
    assert "lookup" not in done.stdout


def test_trouble_is_one_error(cluster: FakeCluster) -> None:
    cluster.server.users.clear()
    done = run("--graph", env={**os.environ, "COLUMNS": "400"})
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "does not accept the login" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("missing", [("kubernetes",), ("platformdirs", "typer", "rich", "asyncssh", "ansible_runner")])
def test_from_a_bare_checkout(tmp_path: Path, missing: tuple[str, ...]) -> None:
    """As AWX has it: without the command line's packages, and with a clear word where `kubernetes` is missing."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    for name in ("lambdactl/spec", "lambdactl/fleet", "lambdactl/backends", "inventory_plugins"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in ("ansible.cfg", "lambdactl/__init__.py", "lambdactl/errors.py"):
        shutil.copy(ROOT / name, checkout / name)
    site.mkdir()
    for entry in Path(yaml.__file__).parents[1].iterdir():
        if "lambdactl" not in entry.name and entry.suffix != ".pth" and entry.name not in missing:
            (site / entry.name).symlink_to(entry)
    main = "import sys; from ansible.cli.inventory import main; sys.argv[0] = 'ansible-inventory'; main()"
    done = subprocess.run(
        [sys.executable, "-S", "-c", main, "-i", str(REFERENCE), "--graph"],
        env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "400"}, cwd=checkout, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    if missing == ("kubernetes",):
        assert done.returncode != 0
        assert "install 'kubernetes>=37'" in " ".join(done.stderr.split())
    else:
        assert done.returncode == 0, done.stderr
        assert "node-2" in done.stdout
