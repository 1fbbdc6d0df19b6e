"""A replica's probes beside it in its own pod: what a kubelet cannot ask (another method, several, a login, counts).

The container that executes this asks the replica at the pod's address, by the same rules as on SSH fleets, and the
kubelet asks it, on a port of its own: `/startup` until the replica was ready once, `/live` for as long as it should
not be restarted. Whether requests may go to the replica is a file, `ready`; beside it `why` has what is wrong.
Standard library only; the image needs nothing but Python 3.8.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .service_doc import Probe
from .service_health import Health
from .service_probe import Prober

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


BAD = 599  # No service answers that, so that whoever reads the kubelet's events knows whose answer it is.
NOT_YET = "not asked yet"


class Replica:
    """What the probes say of the container beside this one, through all its restarts."""

    def __init__(self, ip: str, port: int, probes: list[Probe], folder: str) -> None:
        self._place = (ip, port)
        self._probes = probes
        self._folder = folder
        self._inbox: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._lock = threading.Lock()
        self._life = 0
        self._prober: Prober | None = None
        self._began = False
        self._said: tuple[bool, str] | None = None
        self.health = Health(probes)
        self._begin()
        threading.Thread(target=self._listen, daemon=True).start()

    def _begin(self) -> None:
        if self._prober is not None:
            self._prober.close()
        self._life += 1
        self._began = False
        self.health = Health(self._probes)
        self._prober = Prober(str(self._life), *self._place, self._probes, self._inbox)
        self._tell()

    def _listen(self) -> None:
        while True:
            _, life, index, problem = self._inbox.get()
            with self._lock:
                if life == str(self._life):
                    self.health.probes[index].record(problem)
                    self._tell()

    def startup(self) -> str:
        """The kubelet asks until the answer is "" (once ready); when it asks after that, the container is a new one."""
        with self._lock:
            if self._began:
                self._begin()
            self._began = self.health.ready
            return "" if self._began else self.health.message or NOT_YET

    def broken(self) -> str:
        """Why the kubelet should restart the container; empty when it should not."""
        with self._lock:
            return self.health.broken

    def _tell(self) -> None:
        now = (self.health.ready, self.health.message)
        if now == self._said:
            return
        self._said = now
        ready, why = os.path.join(self._folder, "ready"), os.path.join(self._folder, "why")
        with open(f"{why}.new", "w", encoding="utf-8") as file:
            file.write(self.health.message or NOT_YET)
        os.replace(f"{why}.new", why)
        if self.health.ready:
            open(ready, "w").close()
        elif os.path.exists(ready):
            os.unlink(ready)
        print("ready" if self.health.ready else f"not ready: {self.health.message or 'begins'}", flush=True)


class Door(ThreadingHTTPServer):
    """Where the kubelet asks."""

    daemon_threads = True

    def __init__(self, ip: str, port: int, replica: Replica) -> None:
        self.address_family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self.replica = replica
        super().__init__((ip, port), _Handler)

    def server_bind(self) -> None:
        """Bind, and ask no name server who this is."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)


class _Handler(BaseHTTPRequestHandler):
    server: Door
    timeout = 10

    def do_GET(self) -> None:
        """The two questions."""
        replica = self.server.replica
        asked = {"/startup": replica.startup, "/live": replica.broken}.get(self.path)
        problem = "there is nothing here" if asked is None else asked()
        self.send_response(BAD if problem else 200)
        self.end_headers()
        self.wfile.write(problem.encode())

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: the kubelet asks every second."""


def main() -> None:
    """`PROBES FOLDER`: the probes as JSON, {port, listen, probes: [...]}, and where `ready` and `why` are told."""
    # The first process of a container ignores every signal that it does not ask for.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    file, folder = sys.argv[1:]
    with open(file, encoding="utf-8") as source:
        raw = json.load(source)
    ip = os.environ["LAMBDACTL_NODE_IP"]
    replica = Replica(ip, raw["port"], [Probe(probe) for probe in raw["probes"]], folder)
    Door(ip, raw["listen"], replica).serve_forever()
