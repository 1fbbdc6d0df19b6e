# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible action: look at all hosts of the play at once, in one process, over one connection to the jump host.

Options: force (bool): every role counts as needed. facts (bool): also return the hosts' facts.
Returns: hosts, nodes, names, openmpi_version; see lambdactl.provision.actions.probe_play. Never fails for one host.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout where lambdactl is not installed


class ActionModule(ActionBase):
    """lambdactl_probe"""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        from lambdactl.errors import LambdactlError
        from lambdactl.provision.actions import probe_play
        from lambdactl.transport import run_sync

        result = super().run(tmp, task_vars)
        force = boolean(self._task.args.get("force", False))
        facts = boolean(self._task.args.get("facts", False))
        try:
            result.update(run_sync(probe_play(task_vars, force=force, facts=facts)), changed=False)
        except LambdactlError as error:
            result.update(failed=True, msg=str(error))
        return result
