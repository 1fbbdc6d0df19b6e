"""Ports of ranks by the API's port-forward: pods are real processes of the fake cluster."""

from __future__ import annotations

import asyncio
import re
import uuid
from pathlib import Path

import pytest

from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.ports import PodForwarder
from lambdactl.backends.kubernetes.session import open_session
from lambdactl.backends.kubernetes.start import Starter, submit, take_back
from lambdactl.backends.kubernetes.view import view_of
from lambdactl.run.ports import Port, forwarded
from tests.fakes.kube import FakeCluster, FakeNode
from tests.fakes.kube.process import usable
from tests.unit.kube.bed import limited
from tests.unit.kube.pod_bed import kube_run

# Answers a line with the same line, and one that ends its own side with all that it was told.
_ECHO = """
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        self.wfile.write(line if line != b"all\\n" else self.rfile.read())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("127.0.0.1", 8931), Echo).serve_forever()
"""
PATIENCE = 60


async def ask(port: int, words: bytes = b"hello\n") -> bytes:
    """What the rank answers; until it does."""
    for _ in range(PATIENCE * 10):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(words)
            said = await asyncio.wait_for(reader.read(), 10)
            writer.close()
        except (OSError, TimeoutError):
            said = b""
        if said:
            return said
        await asyncio.sleep(0.1)
    return b""


@pytest.mark.skipif(usable() is not None, reason=str(usable()))
def test_a_port_is_here_while_attached_and_over_cuts_and_restarts(tmp_path: Path) -> None:
    text = "name: web\nports: [8931]\ncommands: ['exec python3 -c \"$SERVER\"']"
    run = kube_run(text, run_id=str(uuid.uuid4()), env={"SERVER": _ECHO})
    notes: list[str] = []

    async def body(cluster: FakeCluster) -> None:
        async with open_client(limited(cluster, tmp_path)) as client:
            job = await submit(client, run)
            async with open_session(client, run.run_id, "web") as session:
                local = [Port("web-0", 8931, None)]
                async with forwarded(PodForwarder(session), local, notes.append):
                    (found,) = re.findall(r"^http://127.0.0.1:(\d+) is port 8931 of web-0\.$", notes[0])
                    port = int(found)
                    assert await Starter(session).run()
                    assert await ask(port) == b"hello\n"
                    cluster.cut_connections()
                    assert await ask(port) == b"hello\n"
                    cluster.restart(down=0.5)
                    assert await ask(port, b"x" * 300_000 + b"\n") == b"x" * 300_000 + b"\n"
                with pytest.raises(OSError):  # noqa: PT011 (any of them: nobody listens)
                    await asyncio.open_connection("127.0.0.1", port)
            await take_back(client, "web", job["metadata"]["uid"])

    with FakeCluster([FakeNode("node-1")], mode="process") as cluster:
        asyncio.run(body(cluster))


def test_a_status_has_the_ports_of_the_file() -> None:
    from lambdactl.backends.kubernetes.objects import job

    made = job(kube_run("name: web\nnodes: 2\nports: [8501, '80:8080', '*:9000']\ncommands: [ls]"))
    made["metadata"] |= {"uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    status = view_of(made, []).status()
    assert status is not None
    assert [rank["ports"] for rank in status.ranks] == [[[8501, 8501], [80, 8080], [None, 9000]], []]
