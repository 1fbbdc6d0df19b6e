# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible action: run a task file on the hosts of the play, all at once: start it, follow it to its end, keep its logs.

Options: task_file (path on the controller, required), run_name, env, args, max_duration, node_timeout, engine,
pull_timeout, queue, max_queue, wait, all_ranks, show_log, log_dir, on_interrupt; docs/ansible.md says what they mean.
Returns: lambdactl_run; see lambdactl.provision.runs.run_task. Fails when the run was not started or not done.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout where lambdactl is not installed
from lambdactl.provision.play_action import PlayAction


class ActionModule(PlayAction, ActionBase):
    """lambdactl_run"""

    hides_arguments = True

    def act(self, task_vars):
        from lambdactl.provision.actions import is_kubernetes
        from lambdactl.provision.interrupts import Screen
        from lambdactl.provision.task_options import task_options
        from lambdactl.run.screen import TerminalFilter
        from lambdactl.transport import run_sync

        if is_kubernetes(task_vars):
            from lambdactl.backends.kubernetes.play import run_task
        else:
            from lambdactl.provision.runs import run_task

        parent, display, check = os.getppid(), Display(), self._task.check_mode
        screen = Screen(display.display, TerminalFilter().feed)
        try:
            options = task_options(self._task.args, lambda value: boolean(value, strict=True))
            outcome = run_sync(run_task(task_vars, options, check=check, screen=screen, note=display.display))
        except TypeError as error:
            return {"failed": True, "msg": f"A variable of run_task.yml is not a boolean: {error}"}
        if os.getppid() != parent:
            os._exit(1)  # ansible-playbook is gone, and nobody would read the result
        failure = {"failed": True, "msg": sentence(outcome)} if outcome["exit_code"] else {}
        return {"changed": not check, "lambdactl_run": outcome, **failure}


def sentence(outcome):
    """How a run that was not done ended."""
    ended = f"{outcome['run_name']} {outcome['state']} with exit code {outcome['exit_code']}"
    return f"{ended}: {outcome['message']}" if outcome["message"] else f"{ended}."
