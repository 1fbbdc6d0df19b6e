"""Which cluster is meant: configuration files (ours, dstack's), kubeconfigs, environment, and every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lambdactl import spec
from lambdactl.backends.kubernetes.config import JumpAddress, find_target, fleet_targets, targets
from lambdactl.errors import SpecError

REFERENCE = """\
projects:
  - name: main
    backends:
    - type: kubernetes
      kubeconfig:
        filename: {kubeconfig}
      proxy_jump:
        port: 30022
"""


def kubeconfig(path: Path, *names: str, current: str | None = None, namespace: str | None = None) -> Path:
    """A kubeconfig with a context, a cluster and a user of each name."""
    space = {"namespace": namespace} if namespace else {}
    document: dict[str, Any] = {
        "apiVersion": "v1", "kind": "Config", "current-context": names[0] if current is None else current,
        "clusters": [{"name": n, "cluster": {"server": f"https://{n}:6443"}} for n in names],
        "contexts": [{"name": n, "context": {"cluster": n, "user": n, **space}} for n in names],
        "users": [{"name": n, "user": {"token": n}} for n in names],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document))
    return path


def ours(home: Path, text: str) -> Path:
    path = home / "config" / "lambdactl" / "config.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def dstacks(home: Path, text: str) -> Path:
    path = home / ".dstack" / "server" / "config.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_reference_page(home: Path) -> None:
    file = kubeconfig(home / "mk8s.yaml", "mk8s")
    dstacks(home, REFERENCE.format(kubeconfig="~/mk8s.yaml"))
    (found,) = targets()
    assert (found.name, found.region, found.context, found.namespace) == ("mk8s", "", "mk8s", "default")
    assert found.proxy_jump == JumpAddress(hostname=None, port=30022)
    assert found.kubeconfig.server("mk8s") == "https://mk8s:6443"
    assert found.kubeconfig.shown == str(file)


def test_ours_wins_over_dstacks_and_has_a_short_form(home: Path) -> None:
    kubeconfig(home / "a", "a", namespace="x")
    dstacks(home, REFERENCE.format(kubeconfig="/nowhere"))
    ours(
        home,
        "backends:\n- type: kubernetes\n  kubeconfig: {filename: ~/a}\n  namespace: team\n  rdma_resource: rdma/ib\n"
        "  image: r.example/i:1\n  queue: gpus\n",
    )
    (found,) = targets()
    assert (found.context, found.namespace, found.rdma_resource, found.image, found.queue) == (
        "a", "team", "rdma/ib", "r.example/i:1", "gpus",
    )  # fmt: skip
    assert len(found.notes) == 1
    assert "although the context 'a' says 'x'" in found.notes[0]


def test_contexts_are_regions(home: Path) -> None:
    kubeconfig(home / "k", "east", "west", namespace="ml")
    text = "backends:\n- type: kubernetes\n  kubeconfig: {filename: ~/k}\n  contexts:\n  - east\n"
    ours(home, text + "  - {name: west, proxy_jump: {hostname: 1.2.3.4, port: 30022}}\n")
    east, west = targets()
    assert (east.region, east.namespace, east.proxy_jump) == ("east", "ml", None)
    assert (west.region, west.proxy_jump) == ("west", JumpAddress(hostname="1.2.3.4", port=30022))
    assert [t.name for t in targets(context="west")] == ["west"]
    with pytest.raises(SpecError, match=r"several clusters are configured \(east, west\)"):
        find_target()
    fleet = spec.loads("type: fleet\nnodes: 0..\nbackends: [kubernetes]\nregions: [west]\n", kind="fleet")
    assert find_target(fleet).name == "west"
    wrong = spec.loads("type: fleet\nnodes: 0..\nregions: [north]\n", filename="f.yml", kind="fleet")
    with pytest.raises(
        SpecError, match=r"f\.yml:3: the region 'north' is not a configured context; there are: east, west"
    ):
        fleet_targets(wrong)


def test_data_in_the_place_of_a_file(home: Path) -> None:
    text = kubeconfig(home / "k", "a").read_text()
    ours(home, yaml.safe_dump({"backends": [{"type": "kubernetes", "kubeconfig": {"data": text}}]}))
    (found,) = targets()
    assert found.context == "a"
    assert "token" not in repr(found)


def test_fallbacks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig(home / ".kube" / "config", "default-one", namespace="ns")
    (found,) = targets()
    assert (found.context, found.namespace) == ("default-one", "ns")
    first, second = kubeconfig(home / "1", "one"), kubeconfig(home / "2", "two", "one")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{home / 'none'}:{second}")
    assert targets()[0].context == "one"
    assert targets(context="two")[0].context == "two"
    monkeypatch.setenv("LAMBDACTL_KUBECONFIG", str(second))
    assert targets()[0].context == "two"
    monkeypatch.setenv("LAMBDACTL_CONTEXT", "one")
    assert targets()[0].context == "one"
    assert targets(str(first))[0].kubeconfig.shown == str(first)


def test_projects(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig(home / "k", "a", "b")
    entry = "  backends:\n  - {type: aws, creds: {type: default}}\n"
    kube = "  - type: kubernetes\n    kubeconfig: {filename: ~/k}\n"
    dstacks(home, f"encryption: {{keys: []}}\nprojects:\n- name: x\n{entry}- name: y\n{entry}{kube}")
    assert targets()[0].context == "a"
    two = f"projects:\n- name: x\n{entry}{kube}- name: y\n{entry}{kube}    contexts: [b]\n"
    path = dstacks(home, two)
    with pytest.raises(SpecError, match=r"several projects have a Kubernetes backend \(x, y\)"):
        targets()
    monkeypatch.setenv("LAMBDACTL_PROJECT", "y")
    assert targets()[0].context == "b"
    path.write_text("projects:\n- name: x\n  backends:\n  - {type: aws}\n")
    kubeconfig(home / ".kube" / "config", "fallback")
    assert targets()[0].context == "fallback"


def test_paths_in_a_kubeconfig_are_relative_to_it(home: Path) -> None:
    file = kubeconfig(home / "sub" / "k", "a")
    document = yaml.safe_load(file.read_text())
    document["users"][0]["user"] = {"client-certificate": "c.pem", "client-key": "/abs/k.pem"}
    file.write_text(yaml.safe_dump(document))
    user = targets(str(file))[0].kubeconfig.user("a")
    assert user == {"client-certificate": str(home / "sub" / "c.pem"), "client-key": "/abs/k.pem"}


KUBE = "backends:\n- type: kubernetes\n"
MISTAKES = [
    (KUBE + "  kubeconfig: {}\n", 3, "must have a 'filename' or 'data'"),
    (KUBE + "  kubeconfg: {filename: k}\n", 3, "did you mean 'kubeconfig'?"),
    (KUBE + "  contexts: [a, a]\n", 3, "a second time"),
    (KUBE + "  contexts: []\n", 3, "must not be empty"),
    (KUBE + "  contexts: [a]\n  namespace: x\n", 4, "cannot be used together with 'contexts'"),
    (KUBE + "  contexts: [a]\n  proxy_jump: {port: 1}\n", 4, "move it to the entries of 'contexts'"),
    (KUBE + "  namespace: Not_valid\n", 3, "a namespace"),
    (KUBE + "  proxy_jump: {port: 99999}\n", 3, "a port from 1 to 65535"),
    (KUBE + "  rdma_resource: ib\n", 3, "rdma/"),
    (KUBE + "  kubeconfig: {filename: ~/k}\n  contexts: [a, c]\n", 4, "has no context 'c'"),
    (KUBE + "- type: kubernetes\n", 3, "second backend"),
    ("backend: []\n", 1, "did you mean 'backends'?"),
    ("backends: {}\n", 1, "must be a list"),
    ("backends: [x]\n", 1, "must hold mappings"),
    ("backends:\n- kubeconfig: {filename: k}\n", 2, "'type' is missing"),
    ("projects: 3\n", 1, "must be a list"),
    ("a: [\n", 2, "not valid YAML"),
]


@pytest.mark.parametrize(("text", "line", "said"), MISTAKES)
def test_mistakes_in_the_configuration(home: Path, text: str, line: int, said: str) -> None:
    kubeconfig(home / "k", "a", "b")
    path = ours(home, text)
    with pytest.raises(SpecError) as caught:
        targets(environ={"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "KUBECONFIG": str(home / "k")})
    assert said in str(caught.value)
    assert (caught.value.filename, caught.value.line) == (str(path), line)


KUBECONFIGS = [
    ("", "this is not a kubeconfig"),
    ("a: [", "not valid YAML"),
    ("[1]", "this is not a kubeconfig"),
    ("contexts: []", "no 'current-context'; download it again"),
    ("contexts: [{name: a, context: {cluster: c}}]", "kubectl config use-context a"),
    ("contexts: [{name: a, context: {cluster: c}}]\ncurrent-context: a", "names the cluster 'c'"),
    (
        "contexts: [{name: a, context: {cluster: c, user: u}}]\ncurrent-context: a\nclusters: [{name: c, cluster: {}}]",
        "names the user 'u'",
    ),
    ("contexts: [{name: prod, context: {}}]\ncurrent-context: prd", "did you mean 'prod'?"),
]


@pytest.mark.parametrize(("text", "said"), KUBECONFIGS)
def test_mistakes_in_the_kubeconfig(home: Path, text: str, said: str) -> None:
    file = home / "k"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        targets(str(file))
    assert said in str(caught.value)
    assert caught.value.filename == str(file)


def test_no_cluster_at_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"no Kubernetes cluster is configured.*set KUBECONFIG"):
        targets()
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        targets(str(home / "missing"))
    monkeypatch.setenv("KUBECONFIG", "/nowhere/at/all")
    with pytest.raises(SpecError, match="KUBECONFIG names /nowhere/at/all, which does not exist"):
        targets()


def test_in_a_pod_its_service_account_is_the_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lambdactl.backends.kubernetes import service_account

    environ = {"HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    account = tmp_path / "serviceaccount"
    account.mkdir()
    monkeypatch.setattr(service_account.in_cluster, "__defaults__", (account,))
    with pytest.raises(SpecError, match="no Kubernetes cluster is configured"):
        targets(environ=environ)  # a pod without a token
    for name, text in (("token", "secret"), ("namespace", "ml\n"), ("ca.crt", "")):
        (account / name).write_text(text)
    (target,) = targets(environ=environ)
    assert (target.context, target.namespace) == ("in-cluster", "ml")
    assert target.kubeconfig.server("in-cluster") == "https://10.96.0.1:443"
    assert target.kubeconfig.user("in-cluster") == {"tokenFile": str(account / "token")}
    (target,) = targets(environ={**environ, "KUBERNETES_SERVICE_HOST": "fd00::1"})
    assert target.kubeconfig.server("in-cluster") == "https://[fd00::1]:443"
    (tmp_path / "kubeconfig").write_text("apiVersion: v1\nkind: Config\ncontexts: []\ncurrent-context: x\n")
    with pytest.raises(SpecError, match="has no context 'x'"):  # what is configured stands above it
        targets(environ={**environ, "KUBECONFIG": str(tmp_path / "kubeconfig")})
