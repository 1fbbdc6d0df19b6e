"""The table of rights is the shipped manifest, and the manifest is valid."""

from __future__ import annotations

import yaml

from lambdactl.backends.kubernetes.rights import RIGHTS, manifest
from tests.fakes.kube import load_rules
from tests.fakes.kube.admission import validate
from tests.fakes.kube.rbac import User
from tests.unit.kube.bed import RBAC


def test_the_manifest_is_made_of_the_table() -> None:
    assert RBAC.read_text() == manifest(), (
        "run: python -m lambdactl.backends.kubernetes.rights > docs/kubernetes/rbac.yaml"
    )


def test_the_manifest_fits_the_published_schema() -> None:
    documents = list(yaml.safe_load_all(manifest()))
    assert [d["kind"] for d in documents] == [
        "ServiceAccount", "ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding",
    ]  # fmt: skip
    for document in documents:
        validate(document)


def test_every_right_is_given_and_nothing_of_the_cluster_can_be_changed() -> None:
    user = User("sa", load_rules(RBAC))
    for right in RIGHTS:
        for verb in right.verbs:
            assert user.may(verb, right.resource.group, right.plural, None if right.everywhere else "default")
    for verb in ("create", "update", "patch", "delete"):
        assert not user.may(verb, "", "nodes", None)
        assert not user.may(verb, "", "pods", "kube-system")
    assert not user.may("get", "", "secrets", "kube-system")
