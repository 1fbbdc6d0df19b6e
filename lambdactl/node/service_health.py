"""Is a replica healthy: decided from the results of its probes, without clocks and sockets.

A replica is ready when every probe has succeeded `ready_after` times in a row. One failure takes it out of the rotation
(the proxy has others), because a failure that is only believed after a second one would take longer than two intervals
where requests time out. `RESTART_AFTER` failures in a row of a replica that had been ready restart it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .service_doc import Probe

RESTART_AFTER = 3


class ProbeHealth:
    """What one probe says of one replica."""

    def __init__(self, probe: Probe, *, ready: bool = False) -> None:
        self.probe = probe
        self.ready = ready
        self.was_ready = ready
        self.successes = 0
        self.failures = 0
        self.message = ""

    def record(self, problem: str | None) -> None:
        """Take in a result: None for a success, else what was wrong."""
        if problem is None:
            self.successes, self.failures, self.message = self.successes + 1, 0, ""
            self.ready = self.ready or self.successes >= self.probe.ready_after
            self.was_ready = self.was_ready or self.ready
        elif not self.over:
            self.successes, self.failures, self.message = 0, self.failures + 1, problem
            self.ready = False

    @property
    def over(self) -> bool:
        """Whether the probe has nothing more to say: it only asks until the replica is ready."""
        return self.probe.until_ready and self.was_ready

    @property
    def broken(self) -> bool:
        """Whether the replica, once ready, has failed so often that it should be restarted."""
        return self.was_ready and self.failures >= RESTART_AFTER


class Health:
    """All probes of one replica."""

    def __init__(self, probes: list[Probe], *, ready: bool = False) -> None:
        self.probes = [ProbeHealth(probe, ready=ready) for probe in probes]

    @property
    def ready(self) -> bool:
        """Whether requests may go to the replica."""
        return all(probe.ready for probe in self.probes)

    @property
    def broken(self) -> str:
        """Why the replica should be restarted; empty when it should not."""
        return next((probe.message for probe in self.probes if probe.broken), "")

    @property
    def message(self) -> str:
        """What is wrong now; empty when nothing is."""
        return next((probe.message for probe in self.probes if probe.message), "")

    def summary(self) -> str:
        """How many probes are content, such as 1/2."""
        return f"{sum(probe.ready for probe in self.probes)}/{len(self.probes)}"
