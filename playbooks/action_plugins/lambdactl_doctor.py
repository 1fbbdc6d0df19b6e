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


class ActionModule(ActionBase):
    """lambdactl_doctor"""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        from lambdactl.doctor.actions import doctor_play
        from lambdactl.errors import LambdactlError
        from lambdactl.transport import run_sync

        result = super().run(tmp, task_vars)
        options = {name: str(self._task.args.get(name) or "") for name in ("json_file", "junit_file")}
        deep = boolean(self._task.args.get("deep", False))
        try:
            result.update(run_sync(doctor_play(task_vars, deep=deep, **options)), changed=False)
        except LambdactlError as error:
            result.update(failed=True, msg=str(error))
        except OSError as error:
            result.update(failed=True, msg=f"The report was not written: {error}.")
        return result
