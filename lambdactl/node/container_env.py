"""What commands in a container find in their environment, and how it gets there without being in any argument.

The image's own variables (PATH, HOME, ...) stay, unlike on the host, where a login's environment is the base.
"""

from __future__ import annotations

import re

from . import container_dirs
from .container_ssh import CONFIG
from .env import MPI_AS_ROOT, MPI_INTERFACES, RUN_VARIABLE, dstack_variables
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .container import Container
    from .spec import Job

HOSTFILE = "/dstack/mpi/hostfile"  # where dstack has it
# Arguments of the ssh that mpirun starts: Open MPI 4, then PRRTE (Open MPI 5).
MPI_SSH_ARGUMENTS = ("OMPI_MCA_plm_rsh_args", "PRTE_MCA_plm_ssh_args")
# Variables that would change what the engine's own client does: they go by a file, the others by its environment.
CLIENT = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|SHELL|STORAGE_\w+|REGISTRY_AUTH_FILE|NOTIFY_SOCKET|_CONTAINERS\w*|DBUS_\w+"
    r"|(DOCKER|PODMAN|CONTAINER|CONTAINERS|BUILDAH|XDG|LD|GODEBUG|GO\w*|SSL_CERT|LISTEN|OTEL|BUILDKIT)(_\w+)?"
    r"|(?i:\w+_proxy)",
    re.ASCII,
)


def environment(job: Job, container: Container, *, gpus: bool, image_dir: str) -> dict[str, str]:
    """The variables that are added to the image's own; the user's win over everything."""
    network = dict.fromkeys(MPI_INTERFACES, job.mpi_network) if job.mpi_network else {}
    directory = container_dirs.working_dir(job, container, image_dir)
    repo_dir = container_dirs.repo_dir(job, container, image_dir)
    own = {**dstack_variables(job, directory, repo_dir), "DSTACK_MPI_HOSTFILE": HOSTFILE}
    return {
        **job.defaults,
        **{name: value for name, value in network.items() if value},
        **dict.fromkeys(MPI_AS_ROOT, "1"),
        **(dict.fromkeys(MPI_SSH_ARGUMENTS, f"-F {CONFIG}") if job.multi_node else {}),
        # An engine whose default runtime is NVIDIA's gives every GPU to images that ask for all, unless told otherwise.
        **({} if gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}),
        **own,
        RUN_VARIABLE: job.run_id,
        **job.env,
    }


def split(variables: dict[str, str]) -> tuple[dict[str, str], str]:
    """(variables for the client's environment, text of its --env-file).

    Raises NodeError (start-failed) for a value that neither way can carry.
    """
    passed, lines = {}, []
    for name, value in variables.items():
        if not CLIENT.fullmatch(name):
            passed[name] = value
        elif "\n" in value or "\r" in value:
            raise NodeError("start-failed", f"the value of {name} has several lines, which a container cannot be given")
        else:
            lines.append(f"{name}={value}\n")
    return passed, "".join(lines)
