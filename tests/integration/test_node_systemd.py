"""The runner where it belongs: systemd units, control groups and node-to-node SSH on real (container) nodes."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lambdactl import content
from lambdactl.sandbox import Sandbox

pytestmark = pytest.mark.sandbox

RUNNER = "/opt/lambdactl/runner.pyz"
CARRIED = "/root/runner.pyz"
PYTHON = "python3 -I -S"
FINAL = ("done", "failed", "stopped")
PATIENCE = 90.0
KEY = "/home/ubuntu/.ssh/lambdactl_ed25519"
SSH_CONFIG = """Match localuser ubuntu,root originalhost {addresses}
    User ubuntu
    IdentityFile {key}
    UserKnownHostsFile /etc/lambdactl-known-hosts
    StrictHostKeyChecking yes
    SendEnv LC_LAMBDACTL_RUN
"""


class Cluster:
    """Two workers with the runner and the node-to-node key, nothing else of this project."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.names = [worker.name for worker in sandbox.workers]
        self.places = [
            {"name": worker.name, "ip": worker.address, "gpus": 0, "ssh_user": "ubuntu", "ssh_port": 22}
            for worker in sandbox.workers
        ]
        self._set_up_ssh()

    def sh(self, rank: int, command: str, stdin: str | None = None, *, check: bool = True) -> str:
        return self.sandbox.exec(self.names[rank], command, stdin=stdin, check=check).stdout

    def _set_up_ssh(self) -> None:
        self.sh(0, f"sudo -u ubuntu ssh-keygen -q -t ed25519 -N '' -f {KEY}")
        private, public = self.sh(0, f"cat {KEY}"), self.sh(0, f"cat {KEY}.pub")
        addresses = [worker.address for worker in self.sandbox.workers]
        keys = [self.sh(rank, "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub") for rank in range(len(self.names))]
        known = "".join(f"{address} {key}" for address, key in zip(addresses, keys, strict=True))
        forced = f'restrict,command="/usr/bin/python3 -I -S {RUNNER} node-shell" {public}'
        config = SSH_CONFIG.format(addresses=",".join(addresses), key=KEY)
        for rank in range(len(self.names)):
            self.sh(rank, f"install -D -m 755 {CARRIED} {RUNNER}")
            self.sh(rank, f"umask 077; cat > {KEY}; chown ubuntu:ubuntu {KEY}", private)
            self.sh(rank, "cat >> /home/ubuntu/.ssh/authorized_keys", forced)
            self.sh(rank, "cat > /etc/lambdactl-known-hosts", known)
            self.sh(rank, "cat > /etc/ssh/ssh_config.d/50-lambdactl.conf", config)

    def call(self, rank: int, op: str, **request: Any) -> Any:
        line = json.dumps({"id": 1, "op": op, **request}) + "\n"
        answer = json.loads(self.sh(rank, f"sudo -u ubuntu sudo -n {PYTHON} {RUNNER} serve", line))
        assert answer["ok"], answer
        return answer["result"]

    def start(self, script: str, size: int = 2, **fields: Any) -> str:
        run = str(uuid.uuid4())
        job = {"run_id": run, "run_name": "it", "nodes": self.places[:size], "script": script, "env": {}, **fields}
        for rank in range(size):
            self.call(rank, "reserve", run_id=run, run_name="it", owner="test", gpus="all", ttl=60)
        for rank in range(size):
            self.call(rank, "start", job={**job, "rank": rank})
        return run

    def rank(self, run: str, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = self.call(rank, "status", run=run)["ranks"][0]
        return found

    def until(self, run: str, rank: int, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while not condition(value := self.rank(run, rank)):
            assert time.monotonic() < deadline, value
            time.sleep(0.1)
        return value

    def connected(self, run: str) -> None:
        """All ranks run, and have heard of one another; before that, each waits a minute for the others."""
        self.running(run)
        self.until(run, 0, lambda value: value["gang"]["state"] == "running")

    def running(self, run: str, size: int = 2) -> None:
        for rank in range(size):
            self.until(run, rank, lambda value: value["state"] == "running")

    def finish(self, run: str, rank: int = 0) -> dict[str, Any]:
        return self.until(
            run, rank, lambda value: value["state"] in FINAL and (value["gang"] or {}).get("state") in FINAL
        )

    def log(self, run: str, rank: int = 0) -> str:
        return self.sh(rank, f"cat /var/lib/lambdactl/runs/{run}/log/*.log")

    def nothing_left(self, run: str, rank: int) -> None:
        """No process, unit, control group or lease of the run."""
        unit = f"lambdactl-{run}"
        look = f"""grep -alz LC_LAMBDACTL_RUN={run} /proc/[0-9]*/environ 2>/dev/null
            systemctl list-units --no-legend '{unit}*'
            find /sys/fs/cgroup -name '{unit}*'
            ls /var/lib/lambdactl/leases"""
        deadline = time.monotonic() + PATIENCE
        while left := self.sh(rank, look, check=False).strip():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


@pytest.fixture
def cluster(make_sandbox: Callable[..., Sandbox], tmp_path: Path) -> Cluster:
    runner = tmp_path / "runner.pyz"
    runner.write_bytes(content.runner_zipapp())
    runner.chmod(0o755)
    return Cluster(make_sandbox(workers=2, files={CARRIED: runner}))


DAEMON_ON_PEER = """
if [ $DSTACK_NODE_RANK -eq 0 ]; then
  peer=$(echo "$DSTACK_NODES_IPS" | tail -n 1)
  id -un; pwd; ulimit -c
  cat $DSTACK_MPI_HOSTFILE
  ssh $peer 'echo peer $DSTACK_NODE_RANK $DSTACK_NODE_IP; grep -c "$DSTACK_RUN_ID.service/job" /proc/self/cgroup'
  ssh $peer 'setsid sleep 5000 >/dev/null 2>&1 </dev/null & echo launched'
else
  sleep infinity
fi
"""


def test_reference_shape_with_a_daemon_on_the_peer(cluster: Cluster) -> None:
    run = cluster.start(DAEMON_ON_PEER, startup_order="workers-first", stop_criteria="master-done")
    value = cluster.finish(run)
    ips = [str(place["ip"]) for place in cluster.places]
    expected = ["ubuntu", "/home/ubuntu", "0", *ips, f"peer 1 {ips[1]}", "1", "launched"]
    assert cluster.log(run).splitlines() == expected
    assert (value["state"], value["gang"]["state"], value["gang"]["exit_code"]) == ("done", "done", 0)
    peer = cluster.finish(run, 1)
    assert (peer["state"], peer["reason"]) == ("done", "master-done")
    for rank in (0, 1):
        cluster.nothing_left(run, rank)
    # Without a run the forced command is an ordinary login.
    peer_id = cluster.sh(0, f"sudo -u ubuntu ssh {ips[1]} 'id -un; echo ${{DSTACK_RUN_ID:-none}}'")
    assert peer_id.split() == ["ubuntu", "none"]


def test_killed_supervisors_and_stops_leave_nothing(cluster: Cluster) -> None:
    stubborn = (
        "trap '' INT TERM; (setsid sh -c 'trap \"\" INT TERM HUP; sleep 5001 & sleep 5002' &); sleep 5003 & sleep 5004"
    )
    run = cluster.start(stubborn, stop_grace=0.5)
    cluster.running(run)
    cluster.call(1, "stop", run="it")
    for rank in (0, 1):
        assert cluster.finish(run, rank)["reason"] == "stopped-by-user"
        cluster.nothing_left(run, rank)

    for victim, reasons in ((1, ("gang-failed", "runner-killed")), (0, ("runner-killed", "coordinator-lost"))):
        run = cluster.start(stubborn, stop_grace=0.5)
        cluster.connected(run)
        cluster.sh(victim, f"systemctl kill --kill-who=main -s KILL lambdactl-{run}.service")
        found = tuple(cluster.until(run, rank, lambda value: value["state"] in FINAL)["reason"] for rank in (0, 1))
        assert found == reasons
        for rank in (0, 1):
            cluster.nothing_left(run, rank)

    run = cluster.start(stubborn, stop_grace=0.5)
    cluster.running(run)
    cluster.sh(0, f"systemctl stop lambdactl-{run}.service")
    assert cluster.finish(run)["reason"] == "stopped-by-user"
    assert cluster.finish(run, 1)["gang"]["state"] == "stopped"


def test_lost_nodes(cluster: Cluster) -> None:
    run = cluster.start("sleep 5000", node_timeout=4, stop_grace=0.5)
    cluster.connected(run)
    cluster.sandbox.pause(cluster.names[1])
    try:
        value = cluster.finish(run)
    finally:
        cluster.sandbox.unpause(cluster.names[1])
    assert (value["gang"]["reason"], value["gang"]["first_failed_rank"]) == ("node-unreachable", 1)
    assert cluster.names[1] in value["gang"]["message"]
    assert cluster.until(run, 1, lambda value: value["state"] in FINAL)["reason"] in ("coordinator-lost", "gang-failed")
    for rank in (0, 1):
        cluster.nothing_left(run, rank)

    run = cluster.start("sleep 5000", node_timeout=4, stop_grace=0.5)
    cluster.connected(run)
    cluster.sandbox.kill(cluster.names[1])
    value = cluster.finish(run)
    assert (value["gang"]["state"], value["gang"]["reason"]) == ("failed", "node-unreachable")
    assert str(cluster.places[1]["ip"]) in value["gang"]["message"]
    cluster.sandbox.start(cluster.names[1])
    assert cluster.until(run, 1, lambda value: value["state"] in FINAL)["reason"] == "node-rebooted"
    assert cluster.call(1, "probe")["leases"] == []


def test_out_of_memory_is_named(cluster: Cluster) -> None:
    hog = "python3 -c 'b = bytearray(1 << 30)'; echo survived"
    run = cluster.start(f"set -e; {hog}", 1, memory_limit=256 << 20)
    value = cluster.finish(run)
    assert (value["state"], value["reason"], value["exit_code"]) == ("failed", "oom", 137)
    cluster.nothing_left(run, 0)
