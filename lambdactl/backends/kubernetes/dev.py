"""A dev environment on Kubernetes: the way into its one pod, who is in it, and signs that somebody is here."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdactl.errors import LambdactlError
from lambdactl.run.aliases import Alias

from .errors import APIError
from .model import INACTIVITY, PRESENT
from .payload import BASE
from .podstate import up_at
from .reach import RankAddress, find_rank, rank_proxy, write_files
from .resources import JOBS, PODS

if TYPE_CHECKING:
    from .client import Client
    from .session import RunSession
    from .view import RunView

UP = f': >"${{LAMBDACTL_DIR:-{BASE}}}/run/up"'
"""The command after `init`; a readiness probe sees the file."""
SIGN = 30.0
"""Seconds between signs of presence; the pod gives a machine up after 120 without one."""
# How the cluster is found; an IDE is started elsewhere, without what this shell has.
_VARIABLES = ("LAMBDACTL_KUBECONFIG", "LAMBDACTL_CONTEXT", "LAMBDACTL_PROJECT", "KUBECONFIG", "XDG_CONFIG_HOME")


def is_up(view: RunView) -> bool:
    """Whether `init` has ended and the environment can be entered."""
    pod = view.pod_of(0)
    return pod is not None and up_at(pod) is not None


async def ask(client: Client, pod: str) -> dict[str, Any]:
    """What only the pod itself knows: user, working directory, sessions now, since when nobody is connected.

    Raises:
        APIError: the API refuses, or cannot be reached.
    """
    text = f"cat {BASE}/run/dev {BASE}/run/sessions 2>/dev/null"
    said = (await client.exec(pod, ["/bin/sh", "-c", text])).stdout.decode("utf-8", "replace")
    found = {name: value for name, _, value in (line.partition("=") for line in said.splitlines())}
    sessions, idle = found.get("sessions", ""), found.get("idle_since", "")
    return {
        "user": found.get("user") or None,
        "directory": found.get("directory") or None,
        "sessions": int(sessions) if sessions.isdigit() else 0,
        "idle_since": int(idle) if idle.isdigit() else None,
    }


async def alias(client: Client, run_id: str, fleet_id: str, node: str, user: str, folder: Path) -> Alias:
    """The alias by which `ssh` and IDEs get in.

    Args:
        folder: where keys are kept.

    Raises:
        LambdactlError: it does not run any more, or the jump pod cannot be used.
    """
    rank = await find_rank(client, run_id, 0)
    if rank is None:
        raise LambdactlError(f"the run {run_id} is not in the cluster any more.")
    files = write_files(folder / rank.run_id, rank.private_key, f"{rank.run_id} {rank.host_key}\n")
    return Alias(
        run_id, rank.run, fleet_id, node, user, rank.host_key, await _proxy(client, rank, folder),
        identity=str(files.identity), address=rank.ip, port=rank.port,
    )  # fmt: skip


async def _proxy(client: Client, rank: RankAddress, folder: Path) -> str:
    command = await rank_proxy(client, rank, folder)
    if client.target.proxy_jump is not None:
        return command
    words = [f"{name}={value}".replace("%", "%%") for name, value in _settings().items()]
    return " ".join(["env", *map(shlex.quote, words), command]) if words else command


def _settings() -> dict[str, str]:
    """What the environment says of the cluster, with whole paths."""
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    for name in given.keys() & {"LAMBDACTL_KUBECONFIG", "KUBECONFIG"}:
        given[name] = os.pathsep.join(str(Path(part).absolute()) for part in given[name].split(os.pathsep))
    return given


async def be_present(session: RunSession) -> None:
    """Tell the pod again and again that somebody is here, until this is cancelled; then that nobody is."""
    sign = f"{os.urandom(4).hex()}"
    try:
        while True:
            await _tell(session, f"{sign} {time.time():.0f}")
            await asyncio.sleep(SIGN)
    finally:
        await asyncio.shield(_tell(session, "gone"))


async def _tell(session: RunSession, text: str) -> None:
    pod = session.view.pod_of(0)
    if pod is None:
        return
    try:
        async with asyncio.timeout(10):
            change = {"metadata": {"annotations": {PRESENT: text}}}
            await session.client.patch(PODS, pod["metadata"]["name"], change)
    except (APIError, TimeoutError):
        return  # the next sign will do


async def set_inactivity(client: Client, job: str, pod: str, facts: Mapping[str, Any], seconds: int | None) -> None:
    """Change the limit of one that runs; `facts` are those of its Job.

    Raises:
        APIError: the API refuses, or cannot be reached.
    """
    import json

    from .labels import RUN_FACTS

    text = json.dumps({**facts, "dev": {**facts["dev"], "inactivity": seconds}}, sort_keys=True)
    await client.patch(
        PODS, pod, {"metadata": {"annotations": {INACTIVITY: None if seconds is None else str(seconds)}}}
    )
    await client.patch(JOBS, job, {"metadata": {"annotations": {RUN_FACTS: text}}})
