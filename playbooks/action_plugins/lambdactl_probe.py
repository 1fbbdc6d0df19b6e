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
from lambdactl.provision.play_action import PlayAction


class ActionModule(PlayAction, ActionBase):
    """lambdactl_probe"""

    def act(self, task_vars):
        from lambdactl.provision.actions import probe_play
        from lambdactl.transport import run_sync

        force = boolean(self._task.args.get("force", False))
        facts = boolean(self._task.args.get("facts", False))
        return {**run_sync(probe_play(task_vars, force=force, facts=facts)), "changed": False}
