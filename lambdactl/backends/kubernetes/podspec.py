"""The pod template of a run: one container a rank, and where it may run.

What dstack does here and this does not (its issues say why): a request of 100 GiB of disk from a default, sshd and curl
installed at every start, restarts of a rank that has ended, two ranks of a run on one node.
"""

from __future__ import annotations

from typing import Any

from lambdactl.spec import Range

from . import filesvolume, labels
from .model import GO, INACTIVITY, PEERS, PRESENT, KubeRun
from .payload import BASE, env_name, files_name, keys_name, numbered_user, registry_name

CONTAINER = "main"
GRACE_MARGIN = 15
"""Seconds beyond the run's own grace time before the kubelet kills: signalling, and the last words of the log."""
GPU_TAINTS = ("nvidia.com/gpu", "amd.com/gpu")


def pod_template(run: KubeRun) -> dict[str, Any]:
    """The Job's template."""
    metadata: dict[str, Any] = {"labels": run.labels}
    if run.parts:
        metadata["annotations"] = {labels.FIRST_RANK: str(run.parts[run.part].first)}
    if run.dev is not None and run.dev.get("inactivity") is not None:
        metadata["annotations"] = {INACTIVITY: str(run.dev["inactivity"])}
    return {"metadata": metadata, "spec": _pod(run)}


def _pod(run: KubeRun) -> dict[str, Any]:
    task = run.task
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": run.run_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": run.stop_grace + GRACE_MARGIN,
        "containers": [_container(run)],
        "volumes": _volumes(run),
    }
    if run.priority_class is not None:
        spec["priorityClassName"] = run.priority_class
    if affinity := _affinity(run):
        spec["affinity"] = affinity
    spec["tolerations"] = _tolerations(run)
    if task.registry_auth is not None:
        spec["imagePullSecrets"] = [{"name": registry_name(run.run_name)}]
    return spec


def _tolerations(run: KubeRun) -> list[dict[str, Any]]:
    """GPU nodes' own taints, and how long a node may be away (Kubernetes' default is 5 minutes)."""
    gpus: list[dict[str, Any]] = [{"key": key, "operator": "Exists"} for key in GPU_TAINTS if key == run.gpu_resource]
    away = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": run.node_timeout}
    return gpus + [{"key": f"node.kubernetes.io/{kind}", **away} for kind in ("not-ready", "unreachable")]


def _container(run: KubeRun) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": run.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", f"{BASE}/bin/entrypoint"],
        # A terminal: programs then write line by line, and the entrypoint's shell has job control.
        "tty": True,
        "terminationMessagePath": f"{BASE}/message",
        "env": _env(run),
        "resources": resources(run),
        "volumeMounts": _mounts(run),
    }
    if run.env:
        # Not as values: Kubernetes would expand $(NAME) in them.
        container["envFrom"] = [{"secretRef": {"name": env_name(run.run_name)}}]
    if security := _security(run):
        container["securityContext"] = security
    if run.dev is not None:
        # Ready is what a dev environment is when `init` has ended.
        container["readinessProbe"] = {
            "exec": {"command": ["/bin/sh", "-c", f"test -e {BASE}/run/up"]},
            "periodSeconds": 1,
            "timeoutSeconds": 10,
        }
    if run.gated:
        container["startupProbe"] = {
            "exec": {"command": ["/bin/sh", "-c", f"test -e {BASE}/run/started"]},
            "periodSeconds": 1,
            "timeoutSeconds": 10,
            "failureThreshold": 1 << 30,
        }
    return container


def _env(run: KubeRun) -> list[dict[str, Any]]:
    rank = f"metadata.annotations['{labels.RANK}']"
    env: list[dict[str, Any]] = [
        {"name": "LAMBDACTL_RANK", "valueFrom": {"fieldRef": {"fieldPath": rank}}},
        {"name": "LAMBDACTL_NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    if run.parts:
        env.append({"name": "LAMBDACTL_FIRST_RANK", "value": str(run.parts[run.part].first)})
    if not run.gpus and "NVIDIA_VISIBLE_DEVICES" not in run.env:
        # Images that ask for all GPUs would see them without having any.
        env.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    return env


def _security(run: KubeRun) -> dict[str, Any]:
    context: dict[str, Any] = dict(numbered_user(run))
    if run.task.privileged:
        context["privileged"] = True
    elif run.rdma is not None:
        context["capabilities"] = {"add": ["IPC_LOCK"]}  # RDMA pins memory
    return context


def resources(run: KubeRun) -> dict[str, Any]:
    """Requests and limits: only what the file asks for; dstack's defaults (100 GB of disk) would shut nodes out."""
    wanted = run.task.resources
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}

    def bound(name: str, value: Range[Any], unit: str) -> None:
        if value.min:
            requests[name] = _quantity(value.min, unit)
        if value.max is not None:
            limits[name] = _quantity(value.max, unit)

    if "cpu" in wanted.explicit:
        bound("cpu", wanted.cpu.count, "")
    if "memory" in wanted.explicit:
        bound("memory", wanted.memory, "GB")
    if "disk" in wanted.explicit and wanted.disk is not None:
        bound("ephemeral-storage", wanted.disk, "GB")
    if run.gpus and run.gpu_resource is not None:
        limits[run.gpu_resource] = str(run.gpus)
    if run.rdma is not None:
        limits[run.rdma] = "1"
    return {name: values for name, values in (("requests", requests), ("limits", limits)) if values}


def _quantity(value: float, unit: str) -> str:
    """GB of the file are powers of 1024, as everywhere in it."""
    if not unit:
        return f"{value:g}"
    size = value * 1024
    return f"{int(value)}Gi" if value == int(value) else f"{int(size)}Mi"


def _volumes(run: KubeRun) -> list[dict[str, Any]]:
    told = [("peers", PEERS), ("go", GO)]
    if run.dev is not None:
        told += [("present", PRESENT), ("inactivity", INACTIVITY)]
    go = [
        {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}} for path, annotation in told
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "lambdactl-bin", "configMap": {"name": files_name(run.run_name), "defaultMode": 0o555}},
        {"name": "lambdactl-pod", "downwardAPI": {"items": go}},
        {"name": "lambdactl-run", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
    ]
    if run.login is not None:
        # Readable for any user of the container: the run is theirs, and the keys are of this run only.
        volumes.append(
            {"name": "lambdactl-keys", "secret": {"secretName": keys_name(run.run_name), "defaultMode": 0o444}}
        )
    if run.content.blobs:
        volumes.append({"name": "lambdactl-data", "emptyDir": {}})
        if run.files_volume is not None:
            volumes.append(filesvolume.volume(run.files_volume))
    if (shm := _shared_memory(run)) is not None:
        volumes.append({"name": "shm", "emptyDir": shm})
    for index, mount in enumerate(run.task.volumes):
        if mount.instance_path is not None:
            source: dict[str, Any] = {"hostPath": {"path": mount.instance_path, "type": "DirectoryOrCreate"}}
        else:
            source = {"persistentVolumeClaim": {"claimName": (mount.name or ("",))[0]}}
        volumes.append({"name": f"volume-{index}", **source})
    return volumes


def _shared_memory(run: KubeRun) -> dict[str, Any] | None:
    """Shared memory: as large as the file says; without a limit of its own for GPUs, for which 64 MiB is too little."""
    size = run.task.resources.shm_size
    if size is not None:
        return {"medium": "Memory", "sizeLimit": _quantity(size, "GB")}
    return {"medium": "Memory"} if run.gpus else None


def _mounts(run: KubeRun) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "lambdactl-bin", "mountPath": f"{BASE}/bin", "readOnly": True},
        {"name": "lambdactl-pod", "mountPath": f"{BASE}/pod", "readOnly": True},
        {"name": "lambdactl-run", "mountPath": f"{BASE}/run"},
    ]
    if run.login is not None:
        mounts.append({"name": "lambdactl-keys", "mountPath": f"{BASE}/keys", "readOnly": True})
    if run.content.blobs:
        mounts.append({"name": "lambdactl-data", "mountPath": f"{BASE}/data"})
        if run.files_volume is not None:
            mounts.append(filesvolume.mount())
    if _shared_memory(run) is not None:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - the place that programs look for it
    mounts += [{"name": f"volume-{index}", "mountPath": mount.path} for index, mount in enumerate(run.task.volumes)]
    return mounts


def _affinity(run: KubeRun) -> dict[str, Any]:
    affinity: dict[str, Any] = {}
    wanted = ((labels.GPU_PRODUCT, run.gpu_products), (labels.HOSTNAME, run.hostnames))
    if needed := [{"key": key, "operator": "In", "values": list(values)} for key, values in wanted if values]:
        terms = [{"matchExpressions": needed}]
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    if run.parts:
        # Others than its own may be the only ones that another part fits on.
        own = {"key": labels.HOSTNAME, "operator": "In", "values": list(run.parts[run.part].places)}
        liked = [{"weight": 100, "preference": {"matchExpressions": [own]}}]
        affinity.setdefault("nodeAffinity", {})["preferredDuringSchedulingIgnoredDuringExecution"] = liked
    if run.nodes > 1:
        ranks = {"matchLabels": {labels.RUN_ID: run.run_id}}
        apart = {"labelSelector": ranks, "topologyKey": labels.HOSTNAME}
        affinity["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}
    return affinity
