"""Following a run: one long-lived channel a rank, resumed by byte offset, until the gang has ended."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambdactl.errors import LambdactlError
from lambdactl.run.frames import Data, FrameParser, Gap, StateChange
from lambdactl.run.nodes import runner_command
from lambdactl.run.screen import LogOutput
from lambdactl.run.status import FINAL, RunStatus, fetch_runs
from lambdactl.transport.api import TransportError
from lambdactl.transport.base import gather_all

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport

# A cut connection is taken up again after 0.2 s, 0.4 s ... at most this many seconds.
_MAX_PAUSE = 5.0
_CHUNK = 1 << 20


@dataclass
class Cursor:
    """How far a rank's log was read; `offset` is where the next byte stands."""

    rank: int
    host: str
    offset: int = 0
    since: float | None = None
    final: Mapping[str, Any] | None = None
    last_problem: str | None = None
    states: list[str] = field(default_factory=list)


class Follower:
    """Streams the logs of some ranks of one run.

    Args:
        hosts: inventory names by rank, for all ranks of the run.
        show: the ranks whose logs are wanted.
        notify: gets one short sentence when something happens that the log does not say.
        give_up: seconds without any connection to a rank after which its stream is given up.
    """

    def __init__(
        self,
        transport: Transport,
        run_id: str,
        hosts: Mapping[int, str],
        output: LogOutput,
        *,
        show: list[int],
        since: float | None = None,
        follow: bool = True,
        notify: Callable[[str], None] = lambda _text: None,
        give_up: float = 150.0,
    ) -> None:
        self._transport = transport
        self._run_id = run_id
        self._hosts = dict(hosts)
        self._output = output
        self._follow = follow
        self._notify = notify
        self._give_up = give_up
        self.cursors = {rank: Cursor(rank, self._hosts[rank], since=since) for rank in show if rank in self._hosts}

    async def run(self) -> None:
        """Stream until every shown rank's log has ended (rank 0's ends with the gang)."""
        await gather_all({str(rank): self._rank(cursor) for rank, cursor in self.cursors.items()})

    async def status(self) -> RunStatus | None:
        """What the nodes say of the run now; None when none of them knows it."""
        runs, _problems = await fetch_runs(self._transport, self._hosts.values(), self._run_id)
        return runs[0] if runs else None

    async def reach(self, rank: int, offset: int, *, patience: float = 15.0) -> None:
        """While `run` is running: wait until a rank's log was shown up to an offset, at most `patience` seconds."""
        for _ in range(int(patience / 0.05)):
            if self.cursors[rank].offset >= offset or self.cursors[rank].final is not None:
                return
            await asyncio.sleep(0.05)

    async def _rank(self, cursor: Cursor) -> None:
        pause = 0.2
        lost_since: float | None = None
        while True:
            before = cursor.offset
            try:
                if await self._stream(cursor) or not self._follow:
                    break
            except TransportError as error:
                cursor.last_problem = error.failure.message
            now = time.monotonic()
            lost_since = now if lost_since is None or cursor.offset != before else lost_since
            # Only who follows waits for a node to come back.
            idle = not self._follow and cursor.offset == before
            if idle or now - lost_since > self._give_up or await self._ended_elsewhere(cursor):
                self._notify(
                    f"rank {cursor.rank} on {cursor.host} does not answer any more ({cursor.last_problem}); "
                    "its log is incomplete here."
                )
                break
            pause = 0.2 if cursor.offset != before else min(pause * 2, _MAX_PAUSE)
            await asyncio.sleep(pause)
            await self._transport.connect([cursor.host])
        self._output.flush(cursor.rank)

    async def _ended_elsewhere(self, cursor: Cursor) -> bool:
        """Whether the other nodes say that the run is over, while this one is silent."""
        others = [host for host in self._hosts.values() if host != cursor.host]
        if not others:
            return False
        with contextlib.suppress(LambdactlError, OSError):
            runs, _ = await fetch_runs(self._transport, others, self._run_id)
            return bool(runs) and runs[0].state in FINAL
        return False

    async def _stream(self, cursor: Cursor) -> bool:
        """One channel, from the cursor until it ends; True when that was the end of the rank's log."""
        words = ["logs", self._run_id, "--offset", str(cursor.offset)]
        if cursor.since is not None and cursor.offset == 0:
            words += ["--since", repr(cursor.since)]
        if self._follow:
            words.append("--follow")
        channel = await self._transport.channel(cursor.host, runner_command(shlex.join(words)))
        parser = FrameParser()
        try:
            while chunk := await channel.read(_CHUNK):
                for frame in parser.feed(chunk):
                    self._take(cursor, frame)
            code = await channel.wait()
            if code and cursor.final is None:
                words_of = channel.stderr.decode("utf-8", "replace").strip().splitlines()
                cursor.last_problem = words_of[-1][:300] if words_of else f"exit code {code}"
            return cursor.final is not None
        finally:
            await channel.close()

    def _take(self, cursor: Cursor, frame: Data | Gap | StateChange) -> None:
        if isinstance(frame, Data):
            # The stream may begin before the cursor after a resumption; never show a byte twice.
            skip = max(0, cursor.offset - frame.offset) if cursor.offset else 0
            data = frame.data[skip:] if skip else frame.data
            cursor.offset = frame.offset + len(frame.data)
            if data:
                self._output.write(cursor.rank, data)
        elif isinstance(frame, Gap):
            cursor.offset = frame.end
            self._notify(
                f"rank {cursor.rank}: {frame.end - frame.start} bytes of the log were rotated away on {cursor.host}."
            )
        else:
            cursor.states.append(str(frame.state.get("state")))
            if frame.final:
                cursor.final = frame.state
