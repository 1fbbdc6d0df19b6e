"""How many nodes of a fleet answer: one command on each, over this project's transport.

python -m tests.bench.reach FLEET_FILE asyncssh|openssh
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

from lambdactl.fleet import Fleet
from lambdactl.transport import open_transport
from lambdactl.transport.api import Completed, Kind


async def main(path: str, kind: Kind) -> None:
    fleet = Fleet.load(path)
    async with open_transport(fleet, kind=kind) as transport:
        outcomes = await transport.fan_out("true")
    print(sum(isinstance(outcome, Completed) and outcome.rc == 0 for outcome in outcomes.values()))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], cast(Kind, sys.argv[2])))
