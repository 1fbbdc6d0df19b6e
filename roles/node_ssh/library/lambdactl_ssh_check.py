#!/usr/bin/python
# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible module: log in to other nodes from this one, as a run would."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lambdactl_ssh_check
short_description: Log in to other nodes from this one without a question
description:
  - Changes nothing. Fails with one sentence that names the peers that cannot be reached.
options:
  name: {type: str, required: true, description: This node.}
  user: {type: str, required: true, description: Login user on this node.}
  peers: {type: list, elements: dict, required: true, description: Name and address of each node.}
  limit:
    type: int
    default: 8
    description: How many peers are tried; the next ones in order, so that all are tried by some node.
  timeout: {type: int, default: 15, description: Seconds for each login.}
author: [lambdactl contributors]
attributes:
  check_mode: {support: none}
"""

EXAMPLES = r"""
- name: Log in to the next nodes
  lambdactl_ssh_check:
    name: worker-1
    user: ubuntu
    peers: [{name: worker-1, address: 10.0.0.1}, {name: worker-2, address: 10.0.0.2}]
"""

RETURN = r"""
checked: {description: Names of the peers that were tried., type: list, returned: always}
"""

import os
import pwd
import subprocess

from ansible.module_utils.basic import AnsibleModule


def command(user, address, timeout):
    """`ssh ADDRESS true` as the login user."""
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=%d" % timeout, "-T", address, "true"]
    return ssh if pwd.getpwuid(os.getuid()).pw_name == user else ["runuser", "-u", user, "--", *ssh]


def following(name, peers, limit):
    """The next `limit` peers after this node, around the ring."""
    names = [peer["name"] for peer in peers]
    start = names.index(name) + 1 if name in names else 0
    ring = peers[start:] + peers[:start]
    return [peer for peer in ring if peer["name"] != name][:limit]


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "peers": {"type": "list", "elements": "dict", "required": True},
            "limit": {"type": "int", "default": 8},
            "timeout": {"type": "int", "default": 15},
        },
    )
    params = module.params
    chosen = following(params["name"], params["peers"], params["limit"])
    started = [
        (
            peer,
            subprocess.Popen(
                command(params["user"], peer["address"], params["timeout"]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
            ),
        )
        for peer in chosen
    ]
    failures = []
    for peer, process in started:
        try:
            _, err = process.communicate(timeout=2 * params["timeout"])
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
        if process.returncode != 0:
            lines = err.decode("utf-8", "replace").strip().splitlines() or ["no answer"]
            failures.append("%s (%s): %s" % (peer["name"], peer["address"], lines[-1]))
    if failures:
        module.fail_json(
            msg="%s cannot log in to %s. Remedy: Check that the nodes reach each other's SSH port, then run again."
            % (params["name"], "; ".join(failures))
        )
    module.exit_json(changed=False, checked=[peer["name"] for peer in chosen])


if __name__ == "__main__":
    main()
