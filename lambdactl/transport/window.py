"""How fast a fleet is approached: an early stop when a key is refused everywhere, and retries of dropped logins."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

ATTEMPTS = 6  # logins tried on one host while its sshd, or a jump host's, drops them
AUTH_PROBES = 3  # hosts that may refuse a key before the others are spared (sshd's PerSourcePenalties)


def retry_delay(attempt: int) -> float:
    """Seconds before retry ``attempt`` (0-based): full jitter, so that dropped hosts do not come back as one wave."""
    return random.uniform(0.05, 0.25 * 2**attempt)  # noqa: S311 - spreads load, guards nothing


@dataclass
class _Record:
    accepted: bool = False
    refused: int = 0
    trying: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class AuthGate:
    """Lets a few logins with a credential go first; opens for all with the first success.

    Only the login proper waits here; key exchanges of all hosts go on meanwhile, so a good key costs a round trip.
    """

    def __init__(self) -> None:
        self._records: defaultdict[Hashable, _Record] = defaultdict(_Record)

    async def enter(self, credential: Hashable) -> bool:
        """Wait for leave to try; False when the credential has been refused by the first hosts."""
        record = self._records[credential]
        while not record.accepted:
            if record.refused >= AUTH_PROBES:
                return False
            if record.trying + record.refused < AUTH_PROBES:
                break
            record.changed.clear()
            await record.changed.wait()
        record.trying += 1
        return True

    def leave(self, credential: Hashable, *, accepted: bool | None) -> None:
        """Report a login that entered: accepted, refused, or (None) ended for another reason."""
        record = self._records[credential]
        record.trying -= 1
        record.accepted = record.accepted or accepted is True
        record.refused += accepted is False
        record.changed.set()

    def reset(self) -> None:
        """Give refused credentials another chance (a new call by the user)."""
        for record in self._records.values():
            record.refused = 0
