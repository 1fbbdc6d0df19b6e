#!/usr/bin/python
# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible module: a node's own key for node-to-node SSH, and what the other nodes must know of this node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lambdactl_node_key
short_description: Make a node's key for node-to-node SSH and describe the node to the others
description:
  - Makes an Ed25519 key pair in the login user's C(~/.ssh/lambdactl_ed25519) where there is none.
    The private key never leaves the node.
  - Returns what the others need, and what an earlier run left about nodes that do not answer now.
options:
  name: {type: str, required: true, description: The node's name in the inventory.}
  address: {type: str, default: "", description: Its address among the nodes; empty takes the one of the default route.}
  port: {type: int, default: 22, description: Port of its sshd.}
  fleet: {type: str, required: true, description: The fleet's id for the key's comment.}
author: [lambdactl contributors]
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Make the key
  lambdactl_node_key:
    name: "{{ inventory_hostname }}"
    fleet: 0a1b2c3d
"""

RETURN = r"""
node:
  description: What the other nodes need; public_key is empty in check mode where there is no key.
  type: dict
  returned: always
remembered: {description: The nodes of the last run., type: list, elements: dict, returned: always}
home: {description: The user's home., type: str, returned: always}
group: {description: The user's group., type: str, returned: always}
accepts_env: {description: Whether sshd lets LC_LAMBDACTL_RUN through., type: bool, returned: always}
"""

import glob
import grp
import json
import os
import pwd
import re
import socket

from ansible.module_utils.basic import AnsibleModule

RUNNER = "/opt/lambdactl/runner.pyz"
NODES = "/etc/lambdactl/nodes.json"
# Interfaces that exist inside of one machine only: every node may have the same address there.
VIRTUAL = re.compile(r"lo|docker|br-|virbr|lxc|veth|vnet|cni|flannel|cali|cilium|kube|podman|tun|tap")


def make_key(module, account, key):
    """The key pair; True when it was made."""
    if os.path.exists(key) and os.path.exists(key + ".pub"):
        return False
    if module.check_mode:
        return True
    folder = os.path.dirname(key)
    if not os.path.isdir(folder):
        os.mkdir(folder, 0o700)
        os.chown(folder, account.pw_uid, account.pw_gid)
    for path in (key, key + ".pub"):
        if os.path.lexists(path):
            os.unlink(path)
    comment = "lambdactl-%s-%s" % (module.params["fleet"], module.params["name"])
    module.run_command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", key], check_rc=True)
    for path in (key, key + ".pub"):
        os.chown(path, account.pw_uid, account.pw_gid)
    return True


def read(path):
    """A text file's content, empty where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def host_keys():
    """sshd's public keys, type and base64 only."""
    return sorted(" ".join(read(path).split()[:2]) for path in glob.glob("/etc/ssh/ssh_host_*_key.pub"))


def addresses(module):
    """IPv4 addresses that other nodes may see as this node's: no loopback, no link-local, no bridge."""
    _, out, _ = module.run_command(["ip", "-j", "-4", "address"])
    found = []
    for interface in json.loads(out or "[]"):
        if VIRTUAL.match(interface.get("ifname", "lo")):
            continue
        found += [item["local"] for item in interface.get("addr_info", []) if item.get("scope") == "global"]
    return found


def default_address():
    """The address that packets to elsewhere leave with; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return probe.getsockname()[0]


def accepts_env(module, user):
    """Whether sshd's AcceptEnv covers LC_LAMBDACTL_RUN for this user."""
    sshd = module.get_bin_path("sshd", opt_dirs=["/usr/sbin", "/usr/local/sbin"])
    if sshd is None:
        return True
    rc, out, _ = module.run_command([sshd, "-T", "-C", "user=%s,host=localhost,addr=127.0.0.1" % user])
    patterns = re.findall(r"^acceptenv (\S+)", out, re.MULTILINE | re.IGNORECASE)
    return rc != 0 or any(pattern in ("*", "LC_*", "LC_LAMBDACTL_RUN") for pattern in patterns)


def remembered():
    """The nodes that an earlier run wrote down."""
    try:
        nodes = json.loads(read(NODES))
    except ValueError:
        return []
    return [node for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 22},
            "fleet": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name  # who logged in, as the probe sees it
    account = pwd.getpwnam(user)
    key = os.path.join(account.pw_dir, ".ssh", "lambdactl_ed25519")
    if not module.check_mode and not os.path.exists(RUNNER):
        module.fail_json(
            msg="%s is missing, through which the logins of other nodes go. Remedy: Apply the role runner first."
            % RUNNER
        )
    try:
        changed = make_key(module, account, key)
    except OSError as error:
        module.fail_json(msg="The key %s cannot be made: %s." % (key, error))
    address = module.params["address"] or default_address()
    node = {
        "name": module.params["name"],
        "address": address,
        "addresses": sorted({address} | set(addresses(module))),
        "user": user,
        "port": module.params["port"],
        "host_keys": host_keys(),
        "public_key": read(key + ".pub").strip(),
    }
    module.exit_json(
        changed=changed,
        node=node,
        remembered=remembered(),
        home=account.pw_dir,
        group=grp.getgrgid(account.pw_gid).gr_name,
        accepts_env=accepts_env(module, user),
    )


if __name__ == "__main__":
    main()
