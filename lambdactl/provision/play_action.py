"""What the action plugins of the playbooks have in common; each of them is a thin door (playbooks/action_plugins).

They act once for all hosts of a play, over connections of their own, and turn an error that a user can cause into the
task's failure, one sentence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lambdactl.errors import LambdactlError


class PlayAction(ABC):
    """To be mixed into Ansible's ActionBase; `act` is the plugin's own part.

    Attributes:
        hides_arguments: the task's arguments hold secrets (an environment), so no result may show them.
    """

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    hides_arguments = False
    _task: Any

    @abstractmethod
    def act(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """The keys of the task's result. Raises LambdactlError."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """What Ansible calls."""
        from ansible.plugins.action import ActionBase

        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        if self.hides_arguments:
            result.pop("invocation", None)
        try:
            return {**result, **self.act(task_vars or {})}
        except LambdactlError as error:
            return {**result, "failed": True, "msg": str(error)}

    def argument(self, name: str, default: Any = "") -> Any:
        """An argument of the task; the default also where it is null or empty."""
        return self._task.args.get(name) or default
