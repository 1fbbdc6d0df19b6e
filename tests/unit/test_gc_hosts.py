"""`lambdactl gc` on SSH hosts: real sshd behind a real jump host, the real runner without systemd."""

from __future__ import annotations

import asyncio

import pytest

from lambdactl.cli.gc import _of_hosts
from lambdactl.run.control import wait_ended
from lambdactl.run.plan import Overrides, job_specs, make_plan
from lambdactl.run.submit import submit
from lambdactl.run.survey import survey
from lambdactl.transport import open_transport
from tests.bed.gang import GangBed, task


@pytest.mark.timeout(120)
def test_records_of_ended_runs_go_and_active_ones_stay() -> None:
    with GangBed(nodes=1) as bed:
        fleet = bed.load()
        names = [host.name for host in fleet.hosts]

        async def body() -> None:
            async with open_transport(fleet) as transport:
                plan = make_plan(task("true", nodes=1), fleet, (await survey(transport, fleet)).views, Overrides())
                assert (await submit(plan.run_id, plan.run_name, plan.owner, job_specs(plan), transport))["ok"]
                await wait_ended(transport, plan.run_id, names, patience=60)
            assert await _of_hosts(fleet, 3600.0) == ([], [])
            (item,), silent = await _of_hosts(fleet, 0.0)
            assert silent == []
            assert item.what == f"the record and logs of {plan.run_name} on {names[0]}"
            await item.remove()
            assert await _of_hosts(fleet, 0.0) == ([], [])

        asyncio.run(body())
