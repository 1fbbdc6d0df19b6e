"""The one error of the runner: a code for programs and one sentence for people."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class NodeError(Exception):
    """A request that cannot be carried out.

    Codes: bad-request, not-found, busy, no-reservation, exists, active, start-failed, internal.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)

    @property
    def exit_code(self) -> int:
        """2 for a wrong request, 1 for everything else."""
        return 2 if self.code == "bad-request" else 1


def as_object(value: object) -> dict[str, Any]:
    """A parsed request when it is a JSON object. Raises NodeError (bad-request)."""
    if isinstance(value, dict):
        return value
    raise NodeError("bad-request", "a request is a JSON object")
