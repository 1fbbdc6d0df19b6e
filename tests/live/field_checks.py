"""Checks of task fields on any cluster: what the file brings along, reaches, and asks of the image."""

from __future__ import annotations

import http.client
import re
import socket
import time

import pytest

from tests.live.desk import PATIENCE, Desk

_SERVER = """
commands:
  - |
    mkdir -p /tmp/web; echo hello from $DSTACK_RUN_NAME >/tmp/web/page; cd /tmp/web
    if command -v python3 >/dev/null; then exec python3 -m http.server 8931
    elif busybox httpd --help >/dev/null 2>&1; then exec busybox httpd -f -p 8931 -h /tmp/web
    else echo no web server; fi
"""


def page(port: int) -> str:
    """What the server of a run says at a local port; "" for as long as it says nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/page")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def check_ports_while_attached(desk: Desk) -> None:
    name = desk.name("ports")
    if "no web server" in desk.run("apply", "-f", desk.task("ports", probe()), "-y").stdout:
        pytest.skip(f"the image {desk.image} has no web server")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        text = f"ports: ['{port}:8931']\n{_SERVER}"
        said = desk.run("apply", "-f", desk.task("ports", text), "-y", rc=2).stderr
        assert f"port {port} of this machine is taken; choose another one" in said
    attached = desk.start("apply", "-f", desk.task("ports", f"ports: ['*:8931']\n{_SERVER}"), "-y")
    assert attached.stderr is not None
    line = next(line for line in attached.stderr if "is port 8931 of" in line)
    found = re.search(rf"http://127\.0\.0\.1:(\d+) is port 8931 of {name}-0\.", line)
    assert found, line
    deadline = time.monotonic() + PATIENCE
    while (text := page(int(found.group(1)))) != f"hello from {name}\n":
        assert time.monotonic() < deadline, text
        assert attached.poll() is None, attached.communicate()
        time.sleep(0.2)
    desk.run("stop", name, "-y")
    attached.communicate(timeout=PATIENCE)
    desk.nothing_left("ports")


def probe() -> str:
    """Commands that only say whether the image has a web server."""
    return "commands: ['command -v python3 || busybox httpd --help 2>&1 | grep -q -- -h || echo no web server']"


CHECKS = [function for name, function in list(globals().items()) if name.startswith("check_")]
