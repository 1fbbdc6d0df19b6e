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


class ActionModule(ActionBase):
    """lambdactl_submit"""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        from lambdactl.errors import LambdactlError
        from lambdactl.provision.actions import submit_play
        from lambdactl.transport import run_sync

        result = super().run(tmp, task_vars)
        plan_file = self._task.args.get("plan_file")
        if not plan_file:
            return {**result, "failed": True, "msg": "lambdactl_submit needs plan_file."}
        if self._task.check_mode:
            return {**result, "skipped": True, "msg": "A run is not submitted in check mode."}
        try:
            outcome = run_sync(submit_play(task_vars, str(plan_file)))
        except LambdactlError as error:
            return {**result, "failed": True, "msg": str(error)}
        failure = {} if outcome["ok"] else {"failed": True, "msg": outcome["error"]}
        return {**result, "changed": bool(outcome["ok"]), "lambdactl_submit": outcome, **failure}
