"""Following a run on Kubernetes: its logs by the API's stream, its life by the session's watches, until its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lambdactl.run.screen import LogOutput
from lambdactl.run.status import RunStatus
from lambdactl.transport.base import gather_all

from .control import clean_up, end_others, lose, stop
from .errors import APIError, LogNotReady, NotFound
from .podstate import given_up, outcome
from .session import RunSession
from .start import Starter
from .view import RunView

LAST_WORDS = 15.0
"""Seconds that a log may still come after its container has ended."""


class KubeFollower:
    """Streams the logs of some ranks; with `follow` until the run is over, else up to the logs' present ends.

    Args:
        show: the ranks whose logs are wanted.
        since: only what was written since then (seconds since the epoch).
        notify: gets one short sentence when something happens that the log does not say.
        starter: brings the run to its start while it is followed; None: somebody else does.
        tidy: remove the run's objects when it has ended.
    """

    def __init__(
        self,
        session: RunSession,
        output: LogOutput,
        *,
        show: list[int],
        since: float | None = None,
        follow: bool = True,
        notify: Callable[[str], None] = lambda _text: None,
        starter: Starter | None = None,
        tidy: bool = False,
    ) -> None:
        self.session = session
        self._output = output
        self._show = show
        self._since = since
        self._follow = follow
        self._notify = notify
        self._starter = starter
        self._tidy = tidy
        self.problems: dict[int, str] = {}

    async def run(self) -> None:
        """Stream, and with `follow` wait for the end.

        Raises:
            CapacityError, LambdactlError: the run could not start, and was taken back.
            APIError: the API refuses, or is out of reach for too long.
        """
        if not self._follow:
            await gather_all({str(rank): self._rank(rank) for rank in self._show})
            return
        logs = [asyncio.create_task(self._rank(rank)) for rank in self._show]
        try:
            if self._starter is not None:
                await self._starter.run()
            await self._until_over()
            done, late = await asyncio.wait(logs, timeout=LAST_WORDS) if logs else (set(), set())
            for task in done:
                task.result()
            for rank, task in zip(self._show, logs, strict=True):
                if task in late:
                    self._notify(f"rank {rank}: its log did not end with its container, and may be incomplete here.")
        finally:
            for task in logs:
                task.cancel()
            await asyncio.gather(*logs, return_exceptions=True)
        if self._tidy:
            await clean_up(self.session.client, self.session.view)

    async def status(self) -> RunStatus | None:
        """What is known of the run now."""
        return self.session.view.status()

    async def _until_over(self) -> None:
        """Until the run is final; meanwhile do what Kubernetes does not do by itself."""
        while not self.session.view.final:
            view = self.session.view
            if view.stop_order is None:
                await self._help(view)
            await self.session.change(timeout=5.0)

    async def _help(self, view: RunView) -> None:
        if view.lagging:
            await end_others(self.session.client, view.lagging)
        for rank, pod in view.pods.items():
            if given_up(pod) and not view.ended:
                node = (pod.get("spec") or {}).get("nodeName")
                await lose(self.session, rank, f"rank {rank} on {node}: {outcome(pod)['message']}")
                return
        # `on_node_failure: ignore` with master-done: the end of rank 0 ends the run, also when it failed.
        facts = view.facts
        if facts.get("on_node_failure") == "ignore" and facts.get("stop_criteria") == "master-done" and 0 in view.pods:
            end = outcome(view.pods[0]) if (view.pods[0].get("status") or {}).get("phase") == "Failed" else None
            if end is not None and view.job is not None and view.active:
                text = f"rank 0 on {view.pods[0]['spec'].get('nodeName')}: {end['message']}"
                uid = view.job["metadata"]["uid"]
                await stop(
                    self.session.client, self.session.job_name, uid, reason=end["reason"], message=text,
                    state="failed", rank=0,
                    exit_code=end["exit_code"],
                )  # fmt: skip

    async def _rank(self, rank: int) -> None:
        view = self.session.view
        if self._follow:
            await self.session.until(lambda seen: seen.log_readable(rank) or seen.final)
        if not view.log_readable(rank):
            state = view.rank_state(rank)
            self.problems[rank] = f"there is no log yet ({state.get('message') or state['state']})"
            return
        name = view.pods[rank]["metadata"]["name"]

        async def ended() -> bool:
            return rank in view.gone or (view.pods[rank].get("status") or {}).get("phase") in ("Succeeded", "Failed")

        try:
            async for chunk in self.session.client.follow_log(
                name, since=self._since, follow=self._follow, ended=ended
            ):
                self._output.write(rank, chunk)
        except (LogNotReady, NotFound) as error:
            self.problems[rank] = str(error)
        except APIError as error:
            self.problems[rank] = str(error)
            self._notify(f"rank {rank}: {error}")
        self._output.flush(rank)
