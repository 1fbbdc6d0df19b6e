"""Fast SSH to every host of a fleet through one connection to its jump host.

    async with open_transport(fleet) as transport:
        results = await transport.fan_out("uptime", timeout=30)

See docs/transport.md. Importing this package costs nothing: asyncssh is imported when a transport is opened.
"""

from lambdactl.transport.api import Channel, Completed, Failure, Forward, Outcome, Runner, Transport, TransportError
from lambdactl.transport.open import open_transport, run_sync

__all__ = [
    "Channel",
    "Completed",
    "Failure",
    "Forward",
    "Outcome",
    "Runner",
    "Transport",
    "TransportError",
    "open_transport",
    "run_sync",
]
