"""What the fake's API server checks before it stores an object: schema, Pod Security, quotas; and some defaults."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from .quantity import amount, pod_requests, shown
from .store import Object, Refused, Store

VERSION = "v1.36.0"
_FOLDER = f"kubernetes-json-schema/{VERSION}-local-strict"


@functools.cache
def _definitions() -> Any:
    from referencing import Registry, Resource

    text = (resources.files("kubernetes_validate") / _FOLDER / "_definitions.json").read_text()
    registry: Any = Registry()
    return Resource.from_contents(json.loads(text)) @ registry


@functools.cache
def _validator(api_version: str, kind: str) -> Any:
    """The validator of a kind, or None where there is no schema for it."""
    import jsonschema
    from referencing import Resource

    group, _, version = api_version.rpartition("/")
    suffix = f"{group.split('.')[0]}-{version}" if group else version
    file = resources.files("kubernetes_validate") / _FOLDER / f"{kind.lower()}-{suffix}.json"
    if not file.is_file():
        return None
    schema = json.loads(file.read_text())
    return jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions())


def validate(item: Object) -> None:
    """Against the published schema of Kubernetes 1.36 (unknown fields are errors); Refused with 422."""
    validator = _validator(item.get("apiVersion", ""), item.get("kind", ""))
    if validator is None:
        return
    error = next(iter(validator.iter_errors(item)), None)
    if error is not None:
        path = ".".join(str(step) for step in error.path)
        name = item.get("metadata", {}).get("name", "")
        raise Refused(422, "Invalid", f'{item["kind"]} "{name}" is invalid: {path}: {error.message[:300]}')


def check_name(item: Object) -> None:
    """Names, and the label values whose length is often forgotten."""
    import re

    metadata = item.get("metadata") or {}
    name = metadata.get("name") or metadata.get("generateName") or ""
    short = dict.fromkeys(("Service", "Job", "Namespace", "Deployment"), 63) | {"CronJob": 52}
    most = short.get(str(item.get("kind")), 253)
    if len(name) > most or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9.-])?", name):
        raise Refused(422, "Invalid", f'{item.get("kind")} "{name}" is invalid: metadata.name: Invalid value: "{name}"')
    templates = [metadata, ((item.get("spec") or {}).get("template") or {}).get("metadata") or {}]
    for labels in (template.get("labels") or {} for template in templates):
        for key, value in labels.items():
            if not re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?", str(value)):
                message = f'{item["kind"]} "{name}" is invalid: metadata.labels: Invalid value: "{value}" ({key})'
                raise Refused(422, "Invalid", message)


def pod_security(store: Store, namespace: str, pod: Object) -> None:
    """The levels baseline and restricted, as far as runs can hurt them; Refused with 403."""
    labels = ((store.find("namespaces", "", namespace) or {}).get("metadata") or {}).get("labels") or {}
    level = labels.get("pod-security.kubernetes.io/enforce", "privileged")
    if level == "privileged":
        return
    spec, found = pod["spec"], []
    for container in spec.get("containers") or []:
        context = container.get("securityContext") or {}
        name = container["name"]
        if context.get("privileged"):
            found.append(f'privileged (container "{name}" must not set securityContext.privileged=true)')
        added = [c for c in (context.get("capabilities") or {}).get("add") or [] if c not in _BASELINE]
        if added:
            found.append(f'non-default capabilities (container "{name}" must not include {added} in capabilities.add)')
        if level == "restricted" and context.get("allowPrivilegeEscalation") is not False:
            found.append(f'allowPrivilegeEscalation != false (container "{name}")')
    if any("hostPath" in volume for volume in spec.get("volumes") or []):
        found.append("hostPath volumes (volumes must not use hostPath)")
    if spec.get("hostNetwork"):
        found.append("host namespaces (hostNetwork=true)")
    if found:
        name = pod["metadata"].get("name", "")
        message = f'pods "{name}" is forbidden: violates PodSecurity "{level}:latest": {", ".join(found)}'
        raise Refused(403, "Forbidden", message)


_BASELINE = {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
             "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}  # fmt: skip


def quota(store: Store, plural: str, namespace: str, item: Object) -> None:
    """Every ResourceQuota of the namespace; Refused with 403."""
    for held in store.all("resourcequotas", namespace):
        limits = {name: amount(value) for name, value in (held.get("spec", {}).get("hard") or {}).items()}
        used = _used(store, namespace)
        wanted = _counted(plural, item)
        over = [name for name in limits if name in wanted and used.get(name, 0) + wanted[name] > limits[name]]
        if over:
            texts = [
                ",".join(f"{name}={shown(amounts.get(name, 0))}" for name in over) for amounts in (wanted, used, limits)
            ]
            raise Refused(
                403, "Forbidden",
                f'{plural} "{item["metadata"].get("name", "")}" is forbidden: '
                f"exceeded quota: {held['metadata']['name']}, "
                f"requested: {texts[0]}, used: {texts[1]}, limited: {texts[2]}",
            )  # fmt: skip


def _used(store: Store, namespace: str) -> dict[str, float]:
    total: dict[str, float] = {}
    for (plural, where, _), item in store.objects.items():
        finished = plural == "pods" and (item.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if where == namespace and not finished:
            for name, value in _counted(plural, item).items():
                total[name] = total.get(name, 0) + value
    return total


def _counted(plural: str, item: Object) -> dict[str, float]:
    group = {"jobs": "jobs.batch", "deployments": "deployments.apps"}.get(plural, plural)
    result = {plural: 1.0, f"count/{group}": 1.0}
    if plural == "pods":
        for name, value in pod_requests(item["spec"]).items():
            result[f"requests.{name}"] = result[name] = value
    if plural == "services" and item.get("spec", {}).get("type") == "NodePort":
        result["services.nodeports"] = 1.0
    return result


def default(plural: str, item: Object) -> None:
    """The defaults that a reader of objects meets."""
    spec = item.get("spec")
    if plural == "pods" and isinstance(spec, dict):
        spec.setdefault("restartPolicy", "Always")
        spec.setdefault("schedulerName", "default-scheduler")
        spec.setdefault("terminationGracePeriodSeconds", 30)
        spec.setdefault("enableServiceLinks", True)
        item.setdefault("status", {"phase": "Pending", "qosClass": "Burstable"})
    if plural == "jobs" and isinstance(spec, dict):
        item.setdefault("status", {})
        spec.setdefault("suspend", False)
        spec.setdefault("parallelism", 1)
        spec.setdefault("completionMode", "NonIndexed")
    if plural == "cronjobs" and isinstance(spec, dict):
        item.setdefault("status", {})
        spec.setdefault("suspend", False)
        spec.setdefault("concurrencyPolicy", "Allow")
    if plural == "namespaces":
        item.setdefault("status", {"phase": "Active"})
    if plural == "secrets" and "stringData" in item:
        import base64

        data = item.setdefault("data", {})
        for name, text in item.pop("stringData").items():
            data[name] = base64.b64encode(text.encode()).decode()
