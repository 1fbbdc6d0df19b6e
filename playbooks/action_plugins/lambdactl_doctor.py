# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible action: examine all hosts of the play at once, in one process, over one connection to the jump host.

Options: deep (bool): also run tests that load GPUs and network for minutes. json_file, junit_file (path): where the
report is written on the controller.
Returns: hosts, report, lines, status, exit_code; see lambdactl.doctor.actions.doctor_play. Never fails for one host.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout where lambdactl is not installed
from lambdactl.provision.play_action import PlayAction


class ActionModule(PlayAction, ActionBase):
    """lambdactl_doctor"""

    def act(self, task_vars):
        from lambdactl.doctor.actions import doctor_play
        from lambdactl.errors import LambdactlError
        from lambdactl.transport import run_sync

        options = {name: str(self.argument(name)) for name in ("json_file", "junit_file")}
        deep = boolean(self._task.args.get("deep", False))
        try:
            return {**run_sync(doctor_play(task_vars, deep=deep, **options)), "changed": False}
        except OSError as error:
            raise LambdactlError(f"The report was not written: {error}.") from None
