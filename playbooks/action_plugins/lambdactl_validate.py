# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible action: validate all hosts of the play as one fleet, in one process, over one connection to the jump host.

Options: pairs, rails (default true), cpu (bool); nics, nic_gbps, rounds (numbers); env (mapping); report_dir (path):
where the report's files are written on the controller. See docs/validate.md.
Returns: status, sentence, steps ([{name, status, sentence, value}]), blames, id, files. Fails when the verdict is FAIL.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout where lambdactl is not installed


class ActionModule(ActionBase):
    """lambdactl_validate"""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        from lambdactl.errors import LambdactlError
        from lambdactl.transport import run_sync
        from lambdactl.validate.actions import options_of, validate_play

        result = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "skipped": True, "msg": "Nothing is measured in check mode."}
        try:
            found = run_sync(validate_play(task_vars, options_of(self._task.args)))
            files = self._write(found)
        except LambdactlError as error:
            return {**result, "failed": True, "msg": str(error)}
        except OSError as error:
            return {**result, "failed": True, "msg": f"The report was not written: {error}."}
        steps = [{"name": s.name, "status": s.status, "sentence": s.sentence, "value": s.value} for s in found.steps]
        result.update(changed=False, status=found.status, sentence=found.sentence, steps=steps, msg=found.sentence)
        result.update(blames=found.blames, id=found.id, files=files, failed=found.status == "FAIL")
        return result

    def _write(self, found):
        """The report's files by format, where they are wanted."""
        from lambdactl.report import write

        folder = self._task.args.get("report_dir")
        return {name: str(path) for name, path in write(found, Path(folder)).items()} if folder else {}
