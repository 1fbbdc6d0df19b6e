"""The fake's scheduler: the first node that fits, or the scheduler's usual message about all of them."""

from __future__ import annotations

import copy
from collections import Counter

from .events import Events
from .quantity import amount, pod_requests
from .store import Object, Store, expression, matches_selector, now


class Scheduler:
    """Places pods that have no node."""

    def __init__(self, store: Store, events: Events) -> None:
        self.store, self.events = store, events

    def step(self) -> bool:
        """Place what can be placed; whether anything has changed."""
        changed = False
        for pod in self.store.all("pods"):
            spec, phase = pod["spec"], pod["status"].get("phase")
            if spec.get("nodeName") or phase != "Pending" or spec.get("schedulingGates"):
                continue
            if "deletionTimestamp" not in pod["metadata"]:
                changed |= self._place(copy.deepcopy(pod))
        return changed

    def _place(self, pod: Object) -> bool:
        nodes = self.store.all("nodes")
        claim = self._claim(pod)
        reasons = {node["metadata"]["name"]: [claim] if claim else self._reasons(pod, node) for node in nodes}
        fitting = [name for name, why in reasons.items() if not why]
        if fitting:
            load = Counter(p["spec"].get("nodeName") for p in self.store.all("pods"))
            pod["spec"]["nodeName"] = min(fitting, key=lambda name: load[name])
            _condition(pod, "True", "", "")
            self.store.update("pods", pod)
            message = f"Successfully assigned {pod['metadata']['namespace']}/{pod['metadata']['name']}"
            self.events.tell(pod, "Scheduled", f"{message} to {pod['spec']['nodeName']}", "default-scheduler")
            return True
        counted = Counter(why for list_ in reasons.values() for why in list_)
        text = ", ".join(f"{number} {why}" for why, number in sorted(counted.items()))
        message = f"0/{len(nodes)} nodes are available: {text}. " if nodes else "no nodes available to schedule pods. "
        none = f"{len(nodes)} No preemption victims found for incoming pod."
        message += f"preemption: 0/{len(nodes)} nodes are available: {none}"
        if claim and nodes:
            message = f"0/{len(nodes)} nodes are available: {claim}. not found"
        before = next((c for c in pod["status"].get("conditions") or [] if c["type"] == "PodScheduled"), None)
        if before is not None and before.get("message") == message:
            return False
        _condition(pod, "False", "Unschedulable", message)
        self.store.update("pods", pod)
        self.events.tell(pod, "FailedScheduling", message, "default-scheduler", warning=True)
        return True

    def _claim(self, pod: Object) -> str | None:
        """What keeps a volume of the pod from being had, in the words of Kubernetes 1.36."""
        for volume in pod["spec"].get("volumes") or []:
            if "persistentVolumeClaim" in volume:
                name = volume["persistentVolumeClaim"]["claimName"]
                claim = self.store.find("persistentvolumeclaims", pod["metadata"]["namespace"], name)
                if claim is None:
                    return f'persistentvolumeclaim "{name}" not found'
                if (claim.get("status") or {}).get("phase") != "Bound":
                    return "pod has unbound immediate PersistentVolumeClaims"
        return None

    def _reasons(self, pod: Object, node: Object) -> list[str]:
        spec = pod["spec"]
        if node["spec"].get("unschedulable"):
            return ["node(s) were unschedulable"]
        for taint in node["spec"].get("taints") or []:
            if taint["effect"] != "PreferNoSchedule" and not tolerated(spec.get("tolerations") or [], taint):
                return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
        if not selects_node(spec, node):
            return ["node(s) didn't match Pod's node affinity/selector"]
        short = self._short(spec, node)
        if short:
            return short
        for terms, wanted, words in (
            ("podAntiAffinity", False, "pod anti-affinity rules"),
            ("podAffinity", True, "pod affinity rules"),
        ):
            rules = (spec.get("affinity") or {}).get(terms) or {}
            for rule in rules.get("requiredDuringSchedulingIgnoredDuringExecution") or []:
                if self._meets(rule, pod, node) is not wanted:
                    return [f"node(s) didn't match {words}"]
        return []

    def _short(self, spec: Object, node: Object) -> list[str]:
        name = node["metadata"]["name"]
        free = {key: amount(value) for key, value in node["status"]["allocatable"].items()}
        for other in self.store.all("pods"):
            if other["spec"].get("nodeName") == name and other["status"].get("phase") not in ("Succeeded", "Failed"):
                free["pods"] = free.get("pods", 0) - 1
                for key, value in pod_requests(other["spec"]).items():
                    free[key] = free.get(key, 0) - value
        if free.get("pods", 0) < 1:
            return ["Too many pods"]
        return [f"Insufficient {k}" for k, v in pod_requests(spec).items() if v > 0 and v > free.get(k, 0)]

    def _meets(self, rule: Object, pod: Object, node: Object) -> bool:
        """Whether a pod that the rule selects runs in the node's topology."""
        key = rule["topologyKey"]
        here = (node["metadata"].get("labels") or {}).get(key)
        for other in self.store.all("pods", pod["metadata"]["namespace"]):
            place = self.store.find("nodes", "", other["spec"].get("nodeName") or "")
            running = other["status"].get("phase") not in ("Succeeded", "Failed")
            labels = other["metadata"].get("labels") or {}
            chosen = place and running and matches_selector(rule.get("labelSelector"), labels)
            if chosen and ((place or {})["metadata"].get("labels") or {}).get(key) == here:
                return True
        return False


def tolerated(tolerations: list[Object], taint: Object) -> bool:
    for t in tolerations:
        meant = t.get("effect") in (None, "", taint["effect"]) and t.get("key") in (None, "", taint["key"])
        if meant and (t.get("operator", "Equal") == "Exists" or t.get("value", "") == taint.get("value", "")):
            return True
    return False


def selects_node(spec: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms")
    names = {"metadata.name": node["metadata"]["name"]}
    return terms is None or any(
        all(expression(e, labels) for e in term.get("matchExpressions") or [])
        and all(expression(e, names) for e in term.get("matchFields") or [])
        for term in terms
    )


def _condition(pod: Object, status: str, reason: str, message: str) -> None:
    conditions = [c for c in pod["status"].get("conditions") or [] if c["type"] != "PodScheduled"]
    new = {"type": "PodScheduled", "status": status, "lastTransitionTime": now()}
    pod["status"]["conditions"] = [*conditions, new | ({"reason": reason, "message": message} if reason else {})]
