"""What a service's supervisor knows of its replicas, kept as JSON beside the wanted document.

An instance is one run of one replica: `number` is the replica's, `slot` the proxy's server that stands for it. Phases:
starting (asked for), running, draining (gets no new requests), stopping. Its end removes it. Times are in seconds.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIELDS = ("run", "number", "host", "revision", "slot", "phase", "since", "ready", "ready_since", "lost", "message")
LIVE = ("starting", "running")


class Instance:
    """One run of a replica."""

    def __init__(self, run: str, number: int, host: str, revision: str, slot: int, now: float) -> None:
        self.run = run
        self.number = number
        self.host = host
        self.revision = revision
        self.slot = slot
        self.phase = "starting"
        self.since = now  # when it entered its phase
        self.ready = False
        self.ready_since: float | None = None
        self.lost = False  # its host has been silent for too long; somebody else may have its place
        self.message = ""

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Instance:
        """Of what `as_dict` gave."""
        made = cls(str(raw["run"]), int(raw["number"]), str(raw["host"]), str(raw["revision"]), int(raw["slot"]), 0.0)
        for name in FIELDS:
            if name in raw:
                setattr(made, name, raw[name])
        return made

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in FIELDS}

    @property
    def live(self) -> bool:
        """Whether it is meant to serve: neither on its way out nor lost."""
        return self.phase in LIVE and not self.lost

    @property
    def serving(self) -> bool:
        """Whether requests may go to it."""
        return self.phase == "running" and self.ready

    def enter(self, phase: str, now: float) -> None:
        """Go on to another phase."""
        self.phase, self.since = phase, now


class Failures:
    """How often a replica failed in a row, and when it may be tried again."""

    def __init__(self, count: int = 0, retry_at: float = 0.0, reason: str = "", host: str = "") -> None:
        self.count = count
        self.retry_at = retry_at
        self.reason = reason
        self.host = host  # where it was last, to be tried first

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"count": self.count, "retry_at": self.retry_at, "reason": self.reason, "host": self.host}


class HostView:
    """What is known of a host now. `silent`: seconds since its last answer; `busy_until`: others use it till then."""

    def __init__(self, *, up: bool = True, silent: float = 0.0, message: str = "") -> None:
        self.up = up
        self.silent = silent
        self.message = message
        self.busy_until = 0.0
        self.busy_with = ""
