"""`lambdactl validate` on four nodes with a fake nvidia-smi and a fake all_reduce_perf: the slow node is named."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from tests.integration.conftest import STACK, Cli, _up

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "fakes"
PERF = "/opt/nccl-tests/build/all_reduce_perf"
CONFIG = "/etc/fake-all-reduce-perf.conf"
# The nodes have no RDMA ports; the ranks share few cores, so they must not spin.
NETWORK = ("--nics", "8", "--nic-gbps", "400", "-e", "OMPI_MCA_mpi_yield_when_idle=1")


@pytest.fixture(scope="module")
def b200(engine: None, cli: Cli) -> Iterator[Sandbox]:
    """Four provisioned nodes of eight fake B200; the fake of nccl-tests is compiled on one and copied to the others."""
    cluster = _up(workers=4, files={"/usr/bin/nvidia-smi": FAKES / "nvidia-smi"}, packages=STACK)
    try:
        for node in cluster.workers:
            cluster.exec(node.name, f"mkdir -p {Path(PERF).parent} && ln -s /bin/true {PERF}", check=True)
        done = cli("apply", "-f", cluster.fleet_file, "-y", timeout=600)
        assert done.rc == 0, done.err
        source = (FAKES / "all_reduce_perf.c").read_text()
        cluster.exec("worker-0", "cat > /tmp/fake.c", stdin=source, check=True)
        cluster.exec("worker-0", f"rm {PERF} && mpicc -O1 -Wall -Werror -o {PERF} /tmp/fake.c", check=True)
        binary = cluster.exec("worker-0", f"base64 {PERF}", check=True).stdout
        assert base64.b64decode(binary).startswith(b"\x7fELF")
        for node in cluster.workers[1:]:
            cluster.exec(node.name, f"rm {PERF}; base64 -d > {PERF}; chmod 755 {PERF}", stdin=binary, check=True)
        yield cluster
    finally:
        sandboxes.down(cluster.name)


def leftovers(cluster: Sandbox) -> str:
    listed = "".join(cluster.exec(node.name, ["ps", "-eo", "args"]).stdout for node in cluster.workers)
    return "\n".join(re.findall("^.*(?:sleep infinity|orted|mpirun|all_reduce_perf).*$", listed, re.MULTILINE))


def test_a_dry_run_prints_every_command_and_runs_nothing(b200: Sandbox, cli: Cli) -> None:
    done = cli("validate", "-f", b200.fleet_file, "--dry-run", *NETWORK)
    assert done.rc == 0, done.err
    assert len(re.findall(f"^mpirun .*{PERF} ", done.out, re.MULTILINE)) == 4 + 1 + 1 + 8 + 1
    assert "-x NCCL_ALGO=Ring" in done.out
    assert re.search(r"^2 +every node alone \(NVLink\) +4 ", done.err, re.MULTILINE), done.err
    assert json.loads(cli("ps", "-a", "--json", "--fleet", b200.fleet_file).out)["runs"] == []


def test_the_slow_node_is_named_and_reported(b200: Sandbox, cli: Cli, tmp_path: Path) -> None:
    b200.exec("worker-2", f"echo network 0.5 > {CONFIG}", check=True)
    done = cli("validate", "-f", b200.fleet_file, "-y", "--no-rails", *NETWORK, timeout=600)
    b200.exec("worker-2", ["rm", CONFIG], check=True)
    assert done.rc == 1, done.out + done.err
    last = done.out.strip().splitlines()[-1]
    assert last.startswith("FAIL: all nodes: 242.7 GB/s is below the floor of 360"), last
    assert "To blame: node worker-2 (50% of the typical" in last
    assert re.search(r"^every node alone \(NVLink\) +PASS ", done.out, re.MULTILINE)
    assert leftovers(b200) == ""
    written = cli("report", "-f", b200.fleet_file, "-o", tmp_path).out.split()
    assert sorted(Path(path).suffix for path in written) == [".html", ".json", ".md", ".prom", ".xml"]
    kept = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert kept["provenance"]["hostfile_order"] == ["worker-0", "worker-1", "worker-2", "worker-3"]
    assert kept["versions"].keys() >= {"driver", "openmpi", "nccl", "nccl_tests", "tests_sha256", "kernel"}
    assert kept["steps"][1]["jobs"][0]["hostfile"] == [node.address for node in b200.workers]
    assert "mpi_yield" not in next(tmp_path.glob("*.json")).read_text().replace("OMPI_MCA_mpi_yield_when_idle", "")
    listed = cli("history", "-f", b200.fleet_file)
    assert (listed.rc, len(re.findall(" FAIL ", listed.out))) == (0, 2), listed.out


def test_plain_ansible_validates_two_nodes_by_their_own_numbers(b200: Sandbox, tmp_path: Path) -> None:
    b200.exec("worker-1", f"echo nvlink 0.5 > {CONFIG}", check=True)
    variables = {
        "validate_rails": False, "validate_pairs": True, "validate_nics": 8, "validate_nic_gbps": 400,
        "validate_env": {"OMPI_MCA_mpi_yield_when_idle": "1"}, "validate_report_dir": str(tmp_path),
    }  # fmt: skip
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    options = ["--limit", "worker-0,worker-1", "-e", json.dumps(variables)]
    done = subprocess.run(
        [program, "-i", str(b200.fleet_file), str(ROOT / "playbooks" / "validate.yml"), *options],
        capture_output=True, text=True, timeout=400, cwd=ROOT, stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )  # fmt: skip
    b200.exec("worker-1", ["rm", CONFIG], check=True)
    assert done.returncode == 2, done.stdout + done.stderr
    kept = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert kept["sentence"].startswith("FAIL: every node alone (NVLink): worker-1: 419")
    assert "Two nodes cannot be told apart by pairs: alone, worker-1 is slow already." in kept["sentence"]
    assert kept["left_out"]["worker-2"] == "is not among the play's hosts"


def test_an_ordinary_run_ends_with_its_verdict(b200: Sandbox, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "alone.dstack.yml"
    path.write_text(f"type: task\nname: alone\ncommands:\n  - mpirun -n 8 -host localhost:8 {PERF} -b 1G -e 2G -f 2\n")
    done = cli("apply", "-f", path, "--fleet", b200.fleet_file, "-y")
    assert done.rc == 0, done.err
    assert done.err.strip().splitlines()[-1].startswith("PASS: 83"), done.err


def test_a_failed_run_ends_with_its_cause(b200: Sandbox, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "fails.dstack.yml"
    path.write_text("type: task\nname: fails\ncommands:\n  - mpirun -n 99 -host localhost:1 hostname\n")
    done = cli("apply", "-f", path, "--fleet", b200.fleet_file, "-y")
    assert done.rc == 1
    assert re.search(r"^cause: .*slots.*\nremedy: ", done.err, re.MULTILINE), done.err


def test_an_interrupt_leaves_nothing_behind(b200: Sandbox, cli: Cli) -> None:
    process = cli.start("validate", "-f", b200.fleet_file, "-y", *NETWORK)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("... every node alone"):
                break
        deadline = time.monotonic() + 60
        while "all_reduce_perf" not in leftovers(b200) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 130, err
    assert leftovers(b200) == ""
