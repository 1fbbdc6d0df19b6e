"""Who may do what in the fake: users by bearer token, rules from Role and ClusterRole manifests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Rule:
    """A rule of a role; ``namespace`` None is a ClusterRole's, bound for the whole cluster."""

    groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    namespace: str | None
    names: tuple[str, ...] = ()

    def allows(self, verb: str, group: str, resource: str, namespace: str | None, name: str | None) -> bool:
        return (
            (verb in self.verbs or "*" in self.verbs)
            and (group in self.groups or "*" in self.groups)
            and (resource in self.resources or "*" in self.resources)
            and (self.namespace is None or self.namespace == namespace)
            and (not self.names or name in self.names)
        )


EVERYTHING = Rule(("*",), ("*",), ("*",), None)


@dataclass
class User:
    """A user of the fake; ``rules`` are all that it has."""

    name: str
    rules: tuple[Rule, ...] = field(default=(EVERYTHING,))

    def may(self, verb: str, group: str, resource: str, namespace: str | None, name: str | None = None) -> bool:
        return any(rule.allows(verb, group, resource, namespace, name) for rule in self.rules)


def load_rules(manifest: Path | str, namespace: str = "default") -> tuple[Rule, ...]:
    """The rules of all Roles (bound in ``namespace``) and ClusterRoles of a manifest file."""
    text = manifest.read_text() if isinstance(manifest, Path) else manifest
    rules: list[Rule] = []
    for document in yaml.safe_load_all(text):
        kind = (document or {}).get("kind")
        if kind not in ("Role", "ClusterRole"):
            continue
        for rule in document.get("rules") or []:
            rules.append(_rule(rule, None if kind == "ClusterRole" else namespace))
    return tuple(rules)


def _rule(rule: dict[str, Any], namespace: str | None) -> Rule:
    return Rule(
        tuple(rule.get("apiGroups") or ()),
        tuple(rule.get("resources") or ()),
        tuple(rule["verbs"]),
        namespace,
        tuple(rule.get("resourceNames") or ()),
    )


def forbidden(user: str, verb: str, group: str, resource: str, namespace: str | None, name: str | None) -> str:
    """The API's own sentence."""
    what = f'{resource} "{name}" is' if name else f"{resource} is"
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    return f'{what} forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
