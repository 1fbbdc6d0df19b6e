"""Probing a replica from the ingress host: a thread for each probe, results into the supervisor's inbox."""

from __future__ import annotations

import http.client
import socket
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from queue import Queue
    from typing import Any

    from .service_doc import Probe

FIRST_INTERVAL = 1.0  # until the first success, which nobody should wait for longer than need be
MOST_BODY = 1 << 20


def ask(ip: str, port: int, probe: Probe) -> str | None:
    """Do one probe: None when it succeeded, else one clause that says what was wrong."""
    what = f"{probe.method} {probe.url}" if probe.url is not None else f"a connection to port {port}"
    try:
        if probe.url is None:
            socket.create_connection((ip, port), timeout=probe.timeout).close()
            return None
        connection = http.client.HTTPConnection(ip, port, timeout=probe.timeout)
        try:
            body = None if probe.body is None else probe.body.encode()
            connection.request(probe.method, probe.url, body=body, headers=probe.headers)
            answer = connection.getresponse()
            answer.read(MOST_BODY)
        finally:
            connection.close()
    except socket.timeout:
        return f"{what} took longer than {probe.timeout:g} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{what}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    return None if 200 <= answer.status < 300 else f"{what} answered {answer.status}"


class Prober:
    """Asks one replica's probes again and again; puts ("probe", run, index, problem) into the inbox."""

    def __init__(self, run: str, ip: str, port: int, probes: list[Probe], inbox: Queue[tuple[Any, ...]]) -> None:
        self._place = (ip, port)
        self._run = run
        self._inbox = inbox
        self._closed = threading.Event()
        for index, probe in enumerate(probes):
            threading.Thread(target=self._ask_on, args=(index, probe), daemon=True).start()

    def _ask_on(self, index: int, probe: Probe) -> None:
        succeeded, streak = False, 0
        while not self._closed.is_set():
            began = time.monotonic()
            problem = ask(*self._place, probe)
            if self._closed.is_set():
                return
            self._inbox.put(("probe", self._run, index, problem))
            succeeded = succeeded or problem is None
            streak = streak + 1 if problem is None else 0
            if probe.until_ready and streak >= probe.ready_after:
                return
            interval = probe.interval if succeeded else min(FIRST_INTERVAL, probe.interval)
            self._closed.wait(max(0.02, interval - (time.monotonic() - began)))

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()
