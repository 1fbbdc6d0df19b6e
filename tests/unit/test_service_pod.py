"""The program beside a replica in its pod: what it answers the kubelet, from real requests to a real server."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from lambdactl import spec
from lambdactl.backends.kubernetes import service_prober

PATIENCE = 60.0
PROBES = """
- {type: http, url: /a, interval: 1s, ready_after: 2}
- {type: http, url: /b, method: post, body: ask, headers: [{name: Authorization, value: Bearer x}], interval: 1s}
"""


class Replica(ThreadingHTTPServer):
    """A service whose answers a test sets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.codes = {"/a": 200, "/b": 200}
        self.asked: list[tuple[str, str, str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Replica

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization", ""), body))
        self.send_response(self.server.codes[self.path])
        self.end_headers()

    do_POST = do_GET

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        return


class Beside:
    """The program, as the kubelet starts it, and the replica beside it."""

    def __init__(self, folder: Path, probes: str) -> None:
        self.replica = Replica()
        Thread(target=self.replica.serve_forever, daemon=True).start()
        text = {"type": "service", "name": "web", "image": "i", "port": self.replica.server_address[1],
                "probes": yaml.safe_load(probes)}  # fmt: skip
        service = spec.loads(yaml.safe_dump(text), kind="service")
        for name, source in service_prober.program().items():
            file = folder / ("__main__.py" if name == "prober" else f"node/{name.removeprefix('prober.')}.py")
            file.parent.mkdir(exist_ok=True)
            file.write_text(source)
        self.said = folder / "said"
        self.said.mkdir()
        asked = {"port": service.port, "listen": 0, "probes": service_prober.probes(service)}
        self.port = free_port()
        (folder / "probes.json").write_text(json.dumps(asked | {"listen": self.port}))
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(folder), str(folder / "probes.json"), str(self.said)],
            env={"LAMBDACTL_NODE_IP": "127.0.0.1"},
        )

    def ask(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    @property
    def ready(self) -> bool:
        return (self.said / "ready").exists()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    found = Beside(tmp_path, PROBES)
    yield found
    found.process.kill()
    found.process.wait()
    found.replica.shutdown()


def test_ready_after_all_probes_have_succeeded_as_often_as_they_should(beside: Beside) -> None:
    until(lambda: beside.ask("/startup")[0] == 200)
    assert beside.ready
    asked = [item for item in beside.replica.asked if item[1] == "/b"]
    assert asked[0] == ("POST", "/b", "Bearer x", "ask")
    assert sum(item[1] == "/a" for item in beside.replica.asked) >= 2
    assert beside.ask("/live") == (200, "")
    assert beside.ask("/else")[0] == 599


def test_the_first_failure_is_not_ready_and_the_third_restarts(beside: Beside) -> None:
    until(lambda: beside.ask("/startup")[0] == 200)
    beside.replica.codes["/b"] = 500
    until(lambda: not beside.ready)
    until(lambda: (beside.said / "why").read_text() == "POST /b answered 500")
    until(lambda: beside.ask("/live") == (599, "POST /b answered 500"))
    # The kubelet starts the container again, and asks for its start: nothing of the one before counts.
    assert beside.ask("/startup")[0] == 599
    assert beside.ask("/live") == (200, "")
    beside.replica.codes["/b"] = 200
    until(lambda: beside.ask("/startup")[0] == 200)
    assert beside.ready


def test_its_stop_signal_ends_it(beside: Beside) -> None:
    until(lambda: beside.ask("/startup")[0] == 200)
    os.kill(beside.process.pid, 15)
    assert beside.process.wait(timeout=PATIENCE) == 0


def test_until_ready_is_asked_no_more(tmp_path: Path) -> None:
    beside = Beside(tmp_path, "[{type: http, url: /a, until_ready: true, ready_after: 2, interval: 1s}]")
    try:
        until(lambda: beside.ask("/startup")[0] == 200)
        times = len(beside.replica.asked)
        beside.replica.codes["/a"] = 500
        time.sleep(1.5)
        assert (len(beside.replica.asked), beside.ready, beside.ask("/live")[0]) == (times, True, 200)
    finally:
        beside.process.kill()
        beside.process.wait()
        beside.replica.shutdown()
