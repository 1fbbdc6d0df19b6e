# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible action: stop a run on all hosts of the play at once, and wait until nothing of it is left.

Options: run_name (a run's name or id, required), abort (bool): kill at once.
Returns: lambdactl_stop; see lambdactl.provision.runs.stop_play. Changed unless the run had ended before.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout where lambdactl is not installed
from lambdactl.provision.play_action import PlayAction


class ActionModule(PlayAction, ActionBase):
    """lambdactl_stop"""

    def act(self, task_vars):
        from lambdactl.provision.actions import is_kubernetes
        from lambdactl.transport import run_sync

        if is_kubernetes(task_vars):
            from lambdactl.backends.kubernetes.play import stop_play
        else:
            from lambdactl.provision.runs import stop_play

        name = str(self.argument("run_name"))
        if not name:
            return {"failed": True, "msg": "stop_run.yml needs the variable run_name: -e run_name=NAME."}
        abort = boolean(self._task.args.get("abort", False), strict=False)
        outcome = run_sync(stop_play(task_vars, name, abort=abort, check=self._task.check_mode))
        return {"changed": outcome["stopped"], "lambdactl_stop": outcome, "msg": outcome["message"]}
