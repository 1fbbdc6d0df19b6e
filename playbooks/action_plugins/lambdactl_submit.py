# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible action: submit a run to its nodes at once; the run's specification travels as a file, never as a variable.

Options: plan_file (path, required): what lambdactl.run.submit.write_plan_file wrote.
Returns: lambdactl_submit, the outcome (run_id, ok, error, hosts). Fails when the run was not started.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout where lambdactl is not installed
from lambdactl.provision.play_action import PlayAction


class ActionModule(PlayAction, ActionBase):
    """lambdactl_submit"""

    def act(self, task_vars):
        from lambdactl.provision.actions import submit_play
        from lambdactl.transport import run_sync

        plan_file = self.argument("plan_file")
        if not plan_file:
            return {"failed": True, "msg": "lambdactl_submit needs plan_file."}
        if self._task.check_mode:
            return {"skipped": True, "msg": "A run is not submitted in check mode."}
        outcome = run_sync(submit_play(task_vars, str(plan_file)))
        failure = {} if outcome["ok"] else {"failed": True, "msg": outcome["error"]}
        return {"changed": bool(outcome["ok"]), "lambdactl_submit": outcome, **failure}
