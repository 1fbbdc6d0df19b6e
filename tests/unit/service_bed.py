"""A service on the node bed: real supervisor, real replicas, real HTTP; the proxy is HAProxy where it is installed."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.unit.node_bed import PATIENCE, Bed, Node, cmdline, kill, processes

TEMPLATE = Path(__file__).resolve().parents[2] / "roles/ingress/templates/haproxy.cfg.j2"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")

APP = """
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        sick = os.path.exists(sys.argv[3])
        if self.path == "/slow":
            time.sleep(2)
        body = (sys.argv[2] + " " + self.path + " " + str(self.headers.get("authorization"))).encode()
        self.send_response(500 if sick else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.do_GET()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer((sys.argv[1].split(":")[0], int(sys.argv[1].split(":")[1])), Handler).serve_forever()
"""


class ServiceBed(Bed):
    """Nodes n0, n1 ... with the addresses 127.0.1.1, 127.0.1.2 ...; n0 is the ingress."""

    def __init__(self, base: Path, python: str, size: int, port: int) -> None:
        super().__init__(base, python, size)
        self.port, self.ingress_port = port, port + 1
        serve = f"env LAMBDACTL_ROOT={base}/{{name}} {python} -I -S {self.runner} serve"
        self.app = base / "app.py"
        self.app.write_text(APP)
        for node in self.nodes:
            node.env["LAMBDACTL_PEER_SERVE"] = serve
        self.ingress = self.nodes[0]
        self.etc = self.ingress.root / "etc/lambdactl-ingress"
        (self.etc / "services").mkdir(parents=True)
        self.supervisor: subprocess.Popen[bytes] | None = None
        self.proxy: subprocess.Popen[bytes] | None = None
        self._render()

    def _render(self) -> None:
        run = self.ingress.root / "run/lambdactl-ingress"
        run.mkdir(parents=True)
        values = {
            "__ingress_run": run,
            "__ingress_etc": self.etc,
            "ingress_bind": "127.0.0.1",
            "ingress_port": self.ingress_port,
            "ingress_timeout": 60,
            "ingress_drain_timeout": 60,
            "ingress_body_bytes": 65536,
        }
        text = TEMPLATE.read_text().replace("    user haproxy\n    group haproxy\n", "")
        for name, value in values.items():
            text = text.replace(f"{{{{ {name} }}}}", str(value))
        (self.etc / "haproxy.cfg").write_text(text)
        (self.etc / "models.map").touch()

    def start_proxy(self) -> None:
        assert HAPROXY is not None
        run = self.ingress.root / "run/lambdactl-ingress"
        argv = [HAPROXY, "-Ws", "-q", "-f", self.etc / "haproxy.cfg", "-f", self.etc / "services"]
        self.proxy = subprocess.Popen([*map(str, argv), "-p", str(run / "haproxy.pid")])

    def start_supervisor(self, name: str = "web") -> None:
        self.supervisor = subprocess.Popen(
            self.ingress.argv("service", name), env=self.ingress.env, stdin=subprocess.DEVNULL
        )

    def sick(self, node: int) -> Path:
        return self.base / f"sick-{node}"

    def service(self, word: str = "one", **changes: Any) -> dict[str, Any]:
        hosts = []
        for index, node in enumerate(self.nodes):
            address = f"127.0.1.{index + 1}"
            script = f"exec {self.python} {self.app} {address}:{self.port} {word} {self.sick(index)}"
            job = {"script": script, "working_dir": str(self.base), "env": {}, "owner": "me", "stop_grace": 5}
            user = self.job("x")["nodes"][0]["ssh_user"]
            hosts.append({"name": node.name, "ip": address, "ssh_user": user, "job": job})
        base = {"name": "web", "revision": word.encode().hex(), "replicas": 2, "port": self.port, "hosts": hosts}
        probe = {"url": "/health", "interval": 0.3, "timeout": 2}
        return {**base, "ingress": "n0", "probes": [probe], "drain_timeout": 1, **changes}

    def apply(self, word: str = "one", **changes: Any) -> dict[str, Any]:
        return self.ingress.call("service-apply", service=self.service(word, **changes))

    def status(self) -> dict[str, Any]:
        return self.ingress.call("service-status", service="web")["services"][0]

    def wait(self, condition: Any, patience: float = PATIENCE) -> dict[str, Any]:
        deadline = time.monotonic() + patience
        while True:
            value = self.status()
            if condition(value):
                return value
            assert time.monotonic() < deadline, json.dumps(value, indent=1)
            time.sleep(0.1)

    def ready(self, count: int = 2) -> dict[str, Any]:
        return self.wait(lambda value: value["replicas_ready"] == count and value["state"] == "running")

    def get(self, path: str, token: str | None = None, **options: Any) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ingress_port, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(options.pop("method", "GET"), path, headers=headers, **options)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def eventually(self, path: str, token: str | None, status: int) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found, text = self.get(path, token)
            except OSError:
                found, text = 0, "no connection"
            if found == status:
                return text
            assert time.monotonic() < deadline, (found, text)
            time.sleep(0.1)

    def replica(self, node: Node) -> int:
        """The process of the replica on a node."""
        address = f"127.0.1.{self.nodes.index(node) + 1}:{self.port}"
        return next(pid for pid in processes() if address in cmdline(pid) and str(self.app) in cmdline(pid))

    def close(self) -> None:
        for process in (self.supervisor, self.proxy):
            if process is not None:
                process.terminate()
                process.wait(PATIENCE)
        for pid in processes():
            words = cmdline(pid)
            if str(self.app) in words:
                kill(pid)
        for node in self.nodes:
            for folder in (node.state / "runs").glob("*"):
                self.runs.append(folder.name)
        super().close()
