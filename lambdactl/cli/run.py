"""`lambdactl run get RUN`."""

from __future__ import annotations

import asyncio
import time

from lambdactl.cli import kube_runs, kube_schedule, services
from lambdactl.cli.console import ago, duration, print_json, print_table, state_text
from lambdactl.cli.finding import found_run
from lambdactl.errors import EXIT_OK
from lambdactl.run.dev import described
from lambdactl.run.status import RunStatus


def get(key: str, fleet: str | None, *, as_json: bool) -> int:
    """Show one run with its ranks, or one service with its replicas."""
    code = services.get(key, fleet, as_json=as_json)
    if code is not None:
        return code

    async def body() -> RunStatus:
        if (scheduled := await kube_schedule.find(key, fleet, idle=True)) is not None:
            return scheduled
        async with kube_runs.found_run(key, fleet) as kubernetes:
            if kubernetes is not None:
                from lambdactl.cli import kube_dev

                return await kube_dev.known(kubernetes[1])
        async with found_run(key, fleet) as found:
            return found.status

    status = asyncio.run(body())
    if as_json:
        print_json(status.as_json())
        return EXIT_OK
    print_table(
        ("FIELD", "VALUE"),
        [
            ("name", status.name),
            ("id", status.run_id),
            ("state", state_text(status.state)),
            ("exit code", "-" if status.exit_code is None else status.exit_code),
            ("reason", status.message or status.reason or "-"),
            ("owner", status.owner),
            ("submitted", ago(status.submitted_at)),
            *_dev_rows(status),
            *([("attempt", status.attempt)] if status.attempt > 1 else []),
        ],
    )
    if status.attempts:
        print_table(
            ("ATTEMPT", "STATE", "EXIT", "ENDED", "REASON"),
            [
                (
                    number,
                    state_text(str(attempt.get("state"))),
                    "-" if attempt.get("exit_code") is None else attempt["exit_code"],
                    ago(attempt.get("finished_at")),
                    attempt.get("message") or attempt.get("reason") or "",
                )
                for number, attempt in enumerate(status.attempts, 1)
            ],
        )
    print_table(
        ("RANK", "NODE", "STATE", "EXIT", "REASON"),
        [
            (
                rank["rank"],
                rank["node"],
                state_text(str(rank["state"])),
                "-" if rank.get("exit_code") is None else rank["exit_code"],
                rank.get("message") or rank.get("reason") or "",
            )
            for rank in status.ranks
        ],
    )
    return EXIT_OK


def _dev_rows(status: RunStatus) -> list[tuple[str, object]]:
    """Lines that only a dev environment has."""
    if status.dev is None:
        return []
    dev = described(status.dev, status.name)
    limit = "" if dev["inactivity"] is None else f" of {duration(dev['inactivity'])}"
    idle = f"idle for {duration(time.time() - dev['idle_since'])}{limit}" if dev["idle_since"] else "in use"
    return [
        ("IDE", dev["url"] or "none: SSH only"),
        ("ssh", "-" if status.final else f"ssh {status.name}" if dev["up_at"] else "not up yet"),
        ("sessions", f"{dev['sessions']}, {idle}" if dev["up_at"] and not status.final else "-"),
    ]
