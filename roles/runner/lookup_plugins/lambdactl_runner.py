# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible lookup: the runner, built on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lambdactl_runner
short_description: Build lambdactl's runner on the controller
description:
  - Gives the path of the zipapp, a file named C(runner.pyz) in the playbook's temporary folder, or its checksum.
options:
  _terms: {description: C(path) or C(sha256)., required: true}
author: [lambdactl contributors]
"""

EXAMPLES = r"""
- name: Show its checksum
  ansible.builtin.debug:
    msg: "{{ lookup('lambdactl_runner', 'sha256') }}"
"""

RETURN = r"""
_raw: {description: The path or the checksum., type: list, elements: str}
"""

import os
import sys
from pathlib import Path

from ansible import constants
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

sys.path.append(str(Path(__file__).resolve().parents[3]))  # a checkout where lambdactl is not installed

from lambdactl import content


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms, variables=None, **kwargs):
        if terms == ["sha256"]:
            return [content.runner_sha256()]
        if terms == ["path"]:
            return [str(zipapp_file())]
        raise AnsibleError("lambdactl_runner gives 'path' or 'sha256', not %r." % (terms,))


def zipapp_file():
    """The zipapp in this playbook run's own temporary folder, written once by whichever worker comes first."""
    path = Path(constants.DEFAULT_LOCAL_TMP) / content.runner_sha256()[:16] / "runner.pyz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("runner.%d" % os.getpid())
        partial.write_bytes(content.runner_zipapp())
        partial.replace(path)
    return path
