"""The key `dev` of a JobSpec: `{"ide": text|null, "inactivity": s|null, "digest": text|null}`.

`ide` and `digest` are only handed on, so that any controller can show them and go on where another left off.
"""

from __future__ import annotations

from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Settings:
    """What a job wants as a dev environment; `shown` is handed on as it came."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.inactivity = seconds(raw.get("inactivity"))
        for name in ("ide", "digest"):
            if not isinstance(raw.get(name) or "", str):
                raise NodeError("bad-request", f"job: dev.{name} is no text")
        self.shown = {"ide": raw.get("ide"), "digest": raw.get("digest")}


def seconds(value: object) -> float | None:
    """A length of time, or None for off. Raises NodeError (bad-request)."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e18:
        raise NodeError("bad-request", f"inactivity is {str(value)[:40]!r}, allowed is a number of seconds, or null")
    return float(value)


def settings(raw: object) -> Settings | None:
    """The settings of a job, or None when it is no dev environment. Raises NodeError (bad-request)."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise NodeError("bad-request", "job: dev is no object")
    return Settings(raw)
