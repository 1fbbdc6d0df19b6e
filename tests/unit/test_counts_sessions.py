"""One session of the runner a node: what keeps it, what ends it, and that its end is never the caller's trouble."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from lambdactl.run.nodes import Problem, call, call_all, same
from lambdactl.run.sessions import ServeSessions
from lambdactl.transport import open_transport
from lambdactl.transport.api import Completed, Kind
from tests.bed.gang import GangBed

pytestmark = pytest.mark.timeout(120)

STATUS = {"op": "status", "run": None}


@pytest.fixture(scope="module")
def bed() -> Iterator[GangBed]:
    with GangBed(nodes=3) as bed:
        bed.load()
        yield bed


@pytest.fixture(autouse=True)
def bed_home(bed: GangBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bed.home))


@pytest.fixture(params=["asyncssh", "openssh"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast(Kind, request.param)


@asynccontextmanager
async def sessions(bed: GangBed, kind: Kind) -> AsyncIterator[ServeSessions]:
    async with open_transport(bed.load(), kind=kind) as transport, ServeSessions(transport) as kept:
        yield kept


def started(bed: GangBed) -> int:
    return bed.node.log.read_text(errors="replace").count("Starting session:")


def serving(bed: GangBed) -> list[int]:
    """The `serve` processes of this bed."""
    found = []
    for pid in bed.leftovers():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in words and words[0].endswith(b"python3"):
            found.append(pid)
    return found


def test_after_the_first_request_no_session_is_started(bed: GangBed, kind: Kind) -> None:
    first = bed.addresses[0]

    async def body() -> None:
        async with sessions(bed, kind) as kept:
            await call_all(kept, same(bed.addresses, **STATUS))
            before = started(bed)
            for _ in range(3):
                answers = await call_all(kept, same(bed.addresses, **STATUS))
                assert list(answers.values()) == [{"ranks": []}] * 3
            replies = (await call(kept, {first: [{"op": "probe", "roles": {}}, STATUS]}))[first]
            assert isinstance(replies, list)
            assert "cpus" in cast(dict[str, object], replies[0])
            assert replies[1] == {"ranks": []}
            assert started(bed) == before

    asyncio.run(body())


@pytest.mark.parametrize("end", ["killed", "cut"])
def test_a_session_that_ended_is_replaced(bed: GangBed, kind: Kind, end: str) -> None:
    async def body() -> None:
        async with sessions(bed, kind) as kept:
            await call_all(kept, same(bed.addresses, **STATUS))
            if end == "cut":
                bed.node.drop_sessions()
            else:
                for pid in serving(bed):
                    os.kill(pid, signal.SIGKILL)
            answers = await call_all(kept, same(bed.addresses, **STATUS))
            assert list(answers.values()) == [{"ranks": []}] * 3

    asyncio.run(body())


def test_a_request_that_is_cancelled_does_not_answer_the_next_one(bed: GangBed, kind: Kind) -> None:
    async def body() -> None:
        async with sessions(bed, kind) as kept:
            await call_all(kept, same(bed.addresses, **STATUS))
            asking = asyncio.ensure_future(call_all(kept, same(bed.addresses, op="probe", roles={})))
            await asyncio.sleep(0.005)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            answers = await call_all(kept, same(bed.addresses, **STATUS))
            assert list(answers.values()) == [{"ranks": []}] * 3

    asyncio.run(body())


def test_refusals_and_other_commands_go_through(bed: GangBed, kind: Kind) -> None:
    async def body() -> None:
        async with sessions(bed, kind) as kept:
            refused = (await call_all(kept, same(bed.addresses[:1], op="nonsense")))[bed.addresses[0]]
            assert isinstance(refused, Problem)
            assert refused.code == "bad-request"
            done = await kept.run(bed.addresses[1], "echo $((6 * 7))")
            assert isinstance(done, Completed)
            assert done.stdout == b"42\n"

    asyncio.run(body())


def test_a_node_without_a_runner_and_one_that_is_slow_do_not_hide_the_others(bed: GangBed, kind: Kind) -> None:
    first, second, third = bed.addresses
    runner = bed.root(second) / "opt/lambdactl/runner.pyz"
    content = runner.read_bytes()
    slow = b"import time\ntime.sleep(1000)\n"

    async def body() -> None:
        async with sessions(bed, kind) as kept:
            (bed.root(third) / "opt/lambdactl/runner.pyz").write_bytes(slow)
            runner.unlink()
            answers = await call_all(kept, same(bed.addresses, **STATUS), timeout=5)
            assert answers[first] == {"ranks": []}
            codes = [answer.code for answer in answers.values() if isinstance(answer, Problem)]
            assert codes == ["no-runner", "timeout"]

    try:
        asyncio.run(body())
    finally:
        for address in (second, third):
            (bed.root(address) / "opt/lambdactl/runner.pyz").write_bytes(content)


@pytest.mark.parametrize(
    ("rc", "stderr", "code"),
    [
        (97, b"lambdactl: no sudo\n", "no-sudo"),
        (1, b"sudo: a password is required\n", "no-sudo"),
        (1, b"ubuntu is not in the sudoers file.\n", "no-sudo"),
        (1, b"Traceback: sudo\n", "runner-failed"),
        (96, b"lambdactl: no runner\n", "no-runner"),
        (127, b"sh: python3: not found\n", "no-python"),
    ],
)
def test_a_node_that_gives_no_answer_has_a_reason(rc: int, stderr: bytes, code: str) -> None:
    class Refusing:
        async def fan_out(self, commands: Any, **_: Any) -> dict[str, Completed]:
            return {name: Completed(name, rc, b"", stderr) for name in commands}

    answers = asyncio.run(call_all(Refusing(), {"n": {"op": "status"}}))  # type: ignore[arg-type]  # a stand-in with what is asked of it
    assert isinstance(answers["n"], Problem)
    assert answers["n"].code == code
