# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible filters: who the nodes of a fleet are, and what each line about them looks like."""

from __future__ import annotations

RUNNER = "/usr/bin/env python3 -I -S /opt/lambdactl/runner.pyz node-shell"


def merge_nodes(known, fresh, remembered, order):
    """The nodes in the order of `order`, each once.

    Args:
        known: what the probe said of all nodes that answered.
        fresh: what nodes said in this run; wins over `known`.
        remembered: what an earlier run wrote down; serves for nodes that do not answer now and are still in the fleet.
        order: names of the fleet's hosts; whoever is not in it is forgotten.
    """
    nodes = {}
    for source in (remembered, known, fresh):
        nodes.update({node["name"]: dict(node) for node in source if node.get("public_key")})
    return [nodes[name] for name in order if name in nodes]


def authorized_key(node):
    """A node's line for authorized_keys: only from its own addresses, only through the runner."""
    options = 'restrict,pty,from="%s",command="%s"' % (",".join(node["addresses"]), RUNNER)
    return "%s %s" % (options, node["public_key"])


def known_hosts(node):
    """A node's lines for known_hosts, under its name and its address."""
    names = [name if node["port"] == 22 else "[%s]:%d" % (name, node["port"]) for name in _names(node)]
    return ["%s %s" % (",".join(names), key) for key in node["host_keys"]]


def patterns(node):
    """What a user or mpirun may call the node."""
    return ",".join(_names(node))


def line_in(line, path):
    """A manifest's entry that says: this line is in this file."""
    return {"line": line, "in": path}


def _names(node):
    return [node["address"]] if node["name"] == node["address"] else [node["name"], node["address"]]


class FilterModule:
    """Filters of the role node_ssh."""

    def filters(self):
        return {
            "lambdactl_merge_nodes": merge_nodes,
            "lambdactl_authorized_key": authorized_key,
            "lambdactl_known_hosts": known_hosts,
            "lambdactl_patterns": patterns,
            "lambdactl_line_in": line_in,
        }
