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
from lambdactl.provision.play_action import PlayAction


class ActionModule(PlayAction, ActionBase):
    """lambdactl_validate"""

    def act(self, task_vars):
        from lambdactl.errors import LambdactlError
        from lambdactl.transport import run_sync
        from lambdactl.validate.actions import options_of, validate_play

        if self._task.check_mode:
            return {"skipped": True, "msg": "Nothing is measured in check mode."}
        try:
            found = run_sync(validate_play(task_vars, options_of(self._task.args)))
            files = self._write(found)
        except OSError as error:
            raise LambdactlError(f"The report was not written: {error}.") from None
        steps = [{"name": s.name, "status": s.status, "sentence": s.sentence, "value": s.value} for s in found.steps]
        result = {"changed": False, "status": found.status, "sentence": found.sentence, "steps": steps}
        result.update(msg=found.sentence, blames=found.blames, id=found.id, files=files, failed=found.status == "FAIL")
        return result

    def _write(self, found):
        """The report's files by format, where they are wanted."""
        from lambdactl.report import write

        folder = self.argument("report_dir")
        return {name: str(path) for name, path in write(found, Path(folder)).items()} if folder else {}
