"""Services on the sandbox: real HAProxy, real replicas, real HTTP load, faults. One service lives through the file."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.sandbox import Sandbox
from lambdactl.state import state_dir
from tests.integration.conftest import Cli, Outcome

pytestmark = pytest.mark.sandbox

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "examples/sandbox-service.dstack.yml"
LOAD = (HERE / "http_load.py").read_text()
PATIENCE = 120.0
INGRESS, OTHER = "worker-0", "worker-1"

SERVICE = """type: service
name: app
port: 8000
replicas: 2
env:
  - WORD={word}
commands:
  - |
    cat > /tmp/app.py <<'END'
    import http.server, os
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            body = (os.environ["WORD"] + " " + self.path + " " + str(self.headers.get("Authorization"))).encode()
            self.send_response(500 if os.path.exists("/tmp/sick") else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()
        def log_message(self, *_):
            pass
    http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
    END
  - {command}
probes:
  - type: http
    url: /
    interval: 1s
    timeout: 2s
model: Org/Model-7B
"""


class Lab:
    """The provisioned sandbox and a service on it."""

    def __init__(self, sandbox: Sandbox, cli: Cli, folder: Path) -> None:
        self.sandbox = sandbox
        self.cli = cli
        self.folder = folder

    def file(self, word: str, command: str = "exec python3 /tmp/app.py", more: str = "") -> Path:
        path = self.folder / f"{word}.dstack.yml"
        path.write_text(SERVICE.format(word=word, command=command) + more)
        return path

    def run(self, *words: str | Path, **options: Any) -> Outcome:
        return self.cli(*words, "--fleet", self.sandbox.fleet_file, **options)

    def apply(self, path: Path, *options: str) -> Outcome:
        return self.run("apply", "-f", path, "-y", *options)

    def get(self, name: str = "app") -> dict[str, Any]:
        done = self.run("run", "get", name, "--json")
        assert done.rc == 0, done.err
        return json.loads(done.out)

    def until(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while not condition(value := self.get()):
            assert time.monotonic() < deadline, json.dumps(value, indent=1)
            time.sleep(0.5)
        return value

    def ready(self) -> dict[str, Any]:
        return self.until(lambda value: value["state"] == "running" and value["replicas_ready"] == 2)

    @property
    def token(self) -> str:
        (path,) = (state_dir() / "services").glob("*/app.token")
        assert path.stat().st_mode & 0o777 == 0o600
        return path.read_text().strip()

    @contextlib.contextmanager
    def load(self, node: str = OTHER) -> Iterator[dict[str, Any]]:
        """Six clients on a node from before to after the block; then the result is there."""
        url = f"http://{self.sandbox.node(INGRESS).address}:8780/proxy/services/main/app/"
        self.sandbox.exec(node, "rm -f /tmp/load-is-over", check=True)
        words = ["docker", "exec", "-i", self.sandbox.node(node).container, "python3", "-", url, self.token, "300", "6"]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(LOAD)
        process.stdin.close()
        process.stdin = None
        found: dict[str, Any] = {}
        time.sleep(1)
        try:
            yield found
        finally:
            time.sleep(1)
            self.sandbox.exec(node, "touch /tmp/load-is-over", check=True)
            out, _ = process.communicate(timeout=PATIENCE)
            found.update(json.loads(out))

    @contextlib.contextmanager
    def attached(self, name: str) -> Iterator[str]:
        """The address that `attach` prints."""
        process = self.cli.start("attach", name, "--fleet", self.sandbox.fleet_file)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE) == 0

    def everywhere(self, command: str) -> str:
        return "".join(self.sandbox.exec(node.name, command).stdout for node in self.sandbox.workers)


def ask(url: str, token: str | None = None, body: dict[str, Any] | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def lab(provisioned: Sandbox, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(provisioned, cli, tmp_path_factory.mktemp("services"))
    yield lab
    for name in ("app", "web"):
        lab.run("stop", name, "-y")


def test_the_example_runs_is_attached_to_and_deleted(lab: Lab) -> None:
    done = lab.apply(EXAMPLE)
    assert done.rc == 0, done.err
    assert done.out == f"http://{lab.sandbox.node(INGRESS).address}:8780/proxy/services/main/web/\n"
    (path,) = (state_dir() / "services").glob("*/web.token")
    with lab.attached("web") as url:
        assert ask(url)[0] == 401
        answers = {ask(url, path.read_text().strip())[1].strip() for _ in range(6)}
        assert answers == {"replica web-0 on worker-0", "replica web-1 on worker-1"}
    assert "GET / HTTP" in lab.run("logs", "web", "--replica", "1").out
    listed = lab.run("ps")
    assert listed.out.splitlines()[1].split()[0::2][:2] == ["web", "running"], listed.out
    assert lab.run("delete", "-f", EXAMPLE, "-y").rc == 0
    assert not path.exists()
    assert lab.run("run", "get", "web").rc == 2
    assert "http.server" not in lab.everywhere("ps -eo args")


def test_a_model_is_served_by_its_name_and_the_token_stays_secret(lab: Lab) -> None:
    done = lab.apply(lab.file("one", more="rate_limits:\n  - {prefix: /limited, rps: 1}\n"))
    assert done.rc == 0, done.err
    with lab.attached("app") as url:
        body = {"messages": [{"role": "user", "content": "x" * 20000}], "model": "Org/Model-7B"}
        assert ask(url + "proxy/models/main/chat/completions", lab.token, body) == (
            200,
            "one /v1/chat/completions None",
        )
        assert ask(url + "proxy/services/main/app/a?b=c", lab.token) == (200, "one /a?b=c None")
    path = f"http://{lab.sandbox.node(INGRESS).address}:8780/proxy/models/main/chat/completions"
    for model, code in (("Org/Model-7B", "200"), ("other", "404")):
        command = f"curl -s -o /dev/null -w %{{http_code}} -H 'Authorization: Bearer {lab.token}' {path}"
        data = json.dumps({"messages": [], "model": model})
        assert lab.sandbox.exec(OTHER, f"{command} -d '{data}'").stdout == code
    command = f"curl -s -o /dev/null -w %{{http_code}} -H 'Authorization: Bearer {lab.token}' {path}"
    limited = command.replace("/proxy/models/main/chat/completions", "/proxy/services/main/app/limited")
    codes = lab.sandbox.exec(OTHER, f"for n in 1 2 3 4 5 6 7 8 9 10 11 12; do {limited}; done").stdout
    assert codes == "200" * 10 + "429" * 2
    seen = lab.everywhere(
        "ps -eo args; journalctl --no-pager -o cat; cat /etc/lambdactl-ingress/services/* 2>/dev/null"
    )
    assert lab.token not in seen
    assert lab.token not in done.out + done.err
    assert lab.sandbox.exec(INGRESS, "stat -c %a /var/lib/lambdactl/services/app/token").stdout.strip() == "600"


def test_updates_fail_no_request_and_a_bad_one_is_taken_back(lab: Lab) -> None:
    lab.ready()
    with lab.load() as load:
        done = lab.apply(lab.file("two"))
        assert done.rc == 0, done.err
        done = lab.apply(lab.file("bad", command="exit 3"))
        assert done.rc == 1
        assert "was taken back: replica 0 failed 3 times" in done.err
        assert "the commands exited with code 3" in done.err
        lab.ready()
    assert load["failures"] == 0, load
    assert load["requests"] > 200
    assert {answer.split()[0] for answer in load["answers"]} == {"one", "two"}
    # In place: nobody is restarted, one replica leaves and another comes.
    runs = {replica["run_id"] for replica in lab.get()["replicas"]}
    assert lab.apply(lab.file("two", more="auth: false\n")).rc == 0
    assert {replica["run_id"] for replica in lab.get()["replicas"]} == runs
    assert lab.apply(lab.file("two")).rc == 0


def test_faults_are_repaired_without_a_controller(lab: Lab) -> None:
    before = {replica["replica"]: replica["run_id"] for replica in lab.ready()["replicas"]}
    with lab.load(INGRESS) as load:
        lab.sandbox.exec(INGRESS, "systemctl kill -s KILL lambdactl-service@app", check=True)
        lab.until(lambda value: value["supervised"])
        assert {replica["replica"]: replica["run_id"] for replica in lab.ready()["replicas"]} == before
        lab.sandbox.pause(OTHER)
        try:
            value = lab.until(lambda value: value["replicas_ready"] == 1)
            assert value["state"] == "degraded"
        finally:
            lab.sandbox.unpause(OTHER)
        lab.ready()
    assert load["failures"] == 0, load
    lab.sandbox.exec(OTHER, ["pkill", "-KILL", "-f", "^python3 /tmp/app.py"], check=True)
    lab.until(lambda value: value["failures"])
    after = {replica["replica"]: replica["run_id"] for replica in lab.ready()["replicas"]}
    assert after[0] == before[0] or after[1] != before[1]
    lab.sandbox.exec(OTHER, "touch /tmp/sick")
    value = lab.until(lambda value: any("answered 500" in f["reason"] for f in value["failures"].values()))
    lab.sandbox.exec(OTHER, "rm /tmp/sick")
    lab.ready()
    lab.sandbox.exec(INGRESS, "pkill -KILL haproxy", check=True)
    with lab.attached("app") as url:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                if ask(url, lab.token)[0] == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_taken_port_is_named_and_the_place_is_taken_when_it_is_free(lab: Lab) -> None:
    assert lab.run("stop", "app", "-y").rc == 0
    lab.sandbox.exec(OTHER, "systemd-run --unit=squatter python3 -m http.server 8000", check=True)
    assert lab.apply(lab.file("two"), "-d").rc == 0
    value = lab.until(lambda value: value["failures"])
    assert "port 8000 is taken by python3 (process" in value["failures"]["1"]["reason"]
    lab.sandbox.exec(OTHER, "systemctl stop squatter", check=True)
    lab.ready()


def test_the_ingress_leaves_nothing(lab: Lab) -> None:
    assert lab.run("stop", "app", "-y").rc == 0
    assert lab.get()["state"] == "stopped"
    play = ("playbook", "run", "ingress", "--", "-i", lab.sandbox.fleet_file)
    again = lab.cli(*play)
    assert again.rc == 0, again.out
    assert "changed=0" in again.out
    gone = lab.cli(*play, "-e", "ingress_state=absent")
    assert gone.rc == 0, gone.out
    left = lab.sandbox.exec(
        INGRESS,
        "ls -d /etc/lambdactl-ingress /run/lambdactl-ingress /var/lib/lambdactl/services /usr/sbin/haproxy "
        "/etc/systemd/system/*lambdactl* /etc/systemd/system/*/*lambdactl* /etc/systemd/system/haproxy* 2>/dev/null",
    )
    assert left.stdout == ""
    dry = lab.cli(*play, "--check")
    assert dry.rc == 0, dry.out
