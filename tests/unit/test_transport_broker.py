"""The broker: another process runs commands over this one's connections."""

# ruff: noqa: ASYNC240 (a test may look at a file between two awaits)

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdactl.errors import ConnectionFailed
from lambdactl.fleet.model import Hop
from lambdactl.transport import Completed, open_transport, run_sync
from lambdactl.transport.broker import BrokerTransport, serve_broker
from tests.bed import Bed
from tests.bed.sshd import free_port


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with Bed(4) as bed:
        monkeypatch.setenv("HOME", str(bed.home))
        monkeypatch.delenv("LAMBDACTL_TRANSPORT", raising=False)
        yield bed


@pytest.fixture
def path(bed: Bed) -> Path:
    return bed.directory / "run" / "broker"


CHILD = """
import json, sys
from lambdactl.transport import run_sync
from lambdactl.transport.broker import BrokerTransport
results = run_sync(BrokerTransport(sys.argv[1]).fan_out("echo $LAMBDACTL_ROOT; cat", input=b"hi"))
assert "asyncssh" not in sys.modules
print(json.dumps({name: result.stdout.decode() for name, result in results.items()}))
"""


def test_a_child_process_logs_in_nowhere(bed: Bed, path: Path) -> None:
    async def go() -> bytes:
        async with open_transport(bed.fleet()) as transport, serve_broker(transport, path):
            await transport.connect()
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
            pipe = asyncio.subprocess.PIPE
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, str(path), stdout=pipe)
            out, _ = await child.communicate()
        assert not path.exists()
        return out

    assert json.loads(run_sync(go())) == {address: f"{bed.roots / address}\nhi" for address in bed.addresses}
    assert bed.jump_logins() == 1
    assert bed.node_logins() == dict.fromkeys(bed.addresses, 1)


def test_the_same_results_as_the_transport_itself(bed: Bed, path: Path) -> None:
    fleet = bed.fleet(nodes=[Hop("127.1.0.9", free_port("127.1.0.9"), bed.user, str(bed.key))])
    big = os.urandom(12 << 20)
    one, two, *_ = bed.addresses

    async def go() -> None:
        async with open_transport(fleet) as transport, serve_broker(transport, path):
            client = BrokerTransport(path)
            assert await client.connect() == await transport.connect()
            seen: list[str] = []
            results = await client.fan_out("echo a >&2; exit 9", on_result=lambda name, _: seen.append(name))
            assert results == await transport.fan_out("echo a >&2; exit 9")
            assert (list(results), sorted(seen)) == ([host.name for host in fleet.hosts], sorted(results))
            assert await client.run(one, "cat; exit 1", input=big) == Completed(one, 1, big, b"")
            mixed: Any = {two: ("cat", b"x"), one: "cat"}
            assert [item.stdout for item in (await client.fan_out(mixed, input=b"y")).values()] == [b"x", b"y"]  # type: ignore[union-attr]  # it is there, or the test fails here
            late = await client.run(one, "sleep 60", timeout=0.2)
            assert late == await transport.run(one, "sleep 60", timeout=0.2)
            many = await asyncio.gather(*(client.run(one, f"echo {n}") for n in range(30)))
            assert [item.stdout for item in many] == [b"%d\n" % n for n in range(30)]  # type: ignore[union-attr]  # it is there, or the test fails here

    run_sync(go())


def test_errors_reach_the_client_in_one_sentence(bed: Bed, path: Path) -> None:
    async def go() -> None:
        async with open_transport(bed.fleet()) as transport:
            async with serve_broker(transport, path):
                with pytest.raises(ConnectionFailed, match="has no host nowhere"):
                    await BrokerTransport(path).run("nowhere", "true")
                for junk in (b"\xff" * 64, struct.pack("!I", 2) + b"[]", struct.pack("!I", 9) + b'{"size":1'):
                    reader, writer = await asyncio.open_unix_connection(str(path))
                    writer.write(junk)
                    writer.write_eof()
                    assert b"Traceback" not in await reader.read()
                    writer.close()
                assert isinstance(await BrokerTransport(path).run(bed.addresses[0], "true"), Completed)
                running = asyncio.create_task(BrokerTransport(path).run(bed.addresses[0], "sleep 60"))
                await asyncio.sleep(0.3)
            with pytest.raises(ConnectionFailed, match="went away"):
                await running
            with pytest.raises(ConnectionFailed, match="cannot be reached"):
                await BrokerTransport(path).run(bed.addresses[0], "true")

    run_sync(go())


def test_a_client_that_goes_away_takes_its_commands_along(bed: Bed, path: Path) -> None:
    async def go() -> None:
        async with open_transport(bed.fleet()) as transport, serve_broker(transport, path):
            for _ in range(3):  # 24 sessions in all: they would not fit if the first ones stayed
                tasks = [asyncio.create_task(BrokerTransport(path).run(bed.addresses[0], "cat")) for _ in range(8)]
                await asyncio.gather(*(asyncio.wait_for(task, 10) for task in tasks))
                held = [asyncio.create_task(BrokerTransport(path).run(bed.addresses[0], "sleep 1")) for _ in range(8)]
                await asyncio.sleep(0.3)
                for task in held:
                    task.cancel()
                await asyncio.gather(*held, return_exceptions=True)
            assert isinstance(await asyncio.wait_for(transport.run(bed.addresses[0], "true"), 10), Completed)

    run_sync(go())
