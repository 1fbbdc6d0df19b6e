"""The OpenSSH backend's child processes: who reaps them."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest

from lambdactl.transport.process import finish, reap, start

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    "script", ["exec sleep 600", "sleep 600 & exec true", "trap '' TERM; while :; do sleep 1; done"]
)
@pytest.mark.parametrize("end", ["reap", "finish"])
def test_only_asyncio_reaps_what_is_ended(
    script: str, end: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looked: list[int] = []
    poll = subprocess.Popen.poll

    def counted(popen: subprocess.Popen[bytes]) -> Any:
        looked.append(popen.pid)
        return poll(popen)

    async def body() -> int | None:
        process = await start(["sh", "-c", script])
        monkeypatch.setattr(subprocess.Popen, "poll", counted)
        await (reap(process) if end == "reap" else finish([process]))
        return process.returncode

    returncode = asyncio.run(body())
    assert returncode is not None
    assert looked == []
    assert caplog.messages == []
