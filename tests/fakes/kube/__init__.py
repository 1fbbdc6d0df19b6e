"""A FAKE Kubernetes cluster for tests: API server, scheduler, Job controller, garbage collector and kubelet.

There is no real cluster where the tests run. The fake is a real HTTP(S) server in a thread of its own: it stores
objects with resourceVersions, validates what is created by the published OpenAPI schemas, enforces RBAC and quotas,
serves watches (with bookmarks, 410 and cut connections on demand), and runs pods in one of two ways: ``scripted``,
where the test says what becomes of each pod, or ``process``, where a pod's command really runs on this machine.

How to drive it::

    with FakeCluster(nodes=[FakeNode("node-1", gpus=8, product="NVIDIA-B200")]) as cluster:
        cluster.kubeconfig(tmp_path / "kubeconfig")          # an administrator; rules=[...] for a limited user
        cluster.put({...})                                   # behind the API's back
        cluster.pod("web-0").run(b"hello\\n").exit(0)         # scripted mode
        cluster.cut_connections(); cluster.expire_watches(); cluster.restart(down=1.0)
        cluster.fail_next("create", "jobs", 500)

What it leaves out: anything but the resources of `lambdactl.backends.kubernetes.resources` (and what tests put),
server-side apply's ownership, images, networks between pods, and most defaulting.
"""

from __future__ import annotations

from .cluster import FakeCluster
from .nodes import FakeNode
from .rbac import load_rules

__all__ = ["FakeCluster", "FakeNode", "load_rules"]
