# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible action: end a host's failure with one line that names host, step, cause and remedy.

Options: step (str): name of the task that failed. result (dict): its result (ansible_failed_result).
Returns: host, step, cause, remedy, msg. Always fails, because its host has failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout where lambdactl is not installed


class ActionModule(ActionBase):
    """lambdactl_explain"""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        from lambdactl.provision.actions import explained

        result = super().run(tmp, task_vars)
        failed = self._task.args.get("result") or {}
        step = str(self._task.args.get("step", ""))
        return {**result, "failed": True, "changed": False, **explained(task_vars["inventory_hostname"], step, failed)}
