"""What a node gives to a container: control group, GPUs, devices, limits, memory, files."""

from __future__ import annotations

import os
import re
import resource

from . import container_engine, container_ssh, env, gpus, paths
from .container import needed
from .container_argv import INLINE_SCRIPT, SCRIPT, Place
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .container_engine import Engine
    from .spec import Job

# RDMA, and GPUDirect's copies by the CPU (gdrcopy); given where the node has them.
DEVICES = ("/dev/infiniband", "/dev/gdrdrv")
UNIT = re.compile(r"^[^:]*:(?:name=systemd|):(/.*/lambdactl-[0-9a-f-]+\.service(?:/.*)?)$", re.MULTILINE)


def slice_name(run: str) -> str:
    """The slice of a run's containers where the engine lets systemd make their groups. A dash would nest slices."""
    return f"lambdactl-{run.replace('-', '')}.slice"


def cgroup_parent(engine: Engine, run: str, cgroup: str) -> str | None:
    """Where the container's control group goes: below the rank's unit, so that it dies and is counted with it.

    An engine with the cgroup driver "systemd" takes nothing but a slice: it gets one of the run's own, which is removed
    with the container. `cgroup` is this process's /proc/self/cgroup; None without a unit.
    """
    found = UNIT.search(cgroup)
    if found is None:
        return None
    if engine.name == "docker" and engine.cgroup_driver == "systemd":
        return slice_name(run)
    return found.group(1)


def gpu_names(job: Job, engine: Engine) -> list[str]:
    """The GPUs that the job has, as the engine is to be told: UUIDs, or indices where its CDI files know no UUIDs.

    Raises NodeError (start-failed) naming what is missing.
    """
    indices = job.gpus
    if indices == [] or (indices is None and not job.node.gpus):
        return []
    found, _ = gpus.finish_query(gpus.start_query(), [])
    uuids = {int(gpu["index"]): str(gpu["uuid"]) for gpu in found}
    chosen = sorted(uuids) if indices is None else indices
    missing = [str(index) for index in chosen if index not in uuids]
    if missing:
        raise NodeError(
            "start-failed", f"nvidia-smi knows no GPU {', '.join(missing)} any more; see dmesg for Xid errors"
        )
    if engine.gpus is None:
        raise NodeError("start-failed", missing_toolkit(engine))
    if engine.gpus == "cdi":
        names = container_engine.cdi_names(container_engine.cdi_text())
        return [_cdi_name(index, uuids[index], names) for index in chosen]
    return [uuids[index] for index in chosen]


def _cdi_name(index: int, uuid: str, names: set[str]) -> str:
    found = next((name for name in (uuid, str(index), f"gpu{index}") if name in names), None)
    if found is None:
        raise NodeError(
            "start-failed",
            f"the description of the GPUs (CDI) has no GPU {index} ({uuid}); write it anew with: sudo nvidia-ctk cdi"
            " generate --output=/etc/cdi/nvidia.yaml",
        )
    return found


def missing_toolkit(engine: Engine) -> str:
    """What keeps an engine from giving GPUs to containers, and the remedy."""
    if container_engine.cdi_text() and not engine.reads_cdi:
        return (
            'docker does not read the description of the GPUs (CDI); put {"features": {"cdi": true}} into'
            " /etc/docker/daemon.json (Docker 25 or newer) and restart it, or install the NVIDIA container toolkit"
        )
    if container_engine.toolkit_present():
        return (
            f"{engine.name} has no description of the GPUs (CDI);"
            " write it with: sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
        )
    return "the NVIDIA container toolkit is not installed, so containers get no GPUs; provision with container_engine"


def limits(engine: Engine) -> dict[str, int]:
    """setrlimit values: what this unit has, as far as it may give it on (RDMA pins memory; no core files).

    Podman asks for the kernel's highest number of processes by itself, which not every node may give.
    """
    found = {"core": 0, "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1]}
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY:
        found["memlock"] = -1
    if engine.name == "podman":
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        found["nproc"] = -1 if hard == resource.RLIM_INFINITY else hard
    return found


def shm_size(wanted: float | None) -> int:
    """Bytes of /dev/shm: what the user wants, else half of the memory as on a host (Docker's 64 MB break NCCL)."""
    if wanted is not None:
        return int(wanted)
    found = re.search(r"^MemTotal:\s+(\d+) kB", paths.read_text("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 512 if found else 1 << 30


def volumes(wanted: object) -> list[tuple[str, str]]:
    """The job's `volumes` as (path here, path in the container); a missing folder here is made, as dstack does.

    Raises NodeError (start-failed) when one cannot be made that is not optional.
    """
    found = []
    for item in wanted if isinstance(wanted, list) else []:
        source, target = str(item["source"]), str(item["target"])
        try:
            if not os.path.exists(source):
                os.makedirs(source)
                os.chmod(source, 0o777)  # noqa: S103 (dstack's mode; the container's user may be anybody)
        except OSError as error:
            if item.get("optional") is True:
                continue
            raise NodeError("start-failed", f"the volume {source} cannot be made: {error.strerror}") from None
        found.append((source, target))
    return found


def make(job: Job, engine: Engine, folder: str, terminal: str) -> Place:
    """Everything that the node gives to the job's container, but its variables. Writes files into a private folder."""
    container = needed(job)
    place = Place(terminal=terminal)
    place.cgroup_parent = cgroup_parent(engine, job.run_id, paths.read_text("/proc/self/cgroup"))
    outside = place.cgroup_parent is not None and place.cgroup_parent.endswith(".slice")
    memory = job.memory_max()
    place.memory = memory if memory and outside else None  # below the unit its own limit counts
    # On cgroup v2 the unit's CPU set holds for all below it, and a group of its own there need not have the controller.
    place.cpus = list(job.share.cpus) if job.share and (outside or engine.cgroup_version == "1") else []
    place.gpus = gpu_names(job, engine)
    place.devices = [path for path in DEVICES if os.path.exists(path)] if not container.privileged else []
    place.limits = limits(engine)
    place.shm_size = shm_size(container.shm_size)
    place.mounts = [(source, target, True) for source, target in container_ssh.prepare(job, folder + "/ssh")]
    place.mounts.append((env.hostfile_path(job.run_id), "/dstack/mpi/hostfile", True))
    place.mounts += [(source, target, False) for source, target in volumes(job.raw.get("volumes"))]
    if len(job.script.encode()) > INLINE_SCRIPT:
        paths.write_atomic(folder + "/script", job.script.encode(), 0o444)
        place.mounts.append((folder + "/script", SCRIPT, True))
    if container.socket:
        socket = container_engine.SOCKETS[engine.name]
        place.mounts.append((socket, "/var/run/docker.sock", False))
    return place
