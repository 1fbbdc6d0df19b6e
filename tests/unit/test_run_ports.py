"""Ports of a run on this machine, through a real jump host."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from lambdactl.errors import SpecError
from lambdactl.run import ports
from lambdactl.run.ports import Port
from lambdactl.transport import open_transport
from tests.bed.bed import Bed

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Bed(nodes=1) as bed:
        yield bed


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_options_win_over_the_file_and_belong_to_rank_0() -> None:
    ranks = [
        {"rank": 0, "node": "a", "ports": [[8501, 8501], [None, 9000]]},
        {"rank": 1, "node": "b", "ports": [[7000, 7001]]},
    ]
    found = ports.wanted(ranks, ["5000:9000", "6000"])
    assert found == [Port("a", 8501, 8501), Port("a", 9000, 5000), Port("a", 6000, 6000), Port("b", 7001, 7000)]
    with pytest.raises(SpecError, match="'-p' must be a port"):
        ports.wanted(ranks, ["x:1"])


def test_a_taken_port_moves_or_is_refused(taken: int) -> None:
    assert ports.choose([Port("a", taken, taken), Port("a", 80, None)]) == [Port("a", taken, None), Port("a", 80, None)]
    with pytest.raises(SpecError, match=f"port {taken} of this machine is taken; choose another one, .* -p \\*:80"):
        ports.choose([Port("a", 80, taken)])
    with pytest.raises(SpecError, match="is used for another port"):
        ports.choose([Port("a", 80, 28080), Port("a", 81, 28080)])


@pytest.mark.parametrize("kind", ["asyncssh", "openssh"])
def test_a_port_is_here_while_attached_and_comes_back_after_a_cut(
    bed: Bed, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "_CHECK", 0.1)
    notes: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def ask(port: int) -> bytes:
        for _ in range(200):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"hello\n")
                # A request that the cut met on its way may never be answered; clients have a time limit for that.
                said = await asyncio.wait_for(reader.read(), 5)
                writer.close()
            except OSError:
                said = b""
            if said:
                return said
            await asyncio.sleep(0.1)
        return b""

    async def body() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        remote = server.sockets[0].getsockname()[1]
        async with open_transport(bed.fleet(), kind=kind) as transport:
            async with ports.forwarded(transport, [Port(bed.addresses[0], remote, None)], notes.append):
                (local,) = re.findall(rf"^http://127.0.0.1:(\d+) is port {remote} of 127.1.0.1\.$", notes[0])
                assert await ask(int(local)) == b"hello\n"
                bed.node.drop_sessions()
                assert await ask(int(local)) == b"hello\n"
            with pytest.raises(OSError):  # noqa: PT011 (any of them: nobody listens)
                await asyncio.open_connection("127.0.0.1", int(local))
        server.close()

    asyncio.run(body())
