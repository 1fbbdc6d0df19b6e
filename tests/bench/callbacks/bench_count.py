"""Ansible callback: how many tasks of which action ran on each host, as JSON into the file that BENCH_COUNT names."""

from __future__ import annotations

import json
import os
from collections import Counter

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: bench_count
type: aggregate
short_description: count tasks by host and action
description: For the benchmarks only.
"""


class CallbackModule(CallbackBase):
    """bench_count"""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "bench_count"

    def __init__(self):
        super().__init__()
        self.hosts = {}

    def v2_runner_on_ok(self, result):
        """A task that ran, changed or not; skipped ones are not here."""
        counted = self.hosts.setdefault(result._host.get_name(), Counter())
        counted[str(result._task.action).rpartition(".")[2]] += 1

    def v2_playbook_on_stats(self, stats):
        """The end."""
        with open(os.environ["BENCH_COUNT"], "w", encoding="utf-8") as file:
            json.dump(self.hosts, file)
