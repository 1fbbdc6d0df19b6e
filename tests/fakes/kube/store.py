"""The fake's objects: resourceVersions, a history for watches, selectors and patches."""

from __future__ import annotations

import copy
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from lambdactl.backends.kubernetes.resources import Resource

Object = dict[str, Any]
Key = tuple[str, str, str]  # plural, namespace, name
HISTORY = 5000


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Refused(Exception):
    """An answer other than success, as the API gives it."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def status(self) -> Object:
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": self.details, "code": self.code,
        }  # fmt: skip


class Store:
    """All objects; ``listeners`` hear of every change (type, resource plural, object)."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.version = 1000
        self.history: deque[tuple[int, str, str, Object]] = deque(maxlen=HISTORY)
        self.oldest = 1000
        """Watches that go on from before this version get 410."""
        self.listeners: list[Callable[[str, str, Object], None]] = []

    def all(self, plural: str, namespace: str | None = None) -> list[Object]:
        return [o for (p, n, _), o in self.objects.items() if p == plural and namespace in (None, n)]

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        return self.objects.get((plural, namespace, name))

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        found = self.find(resource.plural, namespace, name)
        if found is None:
            raise Refused(404, "NotFound", f'{resource.full_name} "{name}" not found', name=name, kind=resource.plural)
        return found

    def create(self, resource: Resource, namespace: str, item: Object) -> Object:
        item = copy.deepcopy(item)
        metadata = item.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = metadata.get("generateName", "") + uuid.uuid4().hex[:5]
        name = metadata["name"]
        if (resource.plural, namespace, name) in self.objects:
            raise Refused(409, "AlreadyExists", f'{resource.full_name} "{name}" already exists', name=name)
        if resource.namespaced:
            metadata["namespace"] = namespace
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now()
        metadata["generation"] = 1
        item.setdefault("apiVersion", resource.api_version)
        item.setdefault("kind", resource.kind)
        return self._write("ADDED", resource.plural, namespace, item)

    def update(self, plural: str, item: Object) -> Object:
        """Write a changed object, unless nothing has changed."""
        metadata = item["metadata"]
        before = self.objects.get((plural, metadata.get("namespace", ""), metadata["name"]))
        if before == item:
            return item
        return self._write("MODIFIED", plural, metadata.get("namespace", ""), copy.deepcopy(item))

    def remove(self, plural: str, namespace: str, name: str) -> Object | None:
        item = self.objects.pop((plural, namespace, name), None)
        if item is not None:
            item = copy.deepcopy(item)
            self._tell("DELETED", plural, item)
        return item

    def _write(self, kind: str, plural: str, namespace: str, item: Object) -> Object:
        self.objects[plural, namespace, item["metadata"]["name"]] = item
        self._tell(kind, plural, item)
        return item

    def _tell(self, kind: str, plural: str, item: Object) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        if len(self.history) == HISTORY:
            self.oldest = self.history[0][0]
        shot = copy.deepcopy(item)
        self.history.append((self.version, kind, plural, shot))
        for listener in list(self.listeners):
            listener(kind, plural, shot)

    def since(self, version: int, plural: str) -> Iterator[tuple[int, str, Object]]:
        """Changes after a version."""
        for at, kind, of, item in self.history:
            if at > version and of == plural:
                yield at, kind, item


_SET = re.compile(r"^\s*(?P<key>[^\s=!,()]+)\s+(?P<op>in|notin)\s+\((?P<values>[^)]*)\)\s*$")


def split_selector(text: str) -> list[str]:
    """At commas outside of parentheses."""
    return [part for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def matches_labels(selector: str, labels: dict[str, str]) -> bool:
    """A label selector in kubectl's form."""
    return all(_label(part.strip(), labels) for part in split_selector(selector))


def _label(part: str, labels: dict[str, str]) -> bool:
    if match := _SET.match(part):
        values = {value.strip() for value in match["values"].split(",")}
        return (labels.get(match["key"]) in values) == (match["op"] == "in")
    if "!=" in part:
        key, value = part.split("!=", 1)
        return labels.get(key.strip()) != value.strip()
    if "=" in part:
        key, value = part.replace("==", "=").split("=", 1)
        return labels.get(key.strip()) == value.strip()
    return part[1:].strip() not in labels if part.startswith("!") else part in labels


def matches_selector(selector: Object | None, labels: dict[str, str]) -> bool:
    """A LabelSelector object; an empty one matches all."""
    for key, value in ((selector or {}).get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(expression(e, labels) for e in (selector or {}).get("matchExpressions") or [])


def expression(term: Object, labels: dict[str, str]) -> bool:
    """One matchExpressions term, also of node affinity."""
    value, values = labels.get(term["key"]), term.get("values") or []
    match term["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(values[0])
        case _:
            return value is not None and int(value) < int(values[0])


def matches_fields(selector: str, item: Object) -> bool:
    """A field selector such as ``status.phase!=Succeeded,spec.nodeName=a``."""
    for part in split_selector(selector):
        negative = "!=" in part
        path, value = part.split("!=", 1) if negative else part.replace("==", "=").split("=", 1)
        found: Any = item
        for step in path.strip().split("."):
            found = found.get(step) if isinstance(found, dict) else None
        if (str(found or "") == value.strip()) == negative:
            return False
    return True


def merge(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def json_patch(target: Any, operations: list[Object]) -> Any:
    """A JSON patch (RFC 6902): add, replace, remove and test."""
    result = copy.deepcopy(target)
    for operation in operations:
        *path, last = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
        at = result
        for step in path:
            at = at[int(step)] if isinstance(at, list) else at[step]
        key: Any = last if isinstance(at, dict) else len(at) if last == "-" else int(last)
        if operation["op"] == "remove":
            del at[key]
        elif operation["op"] == "test":
            if at[key] != operation["value"]:
                raise Refused(422, "Invalid", "the server rejected our request due to an error in our request")
        elif isinstance(at, list) and operation["op"] == "add":
            at.insert(key, operation["value"])
        else:
            at[key] = operation["value"]
    return result
