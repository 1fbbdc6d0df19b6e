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
from lambdactl.provision.play_action import PlayAction


class ActionModule(PlayAction, ActionBase):
    """lambdactl_explain"""

    BYPASS_HOST_LOOP = False  # it is about one host

    def act(self, task_vars):
        from lambdactl.provision.actions import explained

        found = explained(task_vars["inventory_hostname"], str(self.argument("step")), self.argument("result", {}))
        return {"failed": True, "changed": False, **found}
