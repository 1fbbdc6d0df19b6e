"""JobSpec keys of a task's smaller fields: mounts of node paths, tags, ports."""

from __future__ import annotations

from typing import Any

from lambdactl.errors import SpecError
from lambdactl.run import groups
from lambdactl.spec import TaskSpec, line_in


def volumes(task: TaskSpec) -> list[dict[str, Any]]:
    """`volumes` as the nodes take them: mounts of their own paths.

    Raises:
        SpecError: a network volume, which needs a cloud.
    """
    found = []
    for mount in task.volumes:
        if mount.instance_path is None:
            name = " or ".join(mount.name or ())
            raise SpecError(
                f"'volumes' names the network volume {name}, which hosts behind SSH do not have; mount a path of the "
                f"node instead, such as /mnt/{(mount.name or ('data',))[0]}:{mount.path}.",
                filename=task.source.filename,
                line=line_in(task, "volumes"),
            )
        found.append({"source": mount.instance_path, "target": mount.path, "optional": mount.optional})
    return found


def job_keys(task: TaskSpec) -> dict[str, Any]:
    """The keys, for every rank alike."""
    policy = task.utilization_policy
    return {
        "volumes": volumes(task),
        "tags": dict(task.tags or {}),
        "utilization": policy and {"min": policy.min_gpu_utilization, "window": policy.time_window},
        "stop_grace": task.stop_grace if task.stop_duration is None else min(task.stop_grace, task.stop_duration),
    }


def ports(task: TaskSpec, rank: int) -> list[list[int | None]]:
    """[local or None, port] of a rank: a task's belong to rank 0, a group's to its first node."""
    group, number = groups.of_rank(task, rank) or (None, rank)
    mappings = task.ports if group is None else group.ports
    return [[port.local_port, port.container_port] for port in mappings] if number == 0 else []
