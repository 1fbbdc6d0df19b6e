"""A Kubernetes fleet as plain data for an Ansible inventory: its nodes with their facts, and running ranks by run.

Imported by the inventory plugin when it meets such a fleet; needs the package ``kubernetes`` besides the standard
library and PyYAML, and nothing else of the command line.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from typing import Any

from .client import Client, open_client
from .config import Target
from .fleet import FleetView, KubeFleet, judge, limited
from .labels import MANAGED, RANK, RUN, RUN_ID, rank_of
from .nodes import look
from .reach import STRICT, existing_jump, run_keys, write_files
from .resources import JOBS, PODS

Hosts = dict[str, dict[str, Any]]


def inventory(path: str) -> dict[str, Any]:
    """``{"group", "hosts": {name: variables}, "groups": {run's group: {name: variables}}}`` of a fleet file.

    Raises:
        LambdactlError: the file, the configuration or the cluster is not as it should be.
    """
    return asyncio.run(_inventory(KubeFleet.load(path)))


async def _inventory(fleet: KubeFleet) -> dict[str, Any]:
    members, groups = [], {}
    for target in fleet.targets:
        async with open_client(target) as client:
            members += judge(fleet, target, await look(client))
            pods = await client.list(PODS, labels=f"{MANAGED},{RANK}", fields="status.phase=Running")
            groups.update(_runs(fleet, target, pods.items))
            await _add_ssh(client, groups)
    view = FleetView(fleet, limited(fleet, members), ())
    return {"group": fleet.name.replace("-", "_"), "hosts": _nodes(view), "groups": groups}


async def _add_ssh(client: Client, groups: dict[str, Hosts]) -> None:
    """Where a jump pod lets this user in: how OpenSSH reaches the ranks, in the place of the API."""
    if client.target.proxy_jump is None or not groups:
        return
    from lambdactl.state import state_dir

    folder = state_dir() / "kubernetes"
    proxy = await existing_jump(client, folder)
    if proxy is None:
        return
    for job in (await client.list(JOBS, labels=MANAGED)).items:
        marks = job["metadata"]["labels"]
        hosts = [v for group in groups.values() for v in group.values() if v["lambdactl_run_id"] == marks.get(RUN_ID)]
        keys = await run_keys(client, job) if hosts else None
        if keys is None:
            continue
        port, private_key, host_key = keys
        files = write_files(folder / marks[RUN_ID], private_key, f"{marks[RUN_ID]} {host_key}\n")
        options = [*STRICT, "-o", f"HostKeyAlias={marks[RUN_ID]}", "-o", f"UserKnownHostsFile={files.known_hosts}"]
        words = ["-F", "none", *options, "-o", f"ProxyCommand={proxy}"]
        for variables in hosts:
            variables |= {
                "ansible_connection": "ssh",
                "ansible_host": variables["lambdactl_internal_ip"],
                "ansible_port": port,
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(files.identity),
                "ansible_ssh_common_args": " ".join(shlex.quote(word) for word in words),
            }


def _nodes(view: FleetView) -> Hosts:
    fleet = view.fleet
    return {
        member.node.name: {
            **_common(fleet, member.target),
            "lambdactl_rank_order": order,
            "lambdactl_internal_ip": member.node.internal_ip,
            "lambdactl_state": member.state,
            "lambdactl_facts": member.node.as_json(),
        }
        for order, member in enumerate(view.members)
    }


def _common(fleet: KubeFleet, target: Target) -> dict[str, Any]:
    return {
        "lambdactl_backend": "kubernetes",
        "lambdactl_fleet": fleet.name,
        "lambdactl_fleet_id": fleet.id,
        "lambdactl_cluster": target.name,
        "lambdactl_namespace": target.namespace,
    }


def _runs(fleet: KubeFleet, target: Target, pods: list[dict[str, Any]]) -> dict[str, Hosts]:
    """A group a run, a host a rank, in the order of ranks."""
    found: dict[str, dict[int, tuple[str, dict[str, Any]]]] = {}
    for pod in pods:
        marks = pod["metadata"].get("labels") or {}
        run, rank = marks.get(RUN), rank_of(pod)
        if run and rank is not None and "deletionTimestamp" not in pod["metadata"]:
            variables = _rank(fleet, target, pod, run, rank, marks.get(RUN_ID, ""))
            found.setdefault(run, {})[rank] = (f"{run}-{rank}", variables)
    return {
        f"run_{re.sub('[^a-zA-Z0-9_]', '_', run)}": dict(ranks[rank] for rank in sorted(ranks))
        for run, ranks in sorted(found.items())
    }


def _rank(fleet: KubeFleet, target: Target, pod: dict[str, Any], run: str, rank: int, run_id: str) -> dict[str, Any]:
    """A rank's variables; ``kubernetes.core.kubectl`` (a collection) reaches it through the API."""
    metadata, spec = pod["metadata"], pod["spec"]
    return {
        **_common(fleet, target),
        "lambdactl_run": run,
        "lambdactl_run_id": run_id,
        "lambdactl_rank": rank,
        "lambdactl_node": spec.get("nodeName"),
        "lambdactl_internal_ip": (pod.get("status") or {}).get("podIP"),
        "ansible_connection": "kubernetes.core.kubectl",
        "ansible_kubectl_context": target.context,
        "ansible_kubectl_namespace": metadata.get("namespace"),
        "ansible_kubectl_pod": metadata["name"],
        "ansible_kubectl_container": spec["containers"][0]["name"],
    }
