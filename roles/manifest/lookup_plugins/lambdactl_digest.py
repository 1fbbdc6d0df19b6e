# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible lookup: the digest of what a role installs, as lambdactl's plan computes it."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lambdactl_digest
short_description: Digest of a role's files and inputs
description:
  - What a role writes into its manifest; C(lambdactl.provision) compares it with what it would be now.
options:
  _terms: {description: Name of one role., required: true}
  gpus:
    description: The GPUs' compute capabilities (nccl_tests and mpi_bench).
    type: list
    elements: str
    default: []
  nodes: {description: The nodes that know each other (node_ssh)., type: list, elements: dict, default: []}
  fleet_id: {description: The fleet's id (node_ssh)., type: str, default: ""}
author: [lambdactl contributors]
"""

EXAMPLES = r"""
- name: Show it
  ansible.builtin.debug:
    msg: "{{ lookup('lambdactl_digest', 'openmpi') }}"
"""

RETURN = r"""
_raw: {description: The digest., type: list, elements: str}
"""

import sys
from pathlib import Path

from ansible.plugins.lookup import LookupBase

sys.path.append(str(Path(__file__).resolve().parents[3]))  # a checkout where lambdactl is not installed

from lambdactl.provision.roles import Peer, node_ssh_digest, role_digest, role_inputs


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        role = terms[0]
        inputs = {name: self._templar.template(variables[name]) for name in role_inputs(role) if name in variables}
        if role == "node_ssh":
            nodes = [Peer.from_dict(node) for node in self.get_option("nodes")]
            return [node_ssh_digest(inputs, fleet_id=self.get_option("fleet_id"), nodes=nodes)]
        return [role_digest(role, inputs, facts={"gpus": [{"compute_capability": c} for c in self.get_option("gpus")]})]
