"""What a fleet needs: one look at all nodes, the roles that each of them lacks, and failures in words.

The same code answers `lambdactl apply`'s plan and the action plugins of `playbooks/`, so that both see the same plan.
"""

from __future__ import annotations

from lambdactl.provision.explain import Explanation, explain, sentence
from lambdactl.provision.probe import Problem, Reply, Survey, ask, reach, survey
from lambdactl.provision.roles import (
    ROLES,
    Change,
    Peer,
    changes,
    needed,
    node_ssh_digest,
    peers,
    role_digest,
    role_digests,
)

__all__ = [
    "ROLES",
    "Change",
    "Explanation",
    "Peer",
    "Problem",
    "Reply",
    "Survey",
    "ask",
    "changes",
    "explain",
    "needed",
    "node_ssh_digest",
    "peers",
    "reach",
    "role_digest",
    "role_digests",
    "sentence",
    "survey",
]
