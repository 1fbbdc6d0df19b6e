"""Services on the fake cluster: replicas are real processes there, asked by real probes, behind a real port-forward."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes.resources import DEPLOYMENTS, EVENTS, PODS
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live.desk import Desk, environment
from tests.unit.kube.bed import ROOT, limited

pytestmark = pytest.mark.skipif(usable() is not None, reason=str(usable()))
KINDS = ("deployments", "pods", "configmaps", "secrets", "services")
PATIENCE = 120

WEB = """
type: service
name: web
image: any
port: 8000
replicas: 2
env: [WORD={word}]
commands:
  - mkdir -p /tmp/web && cd /tmp/web
  - echo "$WORD $DSTACK_RUN_NAME" > index.html
  - exec python3 -m http.server 8000
probes:
  - {{type: http, url: /, interval: 1s}}
stop_duration: 1s
auth: false
"""


class Bed:
    """A cluster and a user at it."""

    def __init__(self, cluster: FakeCluster, desk: Desk) -> None:
        self.cluster, self.desk = cluster, desk

    def apply(self, text: str, *options: str, rc: int = 0) -> subprocess.CompletedProcess[str]:
        (self.desk.folder / "service.yml").write_text(text)
        return self.desk.run("apply", "-f", "service.yml", "-y", *options, rc=rc)

    def get(self, name: str = "web") -> Any:
        return json.loads(self.desk.run("run", "get", name, "--json").stdout)

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < deadline, self.cluster.objects(PODS)
            time.sleep(0.1)
        return found

    def pods(self) -> list[Any]:
        return [pod for pod in self.cluster.objects(PODS) if "deletionTimestamp" not in pod["metadata"]]


@contextlib.contextmanager
def running_bed(folder: Path) -> Iterator[Bed]:
    """Two nodes, a fleet of them, and a user with exactly the rights of the manifest."""
    with FakeCluster([FakeNode("node-1"), FakeNode("node-2")], mode="process") as cluster:
        env = environment(folder, str(folder), LAMBDACTL_KUBECONFIG=str(folder / "kubeconfig"))
        desk = Desk(folder, limited(cluster, folder), env, "any", fake=True)
        desk.fleet()
        yield Bed(cluster, desk)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with running_bed(tmp_path_factory.mktemp("services")) as bed:
        yield bed


@pytest.fixture
def bed(running: Bed) -> Iterator[Bed]:
    yield running
    for deployment in running.cluster.objects(DEPLOYMENTS):
        running.desk.run("stop", deployment["metadata"]["name"], "-y")
    assert running.cluster.left(*KINDS) == []


def fetch(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.status == 200
    return answer.read().decode().strip()


class Attached:
    """`lambdactl attach`, and the port that it says."""

    def __init__(self, desk: Desk, name: str = "web") -> None:
        self.process = desk.start("attach", name)
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        self.port = int(url.rstrip("/").rpartition(":")[2])

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_apply_look_attach_and_stop(bed: Bed) -> None:
    done = bed.apply((ROOT / "examples" / "sandbox-service.dstack.yml").read_text() + "\nauth: false\n")
    assert done.stdout == "http://web.default.svc:8000/\n"
    assert "2/2 ready" in done.stderr
    found = bed.get()
    assert (found["type"], found["state"], found["replicas_ready"]) == ("service", "running", 2)
    assert {replica["host"] for replica in found["replicas"]} == {"node-1", "node-2"}
    assert [replica["probes"] for replica in found["replicas"]] == ["1/1", "1/1"]
    listed = json.loads(bed.desk.run("ps", "--json").stdout)["services"]
    assert [(item["fleet"], item["name"], item["state"]) for item in listed] == [("live", "web", "running")]
    assert "web" in bed.desk.run("ps").stdout
    with Attached(bed.desk) as attached:
        assert fetch(attached.port) in {f"replica web on {replica['run_name']}" for replica in found["replicas"]}
    assert "GET / HTTP/1.1" in bed.desk.run("logs", "web", "--replica", "1").stdout
    assert "has replicas 0 to 1, not 7" in bed.desk.run("logs", "web", "--replica", "7", rc=2).stderr
    bed.desk.run("stop", "web", "-y")
    assert bed.cluster.left(*KINDS) == []
    assert "web" in bed.desk.run("run", "get", "web", rc=2).stderr


def test_an_update_fails_no_request_and_a_failing_one_is_taken_back(bed: Bed) -> None:
    bed.apply(WEB.format(word="one"))
    before = {pod["metadata"]["name"] for pod in bed.pods()}
    with Attached(bed.desk) as attached:
        loads = load(attached.port)
        done = bed.apply(WEB.format(word="two"))
        assert "replaces one replica after the other, the new one first" in done.stderr
        assert bed.get()["update"]["state"] == "done"
        broken = WEB.format(word="three").replace("exec python3 -m http.server 8000", "exit 3")
        done = bed.apply(broken, rc=1)
        assert "The update of web was taken back: a replica on node-" in done.stderr
        assert "has failed 3 times (the commands exited with code 3)" in done.stderr
        found = loads()
    assert found["failures"] == 0, found
    assert set(found["answers"]) == {"one web", "two web"}
    status = bed.get()
    assert (status["state"], status["replicas_ready"], status["update"]["state"]) == ("running", 2, "failed")
    assert not before & {replica["run_name"] for replica in status["replicas"]}
    # Of three revisions only what the present one mounts is left.
    assert len(bed.cluster.left("configmaps")) == 1
    assert len(bed.cluster.left("secrets")) == 1


def load(port: int, token: str = "none", *, through_a_proxy: bool = False) -> Callable[[], Any]:
    """A load until the returned function is called, which gives what it has seen."""
    script = ROOT / "tests" / "integration" / "http_load.py"
    folder = tempfile.TemporaryDirectory(prefix="load-")  # of its own: other tests have loads at the same time
    over = Path(folder.name, "over")
    # Without a proxy new connections only: a kept-open one ends with its replica, which a port-forward cannot hide.
    # With one POST, which it never sends a second time, so that nothing that fails is hidden.
    change = ('"GET"', '"POST"') if through_a_proxy else ("number % 2 == 0", "False")
    text = script.read_text().replace(*change).replace("/tmp/load-is-over", str(over))
    argv = [sys.executable, "-c", text, f"http://127.0.0.1:{port}/", token, "300", "3"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def end() -> Any:
        over.touch()
        said, _ = process.communicate(timeout=PATIENCE)
        folder.cleanup()
        return json.loads(said)

    return end


def test_a_replica_that_hangs_leaves_the_rotation_and_is_restarted(bed: Bed) -> None:
    text = WEB.format(word="up").replace("interval: 1s", "interval: 1s, timeout: 1s")
    bed.apply(text)
    name = bed.get()["replicas"][0]["run_name"]
    freeze(bed, name)
    bed.until(lambda: bed.get()["state"] == "degraded")
    with Attached(bed.desk) as attached:
        assert {fetch(attached.port) for _ in range(4)} == {"up web"}
    bed.until(lambda: restarts(bed, name) and bed.get()["state"] == "running")


def freeze(bed: Bed, pod: str) -> None:
    """Stop a replica's processes."""
    namespace = os.readlink(f"/proc/{first_process(bed, pod)}/ns/pid")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(folder / "ns" / "pid") == namespace and b"http.server" in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGSTOP)


def first_process(bed: Bed, pod: str) -> int:
    """The replica's first process, as this machine sees it."""
    uid = bed.cluster.pod(pod).object["metadata"]["uid"]
    return int(bed.cluster.call(lambda: bed.cluster.kubelet.pods[uid].containers["main"].first()))  # type: ignore[attr-defined]  # the fake's kubelet that runs processes


def restarts(bed: Bed, pod: str) -> int:
    return int(bed.cluster.pod(pod).object["status"]["containerStatuses"][0]["restartCount"])


def test_a_first_start_that_fails_says_why_and_goes_on(bed: Bed) -> None:
    text = "type: service\nname: sad\nimage: any\nport: 8000\nauth: false\ncommands: [echo last words, exit 4]\n"
    done = bed.apply(text, rc=1)
    assert "sad does not become ready: a replica on node-" in done.stderr
    assert "(the commands exited with code 4)" in done.stderr
    assert "end it with `lambdactl stop sad`" in done.stderr
    assert "last words" in bed.desk.run("logs", "sad").stdout
    (bed.desk.folder / "sad.yml").write_text(text)
    assert "sad is deleted" in bed.desk.run("delete", "-f", "sad.yml", "-y").stderr


def test_probes_that_a_kubelet_cannot_ask(bed: Bed) -> None:
    shutil.copy(ROOT / "examples" / "probed-service.py", bed.desk.folder)
    done = bed.apply((ROOT / "examples" / "probed-service.dstack.yml").read_text() + "auth: false\n")
    assert "GET /healthz and POST /check, by a container beside each replica (image lambdactl/base:" in done.stderr
    found = bed.get("probed")
    assert [replica["probes"] for replica in found["replicas"]] == ["2/2", "2/2"]
    assert "Bearer example" not in json.dumps(bed.cluster.objects(PODS))
    name = found["replicas"][0]["run_name"]
    Path(f"/proc/{first_process(bed, name)}/root/tmp/probed/sick").touch()
    bed.until(lambda: "Readiness probe failed: POST /check answered 500" in json.dumps(bed.cluster.objects(EVENTS)))
    # Three in a row: its container is a new one, which has a /tmp of its own.
    bed.until(lambda: restarts(bed, name) and bed.get("probed")["state"] == "running")
    with Attached(bed.desk, "probed") as attached:
        assert fetch(attached.port).startswith("replica probed on ")
