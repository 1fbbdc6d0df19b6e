"""What is asked of the API: the one table of verbs, which is also the manifest of roles and what ``check`` asks.

``python -m lambdactl.backends.kubernetes.rights`` prints docs/kubernetes/rbac.yaml; a test compares the two, and the
tests' user has exactly these rights.
"""

from __future__ import annotations

from dataclasses import dataclass

from .resources import (
    CLAIMS,
    CONFIGMAPS,
    CRONJOBS,
    DEPLOYMENTS,
    EVENTS,
    JOBS,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    PODS,
    PRIORITY_CLASSES,
    SECRETS,
    SERVICES,
    Resource,
)


@dataclass(frozen=True, slots=True)
class Right:
    """Verbs on one kind of objects.

    Attributes:
        resource: the kind.
        verbs: RBAC verbs.
        why: what cannot be done without it; ends "without it, lambdactl cannot ...".
        subresource: such as ``log``.
        everywhere: in all namespaces (a ClusterRole); otherwise in the configured one.
        optional: only some runs need it, so ``check`` warns instead of failing.
    """

    resource: Resource
    verbs: tuple[str, ...]
    why: str
    subresource: str | None = None
    everywhere: bool = False
    optional: bool = False

    @property
    def plural(self) -> str:
        """As a role writes it."""
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural


RIGHTS: tuple[Right, ...] = (
    Right(NODES, ("list", "watch"), "see nodes and GPUs", everywhere=True),
    Right(PODS, ("list", "watch"), "see what other pods take of the nodes", everywhere=True),
    Right(NAMESPACES, ("get",), "see the namespace and its policy", everywhere=True),
    Right(PRIORITY_CLASSES, ("list",), "honour a run's priority", everywhere=True, optional=True),
    Right(PODS, ("get", "list", "watch", "create", "delete", "patch"), "run and watch ranks"),
    Right(PODS, ("get",), "read logs", subresource="log"),
    Right(PODS, ("get", "create"), "run a command in a rank", subresource="exec"),
    Right(PODS, ("get", "create"), "reach a rank without a jump pod", subresource="portforward"),
    Right(EVENTS, ("list", "watch"), "say why a pod does not start"),
    Right(JOBS, ("get", "list", "watch", "create", "delete", "patch"), "run tasks"),
    Right(SERVICES, ("get", "list", "create", "delete", "patch"), "give ranks their names"),
    Right(CLAIMS, ("get",), "see the files volume", optional=True),
    Right(CONFIGMAPS, ("get", "list", "create", "delete"), "hand a run to its ranks"),
    Right(SECRETS, ("get", "list", "create", "update", "delete"), "hand keys and registry logins to ranks"),
    Right(
        DEPLOYMENTS,
        ("get", "list", "watch", "create", "delete", "patch"),
        "run services with their proxy, and keep a jump pod",
        optional=True,
    ),
    Right(
        NETWORK_POLICIES,
        ("get", "create", "delete"),
        "keep others in the cluster's network from going around a service's proxy",
        optional=True,
    ),
    Right(CRONJOBS, ("get", "list", "create", "delete", "patch"), "start tasks at set times", optional=True),
)

_NAME = "lambdactl"
_HEAD = """\
# What lambdactl needs in a cluster, and nothing else. Generated from lambdactl/backends/kubernetes/rights.py.
# An administrator applies it once, for the namespace "default":
#   kubectl apply -f rbac.yaml
# and for another one:
#   sed 's/namespace: default/namespace: NAME/' rbac.yaml | kubectl apply -f -
# How to make a kubeconfig for it: ../kubernetes.md
"""


def manifest() -> str:
    """The ServiceAccount, the roles and their bindings, as YAML."""
    import yaml

    cluster = [right for right in RIGHTS if right.everywhere]
    namespaced = [right for right in RIGHTS if not right.everywhere]
    subject = {"kind": "ServiceAccount", "name": _NAME, "namespace": "default"}
    here, api = {"name": _NAME, "namespace": "default"}, "rbac.authorization.k8s.io"
    documents = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": {"name": _NAME}, "rules": _rules(cluster)},
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": here, "rules": _rules(namespaced)},
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": _NAME},
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": _NAME},
            "subjects": [subject],
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": here,
            "roleRef": {"apiGroup": api, "kind": "Role", "name": _NAME},
            "subjects": [subject],
        },
    ]

    class Plain(yaml.SafeDumper):
        """Writes equal values out instead of as aliases, and indents lists."""

        def ignore_aliases(self, data: object) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    return _HEAD + "".join(
        "---\n" + yaml.dump(document, Dumper=Plain, sort_keys=False, default_flow_style=None, width=110)
        for document in documents
    )


def _rules(rights: list[Right]) -> list[dict[str, list[str]]]:
    return [
        {"apiGroups": [right.resource.group], "resources": [right.plural], "verbs": list(right.verbs)}
        for right in rights
    ]


if __name__ == "__main__":
    print(manifest(), end="")
