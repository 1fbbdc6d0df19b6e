"""The proxy in front of services: its configuration as text, and a real HAProxy in a pod of the fake cluster."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.backends.kubernetes.resources import DEPLOYMENTS
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.live.desk import Desk, environment
from tests.unit.kube.bed import limited
from tests.unit.kube.test_services import PATIENCE, Attached, Bed, load, restarts, running_bed

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
pytestmark = pytest.mark.skipif(
    usable() is not None or HAPROXY is None, reason=str(usable() or "needs HAProxy (scripts/bootstrap installs it)")
)
KINDS = ("deployments", "pods", "configmaps", "secrets", "services", "networkpolicies")

APP = """
type: service
name: {name}
image: any
port: 8000
replicas: 2
env: [WORD={word}]
commands:
  - |
    cat >/tmp/app.py <<'END'
    import http.server, json, os
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            size = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(size)
            said = {{"word": os.environ["WORD"], "path": self.path, "login": self.headers.get("authorization")}}
            text = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        do_POST = do_GET
        def log_message(self, *words):
            pass
    http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
    END
    exec python3 /tmp/app.py
probes:
  - {{type: http, url: /, interval: 1s}}
stop_duration: 1s
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with running_bed(tmp_path_factory.mktemp("proxy")) as bed:
        yield bed


@pytest.fixture
def bed(running: Bed) -> Iterator[Bed]:
    yield running
    for deployment in running.cluster.objects(DEPLOYMENTS):
        if "lambdactl.dev/service" in deployment["metadata"]["labels"]:
            running.desk.run("stop", deployment["metadata"]["name"], "-y")
    assert running.cluster.left(*KINDS) == []


def token(bed: Bed, name: str) -> str:
    found = list((bed.desk.folder / "state").glob(f"**/{name}.token"))
    assert len(found) == 1
    assert found[0].stat().st_mode & 0o777 == 0o600
    return found[0].read_text().strip()


def ask(port: int, path: str, key: str | None = None, body: str | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connection.request("POST" if body else "GET", path, body=body, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.status == 200 else text


def proxy_pods(bed: Bed) -> list[Any]:
    return [pod for pod in bed.pods() if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "proxy"]


def test_tokens_models_and_paths(bed: Bed) -> None:
    done = bed.apply(APP.format(name="web", word="one") + "model: {name: team/llm, format: openai}\n")
    assert done.stdout == "http://lambdactl-proxy.default.svc:8780/proxy/services/main/web/\n"
    assert "base URL, model team/llm" in done.stderr
    key = token(bed, "web")
    found = bed.get()
    assert (found["auth"], found["path"], found["ingress"], found["ingress_port"], found["proxy"]) == (
        True, "/proxy/services/main/web/", "lambdactl-proxy.default.svc", 8780, "",
    )  # fmt: skip
    with Attached(bed.desk) as attached:
        port = attached.port
        assert ask(port, "/") == (401, "unauthorized")
        assert ask(port, "/", "wrong")[0] == 401
        assert ask(port, "/a?b=c", key) == (200, {"word": "one", "path": "/a?b=c", "login": None})
        # By the paths that others use at the proxy's own port.
        said = {"model": "team/llm", "messages": []}
        status, answer = ask(port, "/proxy/models/main/chat/completions", key, json.dumps(said))
        assert (status, answer["path"]) == (200, "/v1/chat/completions")
        assert ask(port, "/proxy/services/main/web/x", key)[1]["path"] == "/x"
    # One model is of one service; what was refused has left nothing.
    left = bed.cluster.left(*KINDS)
    done = bed.apply(APP.format(name="two", word="x") + "model: {name: team/llm, format: openai}\n", rc=3)
    assert "the model team/llm is served by the service web already" in done.stderr
    bed.until(lambda: bed.cluster.left(*KINDS) == left)


def test_an_update_and_a_second_service_cut_no_request(bed: Bed) -> None:
    bed.apply(APP.format(name="web", word="one"))
    key = token(bed, "web")
    with Attached(bed.desk) as attached:
        loads = load(attached.port, key, through_a_proxy=True)
        bed.apply(APP.format(name="web", word="two"))
        # Both reload the proxy under load.
        open_one = APP.format(name="open", word="other").replace("replicas: 2", "replicas: 1")
        bed.apply(open_one + "auth: false\nrate_limits: [{prefix: /, rps: 1, burst: 2}]\n")
        with Attached(bed.desk, "open") as other:
            answers = [ask(other.port, "/")[0] for _ in range(20)]
            assert (answers.count(200), answers.count(429)) == (12, 8)
        assert "open is deleted" in bed.desk.run("delete", "-f", "service.yml", "-y").stderr
        found = loads()
    assert found["failures"] == 0, found
    assert {json.loads(answer)["word"] for answer in found["answers"]} == {"one", "two"}
    assert len(proxy_pods(bed)) == 1
    assert token(bed, "web") == key


def test_a_killed_proxy_comes_back_and_attach_goes_on(bed: Bed) -> None:
    bed.apply(APP.format(name="web", word="one"))
    key = token(bed, "web")
    with Attached(bed.desk) as attached:
        kill(bed, proxy_pods(bed)[0])
        bed.until(lambda: restarts(bed, proxy_pods(bed)[0]["metadata"]["name"]))
        assert ask(attached.port, "/", key)[1]["word"] == "one"
        bed.until(lambda: bed.get()["proxy"] == "")
    # Whoever has no record of it, and the rights, gets the token by `attach`.
    shutil.rmtree(bed.desk.folder / "state" / "lambdactl" / "services")
    with Attached(bed.desk):
        assert token(bed, "web") == key


def kill(bed: Bed, pod: Any) -> None:
    """End the first process of a pod, and with it the others."""
    container = bed.cluster.kubelet.pods[pod["metadata"]["uid"]].containers["main"]  # type: ignore[attr-defined]  # the fake's kubelet that runs processes
    bed.cluster.call(lambda: container.kill(signal.SIGKILL))


def test_an_image_that_cannot_be_pulled_leaves_nothing(tmp_path: Path) -> None:
    with FakeCluster([FakeNode("node-1")], mode="process", images={"any": Path("/")}) as cluster:
        env = environment(tmp_path, str(tmp_path), LAMBDACTL_KUBECONFIG=str(tmp_path / "kubeconfig"))
        bed = Bed(cluster, Desk(tmp_path, limited(cluster, tmp_path), env, "any", fake=True))
        bed.desk.fleet()
        done = bed.apply(APP.format(name="web", word="one"), rc=1)
        assert "the image haproxy:3.2-alpine cannot be pulled on node-1" in done.stderr
        assert "as `proxy_image` of the backend in" in done.stderr
        assert "config/lambdactl/config.yml" in done.stderr
        bed.until(lambda: cluster.left(*KINDS) == [])


def test_without_a_token_nothing_is_in_front_and_an_update_brings_it(bed: Bed) -> None:
    text = APP.format(name="web", word="one")
    done = bed.apply(text + "auth: false\n")
    assert done.stdout == "http://web.default.svc:8000/\n"
    assert bed.cluster.left("deployments", "networkpolicies") == ["deployments/web"]
    bed.apply(text)
    assert bed.cluster.left("deployments", "networkpolicies") == [
        "deployments/lambdactl-proxy", "deployments/web", "networkpolicies/web",
    ]  # fmt: skip
    with Attached(bed.desk) as attached:
        assert ask(attached.port, "/")[0] == 401
    bed.apply(text + "auth: false\n")
    assert bed.cluster.left("deployments", "networkpolicies") == ["deployments/web"]
