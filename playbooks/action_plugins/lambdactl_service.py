# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible action: plan a service file on the hosts of the play, or hand it to its ingress and wait until it is ready.

Options: service_file (path on the controller, required), run_name, env, ingress, ready_timeout, wait, apply (bool);
docs/ansible.md says what they mean.
Returns: lambdactl_service; see lambdactl.provision.services.service_play.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout where lambdactl is not installed
from lambdactl.provision.play_action import PlayAction


class ActionModule(PlayAction, ActionBase):
    """lambdactl_service"""

    hides_arguments = True

    def act(self, task_vars):
        from lambdactl.provision.actions import is_kubernetes
        from lambdactl.transport import run_sync

        if is_kubernetes(task_vars):
            from lambdactl.backends.kubernetes.play_service import service_play
        else:
            from lambdactl.provision.services import service_play

        arguments = self._task.args

        def truth(value):
            return boolean(value, strict=True)

        try:
            apply = truth(arguments.get("apply", True)) and not self._task.check_mode
            outcome = run_sync(service_play(task_vars, arguments, truth, apply=apply, note=Display().display))
        except TypeError as error:
            return {"failed": True, "msg": f"A variable of run_service.yml is not a boolean: {error}"}
        return {"changed": apply, "lambdactl_service": outcome}
