"""What a job finds in its environment, and its MPI hostfile.

Sources: dstack's documented variables (https://dstack.ai/docs/concepts/tasks, "System environment variables") and the
parameters of Open MPI 4 and 5 (PRRTE took over the launcher's part in 5).
"""

from __future__ import annotations

import os

from . import lease, paths, places, share

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .launch import User
    from .spec import Job

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUN_VARIABLE = "LC_LAMBDACTL_RUN"  # LC_*: stock sshd accepts it, so it follows the job's own ssh to its peers
MPI_INTERFACES = ("OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include", "PRTE_MCA_prte_if_include")
NCCL_CONF = "/etc/nccl.conf"
MPI_AS_ROOT = (
    "OMPI_ALLOW_RUN_AS_ROOT",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
    "PRTE_ALLOW_RUN_AS_ROOT",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM",
)


def hostfile(ips: list[str], slots: list[int]) -> str:
    """dstack's MPI hostfile: `<ip> slots=<gpus>` by rank, the bare address without GPUs, empty while one is unknown."""
    if len(ips) != len(slots):
        raise ValueError(f"gpus_per_node length {len(slots)} != job_ips length {len(ips)}")
    if not all(ips):
        return ""
    return "".join(f"{ip} slots={count}\n" if count else f"{ip}\n" for ip, count in zip(ips, slots))


def hostfile_path(run: str) -> str:
    """Where a run's hostfile lies."""
    return paths.run_dir(run) + "/hostfile"


def write_hostfile(job: Job) -> None:
    """Write the run's hostfile, readable for the job's user."""
    text = hostfile([node.ip for node in job.nodes], [node.gpus for node in job.nodes])
    paths.write_atomic(hostfile_path(job.run_id), text.encode(), 0o644)


def login_environment() -> dict[str, str]:
    """What a login on this node starts from: /etc/environment, as PAM reads it."""
    found = {"PATH": DEFAULT_PATH}
    for line in paths.read_text("/etc/environment").splitlines():
        name, equals, value = line.strip().partition("=")
        name = name[7:].strip() if name.startswith("export ") else name.strip()
        if equals and name and not name.startswith("#"):
            found[name] = value.strip().strip("\"'")
    return found


def job_id(run: str, rank: int) -> str:
    """The UUID (version 5) of a rank in the name space of its run; by hand, because `uuid` takes 2 ms to import."""
    try:
        from _sha1 import sha1  # type: ignore[import-not-found]  # as hashlib does, but without loading OpenSSL (4 ms)
    except ImportError:
        from hashlib import sha1
    number = bytearray(sha1(bytes.fromhex(run.replace("-", "")) + str(rank).encode()).digest()[:16])  # noqa: S324 (RFC 4122 uuid5, no security)
    number[6], number[8] = number[6] & 0x0F | 0x50, number[8] & 0x3F | 0x80
    text = number.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def dstack_variables(job: Job, directory: str, repo_dir: str | None = None) -> dict[str, str]:
    """The 13 variables that dstack documents, and DSTACK_NODE_IP."""
    return {
        "DSTACK_RUN_ID": job.run_id,
        "DSTACK_JOB_ID": job_id(job.run_id, job.rank),
        "DSTACK_RUN_NAME": job.run_name,
        "DSTACK_REPO_ID": job.repo_id,
        "DSTACK_REPO_DIR": job.repo_dir or repo_dir or directory,
        "DSTACK_WORKING_DIR": directory,
        "DSTACK_NODES_IPS": "\n".join(node.ip for node in job.nodes),
        "DSTACK_MASTER_NODE_IP": job.nodes[0].ip,
        "DSTACK_NODE_IP": job.node.ip,
        "DSTACK_NODE_RANK": str(job.rank),
        "DSTACK_NODES_NUM": str(len(job.nodes)),
        "DSTACK_GPUS_PER_NODE": str(job.node.gpus),
        "DSTACK_GPUS_NUM": str(sum(node.gpus for node in job.nodes)),
        "DSTACK_MPI_HOSTFILE": hostfile_path(job.run_id),
    }


def _visible_gpus(job: Job) -> dict[str, str]:
    total = (lease.read(job.run_id) or {}).get("total")
    if job.gpus is None or total is None or len(job.gpus) >= int(total):
        return {}
    return {"CUDA_VISIBLE_DEVICES": share.visible_devices(job.gpus)}


def defaults(job: Job, user: User) -> dict[str, str]:
    """The run's defaults, less what NCCL's own files on this node set: NCCL reads the environment before them."""
    texts = [paths.read_text(path) for path in (NCCL_CONF, user.home + "/.nccl.conf") if os.path.isfile(path)]
    configured = {line.partition("=")[0].strip() for text in texts for line in text.splitlines()}
    return {name: value for name, value in job.defaults.items() if name not in configured}


def environment(job: Job, user: User) -> dict[str, str]:
    """The whole environment of the job; the user's own variables win over everything."""
    network = dict.fromkeys(MPI_INTERFACES, job.mpi_network) if job.mpi_network else {}
    person = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}
    return {
        **defaults(job, user),
        **login_environment(),
        **person,
        **{name: value for name, value in network.items() if value},
        **dict.fromkeys(MPI_AS_ROOT, "1"),
        **_visible_gpus(job),
        **dstack_variables(job, places.working_dir(job, user), places.repo_dir(job, user)),
        RUN_VARIABLE: job.run_id,
        **job.env,
    }


def for_logins(job: Job, user: User, variables: dict[str, str]) -> dict[str, str]:
    """The part of a job's environment that SSH sessions from its peers get here.

    This node's own defaults are in it, because mpirun only takes what the user names with -x to its remote ranks; where
    the user sets such a variable, it is left to the user altogether.
    """
    own = {name for name in defaults(job, user) if name not in job.env}
    names = (name for name in variables if name.startswith("DSTACK_") or name == RUN_VARIABLE or name in own)
    return {name: variables[name] for name in names}
