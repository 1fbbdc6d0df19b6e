"""Provisioning by plain ansible-playbook on a real cluster, from blank hosts to teardown.

The tests of this module share one cluster and go on where the one before ended; their names say what state they need.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from tests.integration.conftest import OWNER_LABEL, _up, owner

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).resolve().parents[2]
SSH = "ssh -o BatchMode=yes"
# Caches, logs and what a running system writes by itself.
_PRUNED = (
    "/proc", "/sys", "/dev", "/run", "/tmp", "/var/cache", "/var/lib/apt", "/var/lib/dpkg", "/var/log",
    "/var/lib/systemd", "/var/tmp",
)  # fmt: skip
SNAPSHOT = (
    "find / -xdev "
    + " ".join(f"-path {path} -prune -o" for path in _PRUNED)
    + " -print | sort; dpkg-query -W -f '${db:Status-Status} ${Package}\\n'; cat /home/ubuntu/.ssh/authorized_keys"
)
HOLD_LOCK = (
    "import fcntl,time\nfile=open('/var/lib/dpkg/lock-frontend','w')\nfcntl.lockf(file,fcntl.LOCK_EX)\n"
    "open('/tmp/held','w').close()\ntime.sleep(600)"
)


@dataclass(frozen=True)
class Played:
    """What ansible-playbook said."""

    rc: int
    out: str

    def changed(self, host: str) -> int:
        """The recap's number of changes on a host."""
        return int(re.findall(rf"^{host}\s.*changed=(\d+)", self.out, re.MULTILINE)[-1])

    def line(self, host: str) -> str:
        """The host's line of the summary."""
        return re.findall(rf'"({host}: [^"]*)"', self.out)[-1]

    def failure(self, host: str) -> str:
        """The message that the host's failure ended with."""
        return re.findall(rf'^fatal: \[{host}\].*"msg": "((?:[^"\\]|\\.)*)"', self.out, re.MULTILINE)[-1]


def play(cluster: Sandbox, name: str, *options: str) -> Played:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, "-i", str(cluster.fleet_file), f"playbooks/{name}.yml", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_DEPRECATION_WARNINGS": "0"},
    )  # fmt: skip
    return Played(done.returncode, done.stdout + done.stderr)


@dataclass
class Bed:
    """The cluster, and how its workers looked before anything was done to them."""

    cluster: Sandbox
    blank: dict[str, str]

    def snapshot(self, node: str) -> str:
        return self.cluster.exec(node, SNAPSHOT).stdout


@pytest.fixture(scope="module")
def bed(engine: None) -> Iterator[Bed]:
    cluster = _up(workers=2)
    found = Bed(cluster, {})
    found.blank = {node.name: found.snapshot(node.name) for node in cluster.workers}
    yield found
    sandboxes.down(cluster.name)


def test_check_mode_on_blank_hosts_shows_all_and_changes_nothing(bed: Bed) -> None:
    played = play(bed.cluster, "provision", "--check", "--diff")
    assert played.rc == 0, played.out
    assert "would get runner (new host)" in played.line("worker-0")
    assert "+++ after" in played.out
    assert {name: bed.snapshot(name) for name in bed.blank} == bed.blank


def test_facts_of_blank_hosts_change_nothing(bed: Bed) -> None:
    played = play(bed.cluster, "facts")
    assert played.rc == 0, played.out
    assert '"hostname": "worker-1"' in played.out
    assert {name: bed.snapshot(name) for name in bed.blank} == bed.blank


def test_a_held_package_lock_fails_one_blank_host_and_names_the_holder(bed: Bed) -> None:
    subprocess.Popen(["docker", "exec", bed.cluster.node("worker-0").container, "python3", "-c", HOLD_LOCK])
    bed.cluster.exec("worker-0", "until [ -e /tmp/held ]; do sleep 0.1; done", check=True)
    try:
        played = play(bed.cluster, "provision", "-e", "openmpi_lock_timeout=1")
    finally:
        bed.cluster.exec("worker-0", "pkill -f lock-frontend; rm -f /tmp/held")
    assert played.rc == 2
    message = played.failure("worker-0")
    assert re.match(
        r"worker-0: Install the packages of Open MPI: .* is held by python3 \(process \d+\)\. Remedy: Wait", message
    )
    assert "failed" in played.line("worker-0")
    assert "got runner (new host)" in played.line("worker-1")


def test_the_host_with_the_released_lock_is_made_ready(bed: Bed) -> None:
    played = play(bed.cluster, "provision")
    assert played.rc == 0, played.out
    assert "openmpi" in played.line("worker-0")
    assert played.line("worker-1") == "worker-1: ready, nothing changed"


@pytest.mark.parametrize("options", [(), ("--check", "--diff")])
def test_a_run_on_ready_hosts_changes_nothing(bed: Bed, options: tuple[str, ...]) -> None:
    played = play(bed.cluster, "provision", *options)
    assert played.rc == 0, played.out
    for host in ("worker-0", "worker-1"):
        assert played.line(host) == f"{host}: ready, nothing changed"
        assert played.changed(host) == 0 if host == "worker-0" else True


def test_all_roles_on_ready_hosts_change_nothing(bed: Bed) -> None:
    for options in ((), ("--check", "--diff")):
        played = play(bed.cluster, "provision", "-e", "lambdactl_force=true", *options)
        assert played.rc == 0, played.out
        assert [played.changed("worker-0"), played.changed("worker-1")] == [0, 0], played.out


def test_ready_nodes_log_in_to_each_other_and_nobody_else_does(bed: Bed) -> None:
    cluster = bed.cluster
    for here, there in (("worker-0", "worker-1"), ("worker-1", "worker-0"), ("worker-0", "worker-0")):
        for name in (there, cluster.node(there).address):
            done = cluster.exec(here, f"{SSH} {name} hostname", user="ubuntu")
            assert (done.stdout.strip(), done.stderr) == (there, "")
    key = cluster.exec("worker-0", "cat /home/ubuntu/.ssh/lambdactl_ed25519", check=True).stdout
    cluster.exec("jump", "umask 077; cat > /tmp/stolen", user="ubuntu", stdin=key, check=True)
    stolen = f"{SSH} -o StrictHostKeyChecking=no -i /tmp/stolen {cluster.node('worker-1').address} true"
    assert "Permission denied" in cluster.exec("jump", stolen, user="ubuntu").stderr


def test_mpirun_over_two_ready_nodes(bed: Bed) -> None:
    hostfile = "".join(f"{node.address} slots=2\\n" for node in bed.cluster.workers)
    bed.cluster.exec("worker-0", f"printf '{hostfile}' > /tmp/hostfile", user="ubuntu", check=True)
    done = bed.cluster.exec("worker-0", "mpirun --hostfile /tmp/hostfile -n 4 hostname", user="ubuntu")
    assert sorted(done.stdout.split()) == ["worker-0", "worker-0", "worker-1", "worker-1"], done.stderr


# The halves of a row and of the heading in nccl-tests' own output.
SEED_ROW = "           8             2     float     sum      -1" + "    36.50    0.00    0.00       0" * 2
SEED_HEADING = "#       size         count      type   redop    root" + "     time   algbw   busbw  #wrong" * 2


def bench(bed: Bed, options: str, *, ranks: int = 2, prefix: str = "") -> subprocess.CompletedProcess[str]:
    command = f"{prefix} mpirun --hostfile /tmp/hostfile -n {ranks} -N 1 /opt/lambdactl/bench/all_reduce_cpu {options}"
    return bed.cluster.exec("worker-0", command, user="ubuntu")


def rows_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line and not line.startswith("#")]


def test_the_benchmark_on_ready_nodes_prints_nccl_tests_layout(bed: Bed) -> None:
    done = bench(bed, "-b 8 -e 4M -f 4 -t 1 -g 1 -n 3 -w 1 -c 1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("# all_reduce_cpu version")
    assert "CPU benchmark" in lines[0]
    assert SEED_HEADING in [line.rstrip() for line in lines]
    assert [re.sub(r".*on\s+(\S+) device.*", r"\1", line) for line in lines if "Rank" in line] == [
        "worker-0",
        "worker-1",
    ]
    rows = rows_of(done.stdout)
    assert [int(row.split()[0]) for row in rows] == [8 * 4**power for power in range(10)]
    assert len(rows[0]) == len(SEED_ROW)
    busbw = []
    for row in rows:
        size, count, kind, redop, root, *halves = row.split()
        assert (int(count) * 4, kind, redop, root) == (int(size), "float", "sum", "-1")
        for time, algbw, bus, wrong in (halves[:4], halves[4:]):
            assert wrong == "0"
            assert float(algbw) == pytest.approx(int(size) / float(time) / 1e3, abs=0.011)
            assert float(bus) == pytest.approx(float(algbw), abs=0.011)  # two ranks: 2(n-1)/n is 1
            busbw.append(float(bus))
    assert "# Out of bounds values : 0 OK" in lines
    (average,) = re.findall(r"^# Avg bus bandwidth    : (\S+)", done.stdout, re.MULTILINE)
    assert float(average) == pytest.approx(sum(busbw) / len(busbw), abs=0.006)


def test_the_benchmark_without_validation_says_so(bed: Bed) -> None:
    (row,) = rows_of(bench(bed, "-b 1K -e 1K -n 1 -c 0").stdout)
    assert (row.split()[8], row.split()[12]) == ("N/A", "N/A")


FAULT = """\
#include <mpi.h>
int MPI_Allreduce(const void *s, void *r, int n, MPI_Datatype t, MPI_Op o, MPI_Comm c) {
  int rc = PMPI_Allreduce(s, r, n, t, o, c);
  if (t == MPI_FLOAT && n > 1) ((float *)r)[n / 2] += 1;
  return rc;
}
"""


def test_the_benchmark_finds_wrong_data(bed: Bed) -> None:
    bed.cluster.exec(
        "worker-0", "cat > /tmp/fault.c && mpicc -shared -fPIC -o /tmp/fault.so /tmp/fault.c", stdin=FAULT, check=True
    )
    done = bench(bed, "-b 1K -e 1K -n 1", ranks=1, prefix="LD_PRELOAD=/tmp/fault.so")
    (row,) = rows_of(done.stdout)
    assert (row.split()[8], row.split()[12]) == ("1", "1"), done.stdout
    assert "# Out of bounds values : 2 FAILED" in done.stdout
    assert done.returncode == 7


@pytest.mark.parametrize("options", ["-z 1", "-b 1Q", "-b 8 -e 4", "-f 1", "-n", "-g 8"])
def test_the_benchmark_refuses_wrong_options(bed: Bed, options: str) -> None:
    done = bench(bed, options, ranks=1)
    assert done.returncode == 6
    assert "all_reduce_cpu: " in done.stderr


def test_what_was_removed_on_a_ready_node_is_put_back_there_only(bed: Bed) -> None:
    bed.cluster.exec("worker-1", "rm /opt/lambdactl/bench/all_reduce_cpu", check=True)
    played = play(bed.cluster, "provision")
    assert played.rc == 0, played.out
    assert played.line("worker-0") == "worker-0: ready, nothing changed"
    assert "got mpi_bench (changed on the node: /opt/lambdactl/bench/all_reduce_cpu" in played.line("worker-1")
    bed.cluster.exec("worker-1", "test -x /opt/lambdactl/bench/all_reduce_cpu", check=True)


def test_a_ready_host_that_is_down_hinders_nobody_and_keeps_its_place(bed: Bed) -> None:
    bed.cluster.stop("worker-1")
    try:
        played = play(bed.cluster, "provision", "-e", "lambdactl_force=true")
    finally:
        bed.cluster.start("worker-1")
        sandboxes.up(bed.cluster.name, labels={OWNER_LABEL: owner()})
    assert played.rc == 2
    assert " Remedy: " in played.failure("worker-1")
    assert played.changed("worker-0") == 0, played.out
    assert bed.cluster.exec("worker-0", f"{SSH} worker-1 hostname", user="ubuntu").stdout == "worker-1\n"


BREAKS = {
    "no sudo": ("mv /etc/sudoers.d/sandbox /root/", "mv /root/sandbox /etc/sudoers.d/", "no sudo without a password"),
    "no Python": (
        "mv /usr/bin/python3 /usr/bin/python3.off", "mv /usr/bin/python3.off /usr/bin/python3", "Python 3 is missing",
    ),
    "no space": (
        "rm /opt/lambdactl/runner.sha256 && mount -t tmpfs -o size=16k none /opt/lambdactl", "umount /opt/lambdactl",
        "No space is left",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_host_is_one_line_and_the_other_is_ready(bed: Bed, name: str) -> None:
    breaking, mending, said = BREAKS[name]
    bed.cluster.exec("worker-1", breaking, check=True)
    try:
        played = play(bed.cluster, "provision")
    finally:
        bed.cluster.exec("worker-1", mending, check=True)
    assert played.rc == 2
    assert said in played.failure("worker-1")
    assert " Remedy: " in played.failure("worker-1")
    assert played.line("worker-0") == "worker-0: ready, nothing changed"


def test_a_host_added_and_taken_away_again(bed: Bed) -> None:
    assert play(bed.cluster, "provision").rc == 0
    bed.cluster = sandboxes.up(bed.cluster.name, 3, labels={OWNER_LABEL: owner()})
    played = play(bed.cluster, "provision")
    assert played.rc == 0, played.out
    assert played.line("worker-0") == "worker-0: got node_ssh (hosts changed: worker-2 was added)"
    assert "got runner (new host)" in played.line("worker-2")
    assert bed.cluster.exec("worker-0", f"{SSH} worker-2 hostname", user="ubuntu").stdout == "worker-2\n"
    bed.cluster = sandboxes.up(bed.cluster.name, 2, labels={OWNER_LABEL: owner()})
    played = play(bed.cluster, "provision")
    assert played.line("worker-0") == "worker-0: got node_ssh (hosts changed: 1 removed)", played.out
    assert "worker-2" not in bed.cluster.exec("worker-0", "cat /etc/lambdactl/known_hosts").stdout


def test_teardown_of_one_host_leaves_nothing_there(bed: Bed) -> None:
    played = play(bed.cluster, "teardown", "--limit", "worker-1")
    assert played.rc == 0, played.out
    assert bed.snapshot("worker-1") == bed.blank["worker-1"]
    assert bed.cluster.exec("worker-0", "test -x /opt/lambdactl/runner.pyz").returncode == 0


def test_teardown_leaves_nothing_anywhere(bed: Bed) -> None:
    for _ in range(2):
        played = play(bed.cluster, "teardown")
        assert played.rc == 0, played.out
        assert {name: bed.snapshot(name) for name in bed.blank} == bed.blank
    assert played.changed("worker-0") == 0
