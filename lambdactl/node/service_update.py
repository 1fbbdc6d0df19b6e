"""A rolling update: which replica may be replaced now, when the update is done, and when it is taken back.

An update is taken back when a new replica has failed `GIVE_UP` times or is not ready after the service's
`ready_timeout`: what was wanted before is wanted again, and the replicas that were replaced return to it in the same
way.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .service_doc import Service
    from .service_plan import Plan
    from .service_state import Instance

GIVE_UP = 3


class Update:
    """The update of one service. States: none, running, done, failed (taken back)."""

    def __init__(self, plan: Plan, previous: Service | None = None) -> None:
        self._plan = plan
        self.previous = previous
        self.state = "none"
        self.message = ""
        self.finished_at: float | None = None
        self._failed = 0

    def begin(self, previous: Service, now: float) -> None:
        """The plan's service has another revision than `previous`; a second change before the end keeps the first."""
        if self.state != "running" or self.previous is None:
            self.previous = previous
        self.state, self.message, self.finished_at, self._failed = "running", "", None, 0

    def may_replace(self, number: int, old: list[Instance]) -> bool:
        """Whether this replica's turn has come: all others are as they should be, or it does not serve anyway."""
        if not any(item.serving for item in old):
            return True
        return not any(self._moving(other) for other in range(self._plan.service.replicas) if other != number)

    def _moving(self, number: int) -> bool:
        """Whether a replica is on its way to the wanted revision."""
        mine = [item for item in self._plan.instances if item.number == number and not item.lost]
        if any(item.phase != "running" for item in mine):
            return True
        wanted = [item for item in mine if item.revision == self._plan.service.revision]
        if wanted:
            return not any(item.serving for item in wanted)
        failures = self._plan.failures.get(number)
        return not mine and failures is not None and failures.count > 0

    def failed(self, item: Instance, reason: str, now: float) -> None:
        """A replica of the new revision has failed."""
        if self.state == "running" and item.revision == self._plan.service.revision:
            self._failed += 1
            if self._failed >= GIVE_UP:
                self._take_back(f"replica {item.number} failed {self._failed} times on {item.host}: {reason}", now)

    def judge(self, now: float) -> None:
        """See whether the update is done, or takes too long."""
        if self.state != "running":
            return
        plan = self._plan
        wanted = [item for item in plan.instances if item.revision == plan.service.revision and not item.lost]
        for item in wanted:
            late = now - item.since > plan.service.ready_timeout
            if item.phase in ("starting", "running") and late and item.ready_since is None:
                self._take_back(
                    f"replica {item.number} was not ready on {item.host} after {plan.service.ready_timeout:g} s", now
                )
                return
        serving = {item.number for item in wanted if item.serving}
        left = [item for item in plan.instances if not item.lost and item not in wanted]
        if len(serving) >= plan.service.replicas and not left:
            self.state, self.finished_at, self.previous = "done", now, None

    def _take_back(self, message: str, now: float) -> None:
        if self.previous is None:
            return
        plan = self._plan
        plan.service, self.previous = self.previous, None
        self.state, self.message, self.finished_at = "failed", message, now
        for failures in plan.failures.values():
            failures.count, failures.retry_at = 0, 0.0

    def as_dict(self) -> dict[str, Any]:
        """What must survive the supervisor."""
        return {"state": self.state, "message": self.message, "finished_at": self.finished_at, "failed": self._failed}

    def restore(self, raw: dict[str, Any]) -> None:
        """Take up what `as_dict` gave."""
        self.state, self.message = str(raw.get("state") or "none"), str(raw.get("message") or "")
        self.finished_at, self._failed = raw.get("finished_at"), int(raw.get("failed") or 0)
