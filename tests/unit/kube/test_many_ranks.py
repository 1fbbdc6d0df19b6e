"""One process holds the watches and the logs of 200 ranks in under 300 MB: the whole command, on the scripted fake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fakes.kube import FakeCluster, FakeNode
from tests.live.desk import FLEET, environment
from tests.unit.kube.bed import PEAK, limited

RANKS = 200
LINES = 500
LIMIT = 300 << 20
# The command as it is, and its peak of memory in a file at its end.
_MEASURED = (
    PEAK
    + """
import json, sys
from lambdactl.cli import main
sys.argv = ["lambdactl", *sys.argv[2:]]
try:
    main()
except SystemExit as end:
    code = end.code
with open("peak.json", "w") as file:
    json.dump({"bytes": peak(), "code": code}, file)
"""
)


def test_200_ranks(tmp_path: Path) -> None:
    nodes = [FakeNode(f"node-{number}") for number in range(RANKS)]
    with FakeCluster(nodes, auto=True) as cluster:
        limited(cluster, tmp_path)
        env = environment(tmp_path, str(tmp_path), LAMBDACTL_KUBECONFIG=str(tmp_path / "kubeconfig"))
        (tmp_path / "fleet.yml").write_text(FLEET)
        (tmp_path / "task.yml").write_text(f"type: task\nname: big\nnodes: {RANKS}\ncommands: [train]\n")
        words = ["apply", "-f", "task.yml", "-y", "--fleet", "fleet.yml", "--all"]
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            command = subprocess.Popen(
                [sys.executable, "-c", _MEASURED, "-", *words], cwd=tmp_path, env=env, stdout=out, stderr=err
            )
            try:
                told = "lambdactl.dev/go"
                cluster.wait(
                    lambda: sum(told in p["metadata"]["annotations"] for p in cluster.store.all("pods")) == RANKS,
                    timeout=240,
                )
                text = b"".join(b"line %d of this rank, as long as most lines of a log are\n" % n for n in range(LINES))

                def write_and_end() -> None:
                    for pod in list(cluster.store.all("pods")):
                        cluster.kubelet.log(pod).write(text)

                cluster.call(write_and_end)
                for rank in reversed(range(RANKS)):
                    cluster.rank("big", rank).exit(0)
                assert command.wait(timeout=240) == 0, (tmp_path / "err").read_text()
            finally:
                command.kill()
    peak = json.loads((tmp_path / "peak.json").read_text())
    assert peak["code"] == 0, (tmp_path / "err").read_text()
    assert peak["bytes"] < LIMIT
    print(f"peak: {peak['bytes'] >> 20} MiB")
    lines = (tmp_path / "out").read_bytes().splitlines()
    assert len(lines) == RANKS * LINES
    assert len({line.split(b":")[0] for line in lines}) == RANKS
