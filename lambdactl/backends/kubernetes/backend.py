"""Kubernetes behind the protocol that commands use (`lambdactl.backends.Backend`)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from lambdactl.run.screen import LogOutput
from lambdactl.run.status import RunStatus

from . import control
from .client import Client, open_client
from .config import Target
from .errors import APIError
from .fleet import KubeFleet
from .following import KubeFollower
from .session import RunSession, open_session
from .start import Bring, Starter
from .view import RunView


@dataclass(frozen=True, slots=True)
class KubeRef:
    """A run, and the client of the cluster that has it."""

    client: Client
    view: RunView
    status: RunStatus

    @property
    def job_name(self) -> str:
        """The Job's name."""
        return str((self.view.job or {})["metadata"]["name"])

    @property
    def uid(self) -> str:
        """The Job's UID."""
        return str((self.view.job or {})["metadata"]["uid"])


class KubernetesBackend:
    """The clusters of a fleet, with open clients; made by `open_backend`."""

    kind = "kubernetes"

    def __init__(self, fleet: KubeFleet, clients: list[tuple[Target, Client]]) -> None:
        self.fleet = fleet
        self.name = fleet.name
        self.clients = clients

    async def find(self, run: str) -> KubeRef | None:
        """A run by name (the newest) or id.

        Raises:
            APIError: a cluster could not be asked.
        """
        for _target, client in self.clients:
            for view in await control.fetch(client, run):
                if (status := view.status()) is not None:
                    return KubeRef(client, view, status)
        return None

    async def runs(self, run: str | None = None) -> tuple[list[RunStatus], dict[str, str]]:
        """All runs (or one, by name or id), newest first; and why a cluster gave no answer."""
        found: list[RunStatus] = []
        problems: dict[str, str] = {}
        for target, client in self.clients:
            try:
                views = await control.fetch(client, run)
            except APIError as error:
                problems[target.name] = str(error)
                continue
            found += [status for view in views if (status := view.status()) is not None]
        return sorted(found, key=lambda status: status.submitted_at, reverse=True), problems

    async def stop(self, run: KubeRef, *, abort: bool = False) -> None:
        """Ask a run to end: the stop signal, the grace time, SIGKILL; with `abort` within a second."""
        await control.stop(run.client, run.job_name, run.uid, abort=abort)

    async def ended(self, run: KubeRef, *, patience: float) -> bool:
        """Wait until nothing of a run is left; False when it takes longer than `patience` seconds."""
        deadline = time.monotonic() + patience
        async with open_session(run.client, run.status.run_id, run.job_name) as session:
            # What was gone before this looked has no Job here.
            return await session.until(
                lambda view: view.job is None or (view.job_gone and not view.active),
                timeout=max(0.0, deadline - time.monotonic()),
            )

    @asynccontextmanager
    async def session(self, run: KubeRef) -> AsyncIterator[RunSession]:
        """Watch a run."""
        async with open_session(run.client, run.status.run_id, run.job_name) as session:
            yield session

    def follower(
        self,
        session: RunSession,
        output: LogOutput,
        *,
        show: list[int],
        since: float | None = None,
        follow: bool = True,
        notify: Callable[[str], None] = lambda _text: None,
        wait: bool = False,
        bring: Bring | None = None,
        tidy: bool = True,
    ) -> KubeFollower:
        """Streams the logs of some ranks; with `follow` it also starts what has not started, and tidies up."""
        starter = Starter(session, wait=wait, notify=notify, bring=bring) if follow else None
        return KubeFollower(
            session,
            output,
            show=show,
            since=since,
            follow=follow,
            notify=notify,
            starter=starter,
            tidy=follow and tidy,
        )


@asynccontextmanager
async def open_backend(fleet: KubeFleet) -> AsyncIterator[KubernetesBackend]:
    """A fleet's clusters, logged in to."""
    async with AsyncExitStack() as stack:
        clients = [(target, await stack.enter_async_context(open_client(target))) for target in fleet.targets]
        yield KubernetesBackend(fleet, clients)
