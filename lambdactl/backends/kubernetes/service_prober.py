"""The container beside a replica that asks the probes which a kubelet cannot ask. Pure.

It executes the same code as an SSH fleet's supervisor (lambdactl/node/service_pod.py). A native sidecar, so it is there
before the replica and goes after it. The replica's own start-up and liveness probes ask it by HTTP, which needs no
shell in the replica's image; its readiness is part of the pod's, and says in the event what was wrong.
Source: https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/ (probes of sidecars, pod readiness).
"""

from __future__ import annotations

import ast
import base64
import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from lambdactl.run.service_file import probes
from lambdactl.spec import ServiceSpec

from .payload import BASE, files_name, prober_name
from .service_model import PROBER

PORT = 18779
REQUESTS = {"cpu": "100m", "memory": "64Mi"}
"""Of the container, so that a busy node does not make it late; its limits, too, because a pod whose containers all have
what they ask for keeps its CPUs (QoS class Guaranteed)."""
_MAIN = "from node.service_pod import main\n\nmain()\n"
_FAILURES_TO_RESTART = 3
"""Three in a row have been counted when the answer is bad; this is patience with the one that counts."""
_MESSAGE = f"{BASE}/message"
_START = f'command -v python3 >/dev/null || {{ printf "%s" "$0" >{_MESSAGE}; exit 125; }}; exec python3 "$@"'
_READY = "test -e {0}/ready || {{ cat {0}/why 2>/dev/null || echo not asked yet; exit 1; }}"
Object = dict[str, Any]


def port(service: ServiceSpec) -> int:
    """Where the container listens; another port than the replica's."""
    return PORT if service.port != PORT else PORT + 1


def program() -> dict[str, str]:
    """Its files by the keys of a ConfigMap."""
    return {"prober": _MAIN, **{f"prober.{name}": text for name, text in _modules().items()}}


@functools.cache
def _modules() -> dict[str, str]:
    """The runner's modules that it needs, with their text: service_pod, and what is imported from there."""
    sources = files("lambdactl.node")
    found: dict[str, str] = {}
    wanted = ["__init__", "service_pod"]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = sources.joinpath(f"{name}.py").read_text(encoding="utf-8")
            wanted += _imported(ast.parse(found[name]))
    return dict(sorted(found.items()))


def _imported(tree: ast.AST) -> list[str]:
    """The modules beside it that a module imports when it runs."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found += [node.module] if node.module else [alias.name for alias in node.names]
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            found += _imported(node)
    return found


def secret_data(service: ServiceSpec) -> dict[str, str]:
    """What to ask: in a Secret, because headers and bodies may carry a login."""
    asked = {"port": service.port, "listen": port(service), "probes": probes(service)}
    return {"probes.json": base64.b64encode(json.dumps(asked, sort_keys=True).encode()).decode()}


def volumes(run_name: str) -> list[Object]:
    """What its container mounts, and nothing else does."""
    items = [{"key": "prober", "path": "__main__.py"}]
    items += [{"key": f"prober.{name}", "path": f"node/{name}.py"} for name in _modules()]
    return [
        {"name": "lambdactl-prober", "configMap": {"name": files_name(run_name), "items": items, "defaultMode": 0o444}},
        {"name": "lambdactl-probes", "secret": {"secretName": prober_name(run_name), "defaultMode": 0o444}},
        {"name": "lambdactl-said", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]


def container(image: str) -> Object:
    """The container, for the pod's initContainers."""
    lacks = (
        f"start-failed: the image {image}, in which the probes are asked, has no python3; name one that has it with "
        "`probe_image` in the backend's configuration"
    )
    words = [f"{BASE}/prober", f"{BASE}/probes/probes.json", f"{BASE}/said"]
    return {
        "name": PROBER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "command": ["/bin/sh", "-c", _START, lacks, "-I", "-S", "-B", *words],
        "terminationMessagePath": _MESSAGE,
        "env": [
            {"name": "LAMBDACTL_NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
        ],
        "resources": {"requests": dict(REQUESTS), "limits": dict(REQUESTS)},
        "readinessProbe": {
            "exec": {"command": ["/bin/sh", "-c", _READY.format(f"{BASE}/said")]},
            "periodSeconds": 1,
            "timeoutSeconds": 10,
            "failureThreshold": 1,
        },
        "securityContext": {
            "runAsUser": 65534,
            "runAsGroup": 65534,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "lambdactl-prober", "mountPath": f"{BASE}/prober", "readOnly": True},
            {"name": "lambdactl-probes", "mountPath": f"{BASE}/probes", "readOnly": True},
            {"name": "lambdactl-said", "mountPath": f"{BASE}/said"},
        ],
    }


def replica_probes(service: ServiceSpec, *, ready_timeout: float) -> Mapping[str, Any]:
    """The replica's own probes: they ask the container beside it."""

    def ask(path: str) -> Object:
        get = {"path": path, "port": port(service)}
        return {"httpGet": get, "periodSeconds": 1, "timeoutSeconds": 5}

    return {
        "startupProbe": {**ask("/startup"), "failureThreshold": max(1, int(ready_timeout))},
        "livenessProbe": {**ask("/live"), "failureThreshold": _FAILURES_TO_RESTART},
    }
