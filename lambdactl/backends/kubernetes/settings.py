# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""The Kubernetes backend in a configuration file: dstack's ``~/.dstack/server/config.yml`` as it is, or our own.

Our own file (``~/.config/lambdactl/config.yml``) takes the same, or ``backends`` at its top level, and a few optional
keys of ours. Source of the rules: dstack's reference page of ``server/config.yml``, type ``kubernetes``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, SequenceNode

from lambdactl.errors import SpecError
from lambdactl.spec.engine import At, ListOf, Struct, key
from lambdactl.spec.fields import PORT, TEXT
from lambdactl.spec.kinds import Choice, Duration, Read, Text
from lambdactl.spec.nodes import Problem, compose, describe, entries, is_null, nearest, show
from lambdactl.spec.resources import SIZE

_CONTEXT = Text(r"[^\x00-\x1f\x7f]+", "the name of a context of the kubeconfig", label="context")
_NAMESPACE = Text(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "a namespace: lower-case letters, digits and '-'")
_HOSTNAME = Text(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,254}", "a host name or an IP address, without user or port")
_RESOURCE = Text(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", "a resource of nodes such as rdma/rdma_shared_device_a")
_IMAGE = Text(r"[^\s\x00-\x1f\x7f]+", "a container image")
_CLAIM_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_CLAIM = Text(_CLAIM_NAME.pattern, "the name of a PersistentVolumeClaim", label="claim")
UNUSED = 14 * 86400
"""Seconds after which what nobody has used goes from the files volume, as from SSH hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JumpAddress:
    """Where the jump pod is reached from outside: any node's external address, and a NodePort."""

    hostname: str | None = key(_HOSTNAME, "External address of any node.", default_text="found from the nodes")
    port: int | None = key(PORT, "The NodePort, which the firewall must let in.", default_text="chosen by Kubernetes")


_JUMP = Struct(JumpAddress, "proxy_jump")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSettings:
    """One context, which is one cluster."""

    name: str = key(_CONTEXT, "The context's name in the kubeconfig.", required=True)
    proxy_jump: JumpAddress | None = key(_JUMP, "The jump pod of this cluster.", default_text="none")
    line: int = 0


_CONTEXT_KIND = Struct(
    ContextSettings,
    "contexts",
    shorthand=Read(lambda text: {"name": text}, "context", "the name of a context", {"type": "string"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesVolume:
    """A volume that all pods can write, where the files of runs stay (filestore.py)."""

    claim: str = key(_CLAIM, "The PersistentVolumeClaim, which can be mounted by many nodes.", required=True)
    unused: int = key(
        Duration(least=3600), "What nobody has used for so long goes.", default=UNUSED, default_text="14d"
    )
    size: float | None = key(SIZE, "What is above it goes, the least used first.", default_text="no limit")


def _claim(text: str) -> dict[str, str]:
    if not _CLAIM_NAME.fullmatch(text):
        raise ValueError("must be the name of a PersistentVolumeClaim, or a mapping with `claim`")
    return {"claim": text}


_FILES_VOLUME = Struct(
    FilesVolume,
    "files_volume",
    shorthand=Read(_claim, "claim", "the name of a claim, or a mapping", {"type": "string"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeconfigSettings:
    """The kubeconfig, as a file or as text."""

    filename: str = key(Text(), "Path of the kubeconfig.", default="", nullable=True)
    data: str | None = key(Text(secret=True), "The kubeconfig's text, in the place of a file.", secret=True)


def _one_kubeconfig(settings: KubeconfigSettings, at: At) -> KubeconfigSettings:
    if not settings.filename and settings.data is None:
        raise Problem(at.node, "must have a 'filename' or 'data'")
    return settings


def _distinct(contexts: Sequence[ContextSettings], node: SequenceNode) -> None:
    seen: set[str] = set()
    for context, item in zip(contexts, node.value, strict=True):
        if context.name in seen:
            raise Problem(item, f"names the context {show(context.name)} a second time; remove one")
        seen.add(context.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """``type: kubernetes``. Those after `namespace` are ours."""

    type: str = key(Choice("kubernetes"), "The backend.", required=True)
    kubeconfig: KubeconfigSettings | None = key(
        Struct(KubeconfigSettings, "kubeconfig", check=_one_kubeconfig),
        "How to reach the cluster.",
        default_text="KUBECONFIG, or ~/.kube/config",
    )
    contexts: tuple[ContextSettings, ...] | None = key(
        ListOf(_CONTEXT_KIND, check=_distinct), "Contexts (clusters) to use.", default_text="`current-context`"
    )
    proxy_jump: JumpAddress | None = key(_JUMP, "The jump pod, without `contexts` only.", default_text="none")
    namespace: str | None = key(_NAMESPACE, "The namespace, without `contexts` only.", default_text="`default`")
    rdma_resource: str | None = key(_RESOURCE, "The nodes' RDMA resource.", default_text="found", ours=True)
    image: str | None = key(_IMAGE, "Image of runs whose file names none.", ours=True)
    jump_image: str | None = key(_IMAGE, "Image of the jump pod (needs sshd).", ours=True)
    probe_image: str | None = key(
        _IMAGE,
        "Image in which the probes of services are asked that a kubelet cannot ask (needs python3).",
        default_text="`image`, else the service's own",
        ours=True,
    )
    proxy_image: str | None = key(_IMAGE, "Image of the services' proxy (needs haproxy and /bin/sh).", ours=True)
    queue: str | None = key(TEXT, "Kueue's LocalQueue that runs are handed to.", default_text="none", ours=True)
    files_volume: FilesVolume | None = key(
        _FILES_VOLUME, "Where the files of runs stay, by their contents.", default_text="none", ours=True
    )
    controller_image: str | None = key(
        _IMAGE, "Image of the pods that start runs at set times (needs lambdactl).", default_text="`image`", ours=True
    )
    filename: str = ""
    line: int = 0


def _check_backend(settings: BackendSettings, at: At) -> BackendSettings:
    if settings.contexts is not None:
        if not settings.contexts:
            raise at.problem("contexts", "must not be empty; name a context, or remove the key")
        for name in ("proxy_jump", "namespace"):
            if at.has(name):
                where = "to the entries of 'contexts'" if name == "proxy_jump" else "into the kubeconfig's context"
                raise at.problem(name, f"cannot be used together with 'contexts'; move it {where}")
    return settings


BACKEND = Struct(BackendSettings, "kubernetes backend", check=_check_backend)


def read_settings(path: Path, *, ours: bool, project: str | None = None) -> BackendSettings | None:
    """The Kubernetes backend of a configuration file; None where it has none.

    Args:
        path: the file.
        ours: our own file, in which an unknown key is a mistake; dstack's own other keys are its own business.
        project: dstack's project, where several have such a backend.

    Raises:
        SpecError: the file cannot be read, or what it says of Kubernetes is wrong (file and line).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"the configuration cannot be read: {reason}", filename=str(path)) from None
    if not text.strip():
        return None
    try:
        found = _find(compose(text), ours=ours, project=project)
    except Problem as problem:
        raise SpecError(problem.sentence(), filename=str(path), line=problem.line) from None
    return found and dataclasses.replace(found, filename=str(path))


def _find(root: MappingNode, *, ours: bool, project: str | None) -> BackendSettings | None:
    projects: list[tuple[str, Node]] = []
    for name, key_node, value in entries(root):
        if name == "projects" and not is_null(value):
            projects += [_project(item) for item in _items(value, "projects")]
        elif name == "backends" and ours:
            projects.append(("main", value))
        elif ours:
            meant = nearest(name, ("projects", "backends"))
            hint = f"did you mean '{meant}'?" if meant else "allowed: backends, projects"
            raise Problem(key_node, f"; {hint}", before=f"unknown key {show(name)}")
    found = [(name, settings) for name, node in projects if (settings := _kubernetes(node)) is not None]
    if not found:
        return None
    if project is None and len(found) > 1:
        project = "main"
    chosen = [settings for name, settings in found if project in (None, name)]
    if not chosen:
        names = ", ".join(name for name, _ in found)
        raise Problem(root, f"several projects have a Kubernetes backend ({names}); set LAMBDACTL_PROJECT to one")
    return chosen[0]


def _project(node: Node) -> tuple[str, Node]:
    keys = {name: value for name, _, value in _mapping(node, "projects")}
    name = keys.get("name")
    return (str(name.value) if name is not None else "main"), keys.get("backends", SequenceNode("", []))


def _kubernetes(backends: Node) -> BackendSettings | None:
    found = None
    for item in [] if is_null(backends) else _items(backends, "backends"):
        keys = {name: value for name, _, value in _mapping(item, "backends")}
        if "type" not in keys:
            raise Problem(item, "; it is required", before="'type' is missing")
        if keys["type"].value != "kubernetes":
            continue
        if found is not None:
            raise Problem(item, "has a second backend of the type 'kubernetes'; use its 'contexts' instead")
        found = BACKEND.read(item)
    return found


def _items(node: Node, name: str) -> list[Any]:
    if not isinstance(node, SequenceNode):
        raise Problem(node, f"must be a list, not {describe(node)}").under(name)
    return list(node.value)


def _mapping(node: Node, name: str) -> list[tuple[str, Node, Node]]:
    if not isinstance(node, MappingNode):
        raise Problem(node, f"must hold mappings, not {describe(node)}").under(name)
    return entries(node)
