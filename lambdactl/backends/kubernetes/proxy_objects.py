"""The proxy's objects: a Deployment, which owns the Service and the Secret with the configuration. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .labels import COMPONENT, HOSTNAME, MANAGED_BY, MANAGER
from .payload import container_file
from .podspec import CONTAINER
from .proxy_config import PORT, RUN, STATUS_PORT
from .resources import DEPLOYMENTS, SECRETS, SERVICES, Resource

NAME = "lambdactl-proxy"
IMAGE = "haproxy:3.2-alpine"
"""The public image of HAProxy's long-term branch; `proxy_image` of the configuration names another one."""
LABELS = {MANAGED_BY: MANAGER, COMPONENT: "proxy"}
SELECTOR = ",".join(f"{key}={value}" for key, value in LABELS.items())
TEMPLATE = "lambdactl.dev/proxy-template"
"""An annotation of the Deployment: what its template is made from, to see whether it is another one now."""
VERSION = "lambdactl.dev/proxy-version"
"""An annotation of the pods: a kubelet renews a pod's volumes at once when the pod itself changes."""
USER = 65532
DRAIN = 5
"""Seconds between a proxy's leaving the Service and its end: every node has heard of it by then."""
LAST_REQUESTS = 60
"""Seconds that requests under way may take when a proxy pod ends."""
Object = dict[str, Any]


def deployment(image: str) -> Object:
    """The Deployment, paused until what its pods mount is there."""
    template = _template(image)
    spec: Object = {
        "paused": True,
        "replicas": 1,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": LABELS},
        "template": template,
    }
    metadata = {"name": NAME, "labels": LABELS, "annotations": {TEMPLATE: made_from(image)}}
    return _whole(DEPLOYMENTS, metadata, {"spec": spec})


def made_from(image: str) -> str:
    """The same for templates that are alike."""
    return hashlib.sha256(json.dumps(_template(image), sort_keys=True).encode()).hexdigest()[:16]


def service(owner: Mapping[str, Any]) -> Object:
    """The address of the proxy in the cluster."""
    port = {"name": "http", "port": PORT, "targetPort": PORT, "protocol": "TCP"}
    return _whole(SERVICES, _owned(owner), {"spec": {"type": "ClusterIP", "selector": LABELS, "ports": [port]}})


def secret(owner: Mapping[str, Any], data: Mapping[str, str]) -> Object:
    """The configuration; `data` is base64 already."""
    return _whole(SECRETS, _owned(owner), {"type": "Opaque", "data": dict(data)})


def _whole(resource: Resource, metadata: Mapping[str, Any], rest: Mapping[str, Any]) -> Object:
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": dict(metadata), **rest}


def _owned(owner: Mapping[str, Any]) -> Object:
    """Metadata of what goes when the Deployment goes."""
    reference = {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind}
    return {
        "name": NAME,
        "labels": LABELS,
        "ownerReferences": [reference | {"name": NAME, "uid": owner["metadata"]["uid"]}],
    }


def _template(image: str) -> Object:
    away = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": DRAIN + LAST_REQUESTS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(image)],
        "volumes": [
            {"name": "config", "secret": {"secretName": NAME, "defaultMode": 0o444}},
            {"name": "run", "emptyDir": {}},
        ],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_rather_without_gpus()]}},
        "tolerations": [
            *({"key": key, "operator": "Exists"} for key in ("nvidia.com/gpu", "amd.com/gpu")),
            *({"key": f"node.kubernetes.io/{kind}", **away} for kind in ("not-ready", "unreachable")),
        ],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": HOSTNAME,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": LABELS},
            }
        ],
    }
    return {"metadata": {"labels": LABELS}, "spec": pod}


def _rather_without_gpus() -> Object:
    nodes = {"matchExpressions": [{"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}]}
    return {"weight": 100, "preference": nodes}


def _container(image: str) -> Object:
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", container_file("proxy.sh")],
        "terminationMessagePath": "/lambdactl/message",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "ports": [
            {"name": "http", "containerPort": PORT, "protocol": "TCP"},
            {"name": "status", "containerPort": STATUS_PORT, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/", "port": STATUS_PORT}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN}}},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": "/lambdactl/proxy/config", "readOnly": True},
            {"name": "run", "mountPath": RUN},
        ],
    }
