"""Writing a service's part of the proxy's configuration, and keeping the proxy's servers as the plan wants them.

The file always says how the servers stand, so that a proxy that restarts begins right; while it runs it is told by
its runtime API. Only another structure (a new service, more servers, other rules) reloads it, and a reload drops no
request: the new process takes over the listening sockets, and the old one answers what it has begun.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

from . import locks, paths, service_proxy, service_rules
from .service_proxy import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .service_doc import Service

ETC = paths.ROOT + "/etc/lambdactl-ingress"
RUN = paths.ROOT + "/run/lambdactl-ingress"
UNIT = "lambdactl-ingress.service"
RELOAD_PAUSE = 5.0
TIMEOUT = 5.0


def is_installed() -> bool:
    """Whether the role ingress has done its work here."""
    return os.path.exists(ETC + "/haproxy.cfg")


def port() -> int | None:
    """The port of the ingress that is installed here, None without one."""
    for line in paths.read_text(ETC + "/haproxy.cfg").splitlines():
        words = line.split()
        if words[:1] == ["bind"] and len(words) > 1 and words[1].rpartition(":")[2].isdigit():
            return int(words[1].rpartition(":")[2])
    return None


def ask(commands: str) -> str | None:
    """HAProxy's answer to commands of its runtime API; None when it does not answer."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    client.settimeout(TIMEOUT)
    try:
        client.connect(RUN + "/admin.sock")
        client.sendall(commands.encode() + b"\n")
        parts: list[bytes] = []
        while True:
            data = client.recv(1 << 16)
            if not data:
                return b"".join(parts).decode("utf-8", "replace")
            parts.append(data)
    except OSError:
        return None
    finally:
        client.close()


def reload() -> str:
    """Make the proxy read its files; empty, or what went wrong."""
    if paths.ROOT:
        try:
            os.kill(int(paths.read_text(RUN + "/haproxy.pid").split()[0]), signal.SIGUSR2)
        except (OSError, ValueError, IndexError):
            return "the proxy does not run"
        return ""
    result = subprocess.run(
        ["systemctl", "reload-or-restart", UNIT], capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=60
    )
    words = result.stderr.decode("utf-8", "replace").strip().splitlines()
    return "" if result.returncode == 0 else f"the proxy did not take its configuration: {words[0] if words else '?'}"


def _replace(path: str, text: str, mode: int = 0o600) -> bool:
    """Whether the file had to be written."""
    if os.path.exists(path) and paths.read_text(path) == text:
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    paths.write_atomic(path, text.encode(), mode)
    return True


def models(name: str, model: str | None) -> bool:
    """Enter the service's model into the proxy's map (None takes it out); whether the map has changed."""
    path = ETC + "/models.map"
    with locks.held(ETC + "/.lock"):
        kept = [line for line in paths.read_text(path).splitlines() if line.split()[1:] != [f"service-{name}"]]
        kept += [f"{model} service-{name}"] if model else []
        return _replace(path, "".join(line + "\n" for line in kept), 0o644)


def model_owner(model: str) -> str | None:
    """The service that has this model already."""
    for line in paths.read_text(ETC + "/models.map").splitlines():
        if line.split()[:1] == [model]:
            return line.split()[1].replace("service-", "", 1)
    return None


class Ingress:
    """One service's part of the proxy."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._path = f"{ETC}/services/{name}.cfg"
        self._stale = False  # the proxy must read its files again
        self._tried = -RELOAD_PAUSE
        self.problem = ""
        self.confirmed = False  # the proxy was seen to be as the plan wanted it at the last look

    def sync(self, service: Service, places: dict[int, Place], token: str) -> None:
        """Make the proxy as the plan wants it, as far as it answers."""
        slots = service_proxy.slots_for(service, max(places, default=0))
        text = service_proxy.config(service, places, slots=slots, etc=ETC, run=RUN)
        before = paths.read_text(self._path)
        if service.auth and _replace(f"{ETC}/auth/{self._name}", service_rules.token_hash(token) + "\n"):
            self._stale = True
        if models(self._name, service.model.name if service.model else None):
            self._stale = True
        if service_proxy.structure(text) != service_proxy.structure(before):
            self._stale = True
        _replace(self._path, text)
        if self._stale:
            self._reload()
        self._tell(places)

    def _reload(self) -> None:
        if time.monotonic() - self._tried < RELOAD_PAUSE and self.problem:
            return
        self._tried = time.monotonic()
        self.problem = reload()
        self._stale = bool(self.problem)

    def _tell(self, places: dict[int, Place]) -> None:
        self.confirmed = False
        answer = ask(f"show servers state service-{self._name}")
        if answer is None:
            self.problem = "the proxy does not answer"
            return
        shown = service_proxy.servers_state(answer)
        if not shown:  # it has not read the file yet, or could not
            self._stale = time.monotonic() - self._tried > RELOAD_PAUSE
            return
        self.problem = "" if not self._stale else self.problem
        commands = service_proxy.differences(self._name, places, shown)
        if commands:
            ask("; ".join(commands))
        self.confirmed = not commands

    def connections(self) -> dict[int, int] | None:
        """Requests under way by slot; None while it is not sure that the proxy sends no new ones to what drains."""
        answer = ask("show stat -1 4 -1") if self.confirmed else None
        return None if answer is None else service_proxy.connections(answer, self._name)

    def remove(self) -> None:
        """Take the service out of the proxy."""
        models(self._name, None)
        for path in (self._path, f"{ETC}/auth/{self._name}"):
            if os.path.exists(path):
                os.unlink(path)
        reload()
