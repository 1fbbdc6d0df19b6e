"""The engine's command lines, as pure functions: what a rank's container is made of, in words.

Sources: `docker create`, `podman create` (both reference pages); the flags for GPUs are those of NVIDIA's container
toolkit ("Running a Sample Workload", "Support for Container Device Interface").
"""

from __future__ import annotations

import re

from .container import container_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .container import Container
    from .container_engine import Engine
    from .spec import Job

LABEL = "lambdactl.run"
TERMINAL = "/dstack/terminal"
SCRIPT = "/dstack/script"
SHELL = "/bin/sh"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 (a mount point in the container, no file of ours)
INLINE_SCRIPT = 100_000  # bytes; one argument holds 128 KiB at most (MAX_ARG_STRLEN)
# Process 1 of a container gets only those signals that it has a handler for, so a shell with handlers stands there, and
# the user's shell below it is as mortal as on a host. Its output goes to the terminal of the rank's supervisor itself,
# not through the engine. Arguments: working directory ("" is the image's), then the command.
FIRST_PROCESS = f"""\
exec </dev/null >{TERMINAL} 2>&1
trap : HUP INT QUIT TERM USR1 USR2
directory=$1; shift
case $directory in "~") directory=$HOME ;; "~/"*) directory=$HOME/${{directory#"~/"}} ;; esac
if [ -n "$directory" ] && ! {{ mkdir -p -- "$directory" && cd -- "$directory"; }}; then
  echo "lambdactl: the working directory $directory cannot be entered" >&2; exit 1
fi
[ "$DSTACK_REPO_DIR" != "$DSTACK_WORKING_DIR" ] || DSTACK_REPO_DIR=$PWD
case $DSTACK_REPO_DIR in "~"|"~/"*) DSTACK_REPO_DIR=$HOME${{DSTACK_REPO_DIR#"~"}} ;; esac
DSTACK_WORKING_DIR=$PWD
export DSTACK_WORKING_DIR DSTACK_REPO_DIR
"$@"
exit $?
"""


class Place:
    """What the node gives to one container, found out before its command line is made. Sizes in bytes."""

    def __init__(self, *, cgroup_parent: str | None = None, terminal: str = "", env_file: str = "") -> None:
        self.cgroup_parent = cgroup_parent
        self.terminal = terminal  # the path of the terminal's other end
        self.env_file = env_file
        self.variables: list[str] = []  # names; the values are in the client's environment
        self.gpus: list[str] = []  # UUIDs, or names in the CDI files
        self.devices: list[str] = []  # paths, each the same inside
        self.limits: dict[str, int] = {}  # of setrlimit; -1 is unlimited
        self.shm_size = 0
        self.memory: int | None = None
        self.cpus: list[int] = []  # by number; all when empty
        self.mounts: list[tuple[str, str, bool]] = []  # (path here, path there, read-only)
        self.working_dir: str | None = None  # the image's own when None


def _mount(source: str, target: str, read_only: bool) -> list[str]:
    """--mount, because -v splits at colons; a comma needs CSV quoting."""
    fields = ["type=bind", f"source={source}", f"target={target}", *(["readonly"] if read_only else [])]
    quoted = ['"' + field.replace('"', '""') + '"' if re.search(r'[",\n]', field) else field for field in fields]
    return ["--mount", ",".join(quoted)]


def _gpus(engine: Engine, gpus: list[str]) -> list[str]:
    if not gpus:
        return []
    if engine.gpus == "cdi":
        return [word for gpu in gpus for word in ("--device", f"nvidia.com/gpu={gpu}")]
    return ["--gpus", '"device=' + ",".join(gpus) + '"']  # the quotes are part of its CSV syntax


def _global(engine: Engine) -> list[str]:
    """Podman runs below whoever calls it, so its containers' groups are made where we say, not asked of systemd."""
    return ["--cgroup-manager=cgroupfs"] if engine.name == "podman" else []


def client(engine: Engine) -> list[str]:
    """The engine's client with its global options."""
    return [engine.path, *_global(engine)]


def runs_shell(job: Job, container: Container) -> bool:
    """Whether the job's commands are run by a shell (not as arguments of an entrypoint)."""
    return container.entrypoint is None and bool(job.script.strip())


def _command(job: Job, container: Container, working_dir: str | None) -> tuple[list[str], list[str]]:
    """(options, words after the image)."""
    if runs_shell(job, container):
        shell = job.shell or SHELL
        inline = len(job.script.encode()) <= INLINE_SCRIPT
        run = [shell, "-c", job.script] if inline else [shell, SCRIPT]
        return ["--entrypoint", SHELL], ["-c", FIRST_PROCESS, "lambdactl", working_dir or "", *run]
    options = ["--workdir", working_dir] if working_dir else []
    if container.entrypoint is None:
        return options, container.arguments
    first, *rest = container.entrypoint
    return [*options, "--entrypoint", first], [*rest, *container.arguments]


def create(engine: Engine, job: Job, container: Container, place: Place) -> list[str]:
    """The command line that makes the rank's container, without starting it.

    Host network always: ranks, mpirun's daemons and forwarded ports then are at the node's own address. The engine
    keeps no log (the supervisor does) and restarts nothing.
    """
    options, words = _command(job, container, place.working_dir or container.working_dir)
    argv = [*client(engine), "create", "--name", container_name(job.run_id, job.rank)]
    argv += ["--label", f"{LABEL}={job.run_id}", "--label", f"lambdactl.name={job.run_name}"]
    argv += ["--pull", "never", "--network", "host", "--log-driver", "none"]
    argv += ["--no-healthcheck", *(["--pids-limit", "-1", "--sdnotify", "ignore"] if engine.name == "podman" else [])]
    if place.cgroup_parent:
        argv += ["--cgroup-parent", place.cgroup_parent]
    if place.memory:
        argv += ["--memory", str(place.memory)]
    if place.cpus:
        argv += ["--cpuset-cpus", ",".join(map(str, place.cpus))]
    argv += ["--privileged"] if container.privileged else ["--cap-add", "SYS_PTRACE"]
    argv += ["--tmpfs", f"{SHARED_MEMORY}:rw,exec,nosuid,nodev,mode=1777,size={int(place.shm_size)}"]
    for name, limit in sorted(place.limits.items()):
        argv += ["--ulimit", f"{name}={limit}:{limit}"]
    for device in place.devices:
        argv += ["--device", device]
    argv += _gpus(engine, place.gpus)
    if runs_shell(job, container):
        argv += _mount(place.terminal, TERMINAL, read_only=False)
    for source, target, read_only in place.mounts:
        argv += _mount(source, target, read_only)
    if container.user is not None:
        argv += ["--user", container.user]
    argv += ["--env-file", place.env_file] if place.env_file else []
    argv += [word for name in place.variables for word in ("--env", name)]
    return [*argv, *options, container.image, *words]


def start(engine: Engine, name: str) -> list[str]:
    """Start a container, and stay until it has ended, with its output."""
    return [*client(engine), "start", "--attach", name]


def inspect(engine: Engine, name: str) -> list[str]:
    """Its state as JSON."""
    return [*client(engine), "container", "inspect", "--format", "{{json .State}}", name]


def remove(engine: Engine, name: str) -> list[str]:
    """Kill and remove a container, with its anonymous volumes."""
    return [*client(engine), "rm", "--force", "--volumes", name]


def pull(engine: Engine, image: str) -> list[str]:
    """Get an image; its progress is on standard output when that is a terminal (Podman: on standard error)."""
    return [*client(engine), "pull", image]


def copy_out(engine: Engine, name: str, path: str) -> list[str]:
    """A file or folder of a container as an archive on standard output."""
    return [*client(engine), "cp", f"{name}:{path}", "-"]


def copy_in(engine: Engine, name: str, folder: str) -> list[str]:
    """An archive on standard input into a folder of a container."""
    return [*client(engine), "cp", "-", f"{name}:{folder}"]


def enter(engine: Engine, name: str, command: str | None, *, shell: str | None, tty: bool) -> list[str]:
    """Run a command line in a running container, or without one a login shell."""
    shell = shell or SHELL
    words = [shell, "-l"] if command is None else [shell, "-c", command]
    return [*client(engine), "exec", "--interactive", *(["--tty"] if tty else []), name, *words]
