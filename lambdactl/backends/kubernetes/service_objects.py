"""A service's objects: a Deployment, which owns a Service and, for each revision, a ConfigMap and Secrets. Pure.

What a revision's pods mount is named after it, so that old and new replicas run side by side, and going back to the
old revision needs nothing but its template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import labels, service_contents, service_prober
from .labels import KUEUE_QUEUE
from .payload import config_map, prober_name, secrets
from .podspec import CONTAINER, pod_template
from .resources import DEPLOYMENTS
from .service_model import KubeService, digest
from .service_probes import container_probes

DRAIN = 5
"""Seconds between a replica's leaving the rotation and its stop signal: every node has heard of it by then."""
Object = dict[str, Any]
_NOBODY = {"name": "", "uid": ""}


def revision(service: KubeService) -> str:
    """What the replicas are made from: the template, and what it mounts."""
    brought = [service.contents.identity] if service.contents is not None else []
    return digest([_template(service, ""), [item.get("data") for item in _mounted(service)], *brought])


def deployment(service: KubeService, made_from: str) -> Object:
    """The Deployment, paused until what its pods mount is there."""
    # Kueue admits its pods one by one. An update leaves the label: Kueue does not let go of what it has admitted.
    queue = {} if service.run.queue is None else {KUEUE_QUEUE: service.run.queue}
    return {
        "apiVersion": DEPLOYMENTS.api_version,
        "kind": DEPLOYMENTS.kind,
        "metadata": {
            "name": service.name,
            "labels": service.labels | queue,
            "annotations": {labels.SERVICE_FACTS: service.facts(made_from)},
        },
        "spec": {
            "paused": True,
            "selector": {"matchLabels": service.selector},
            "revisionHistoryLimit": 2,
            **changing(service, made_from),
        },
    }


def changing(service: KubeService, made_from: str) -> Object:
    """The part of the Deployment's spec that an update changes."""
    room = {"maxUnavailable": 0, "maxSurge": 1} if service.surge else {"maxUnavailable": 1, "maxSurge": 0}
    return {
        "replicas": service.replicas,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": room},
        "progressDeadlineSeconds": max(1, int(service.ready_timeout)),
        "template": _template(service.of_revision(made_from), made_from),
    }


def owned(service: KubeService, made_from: str, owner: Mapping[str, Any]) -> list[Object]:
    """What a revision's pods mount."""
    named = service.of_revision(made_from)
    return [
        item | {"metadata": metadata(service, item["metadata"]["name"], owner, {labels.REVISION: made_from})}
        for item in [*_mounted(named), *_contents(named)]
    ]


def front(service: KubeService, owner: Mapping[str, Any]) -> Object:
    """The Service: the address in the cluster, of those replicas that are ready."""
    port = {"name": "http", "port": service.spec.port, "targetPort": service.spec.port, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(service, service.name, owner),
        "spec": {"type": "ClusterIP", "selector": service.selector, "ports": [port]},
    }


def metadata(
    service: KubeService, name: str, owner: Mapping[str, Any], marks: Mapping[str, str] | None = None
) -> Object:
    """Metadata of an object that goes when the Deployment goes."""
    reference = {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind}
    reference |= {"name": owner["name"], "uid": owner["uid"]}
    return {"name": name, "labels": service.labels | dict(marks or {}), "ownerReferences": [reference]}


def _mounted(service: KubeService) -> list[Object]:
    run = service.run
    files = config_map(run, _NOBODY)
    if service.contents is not None:
        files["data"] |= service_contents.config_data(service.contents)
    if service.prober is None:
        return [files, *secrets(run, _NOBODY)]
    files["data"] |= service_prober.program()
    return [files, *secrets(run, _NOBODY), _secret(prober_name(run.run_name), service_prober.secret_data(service.spec))]


def _contents(service: KubeService) -> list[Object]:
    """Not by their data in the revision: compressors differ."""
    return [] if service.contents is None else service_contents.secrets(service.run.run_name, service.contents)


def _secret(name: str, data: Mapping[str, str]) -> Object:
    head = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    return {**head, "type": "Opaque", "immutable": True, "data": dict(data)}


def _template(service: KubeService, made_from: str) -> Object:
    """A rank's pod, made into a replica's: started again and again, probed, and without anybody to wait for."""
    spec = pod_template(service.run)["spec"]
    marks = (
        service.selector
        | {labels.REVISION: made_from}
        | {name: value for name, value in service.labels.items() if name not in service.selector}
    )
    del spec["subdomain"]
    spec["restartPolicy"] = "Always"
    spec["terminationGracePeriodSeconds"] += DRAIN
    spec["volumes"] = [volume for volume in spec["volumes"] if "downwardAPI" not in volume]
    if service.contents is not None:
        spec["volumes"] += service_contents.volumes(service.run.run_name, service.contents)
    if service.prober is not None:
        spec["initContainers"] = [service_prober.container(service.prober)]
    # Rather on different nodes; on one where there is no other.
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": labels.HOSTNAME,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": service.selector},
        }
    ]
    spec["containers"] = [_container(service, spec["containers"][0], {volume["name"] for volume in spec["volumes"]})]
    if service.prober is not None:
        spec["volumes"] += service_prober.volumes(service.run.run_name)
    return {"metadata": {"labels": marks}, "spec": spec}


def _container(service: KubeService, container: Object, volumes: set[str]) -> Object:
    port = service.spec.port
    container = container | {
        "name": CONTAINER,
        "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}],
        "env": [
            *(entry for entry in container["env"] if entry["name"] != "LAMBDACTL_RANK"),
            *([] if "DSTACK_RUN_NAME" in service.run.env else [{"name": "DSTACK_RUN_NAME", "value": service.name}]),
        ],
        "volumeMounts": [
            *(mount for mount in container["volumeMounts"] if mount["name"] in volumes),
            *(service_contents.mounts(service.contents) if service.contents is not None else []),
        ],
        # Kubernetes takes it out of the rotation and stops it at the same moment; requests come for a little longer.
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN}}},
    }
    made = container_probes if service.prober is None else service_prober.replica_probes
    container |= made(service.spec, ready_timeout=service.ready_timeout)
    if not service.spec.commands and not service.spec.entrypoint:
        del container["command"]  # the image's own
    return container
