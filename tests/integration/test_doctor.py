"""The doctor on real sandboxes: the command, its files, plain ansible-playbook, and a sick node with fake GPUs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from lambdactl.sandbox import Sandbox
from tests.integration.conftest import Cli, Outcome, Up

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "fakes"
SCHEMA = json.loads((ROOT / "lambdactl" / "doctor" / "data" / "report.schema.json").read_text())
XID = "<4>[    5.000000] NVRM: Xid (PCI:0000:10:00): 79, pid=1, GPU has fallen off the bus.\n"


def playbook(cluster: Sandbox, *argv: str) -> Outcome:
    """Plain Ansible, without lambdactl's command line."""
    done = subprocess.run(
        ["ansible-playbook", "-i", str(cluster.fleet_file), "playbooks/doctor.yml", *argv],
        cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def examined(cli: Cli, cluster: Sandbox, *argv: str | Path) -> dict[str, Any]:
    done = cli("doctor", "-f", cluster.fleet_file, "--json", *argv)
    report: dict[str, Any] = json.loads(done.out)
    jsonschema.validate(report, SCHEMA)
    assert done.rc == report["exit_code"], done.err
    return report


def finding(report: dict[str, Any], host: str, check: str) -> tuple[str, str]:
    found = next(item for item in report["hosts"] if item["name"] == host)["findings"]
    return next((item["status"], item["value"]) for item in found if item["check"] == check)


def test_provisioned_nodes_without_gpus(provisioned: Sandbox, cli: Cli, tmp_path: Path) -> None:
    """What the machine below is like decides on warnings; that nodes answer and agree is ours."""
    report = examined(cli, provisioned, "--junit", tmp_path / "doctor.xml")
    for host in ("worker-0", "worker-1"):
        assert finding(report, host, "reachable") == ("pass", "answers")
        assert finding(report, host, "gpu-bus") == ("skip", "no NVIDIA GPU")
        assert finding(report, host, "ib-ports") == ("skip", "no InfiniBand port")
        assert finding(report, host, "same-openmpi")[0] == "pass"
        assert finding(report, host, "clock-spread")[0] == "pass"
        assert finding(report, host, "hostname")[0] == "pass"
    suites = ElementTree.parse(tmp_path / "doctor.xml").getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["worker-0", "worker-1"]
    table = cli("doctor", "-f", provisioned.fleet_file, "--all")
    assert table.rc == report["exit_code"]
    assert "does not apply: no NVIDIA GPU (all hosts): nvidia-smi, gpu-bus" in table.out
    only = cli("doctor", "-f", provisioned.fleet_file, "--json", "worker-1")
    assert [host["name"] for host in json.loads(only.out)["hosts"]] == ["worker-1"]


def test_the_same_by_plain_ansible(provisioned: Sandbox, tmp_path: Path) -> None:
    done = playbook(provisioned, "-e", "doctor_report_only=true", "-e", f"doctor_json_file={tmp_path / 'doctor.json'}")
    assert done.rc == 0, done.out
    report = json.loads((tmp_path / "doctor.json").read_text())
    jsonschema.validate(report, SCHEMA)
    assert [host["name"] for host in report["hosts"]] == ["worker-0", "worker-1"]
    assert "does not apply: no NVIDIA GPU (all hosts)" in done.out
    assert "changed=0" in done.out


def test_a_sick_node_is_named(make_sandbox: Up, cli: Cli) -> None:
    """Nothing is provisioned there: the nodes are examined by a runner that they only have in memory."""
    programs = ("nvidia-smi", "dmesg", "dcgmi")
    cluster = make_sandbox(workers=2, files={f"/usr/local/bin/{name}": FAKES / name for name in programs})
    sick = "FAKE_GPU_COUNT=4\nFAKE_GPU_DRIVER=550.90.07\nFAKE_GPU_UNCORRECTABLE=2\n"
    cluster.exec("worker-1", "cat > /etc/fake-nvidia-smi.conf", stdin=sick, check=True)
    cluster.exec("worker-1", "cat > /etc/fake-dmesg", stdin=XID, check=True)
    cluster.exec("worker-0", ": > /etc/fake-dmesg", check=True)

    report = examined(cli, cluster)
    assert report["exit_code"] == 2
    assert finding(report, "worker-0", "nvidia-smi") == ("pass", "answers, 8 GPUs")
    assert finding(report, "worker-0", "xid") == ("pass", "none")
    assert finding(report, "worker-0", "ecc-uncorrectable") == ("pass", "0")
    assert finding(report, "worker-1", "ecc-uncorrectable") == ("fail", "GPU 0 (00000000:10:00.0) 2 SRAM")
    assert finding(report, "worker-1", "xid")[1].startswith("Xid 79 (GPU has fallen off the bus) on 0000:10:00")
    apart = "4 GPUs (no majority: 8 GPUs on worker-0; 4 GPUs on worker-1)"
    assert finding(report, "worker-1", "same-gpu-count") == ("fail", apart)
    assert "550.90.07 on worker-1" in finding(report, "worker-1", "same-driver")[1]
    assert cluster.exec("worker-0", "ls /opt/lambdactl /var/lib/lambdactl", check=False).returncode != 0

    done = playbook(cluster)
    assert done.rc == 2
    assert "worker-1 is not healthy: xid: Xid 79" in done.out
    assert "ecc-uncorrectable: GPU 0 (00000000:10:00.0) 2 SRAM" in done.out

    cluster.stop("worker-0")
    done = cli("doctor", "-f", cluster.fleet_file)
    assert done.rc == 2
    assert "FAIL    reachable" in done.out
    assert "xid" in done.out
