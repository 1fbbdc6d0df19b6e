"""The SSH server of a dev environment: one `sshd -i` a connection, inside of the run.

`runner.pyz session RUN KEY` is what the alias' ProxyCommand executes on the node. It joins the run's control group,
becomes the run's user, and turns into OpenSSH's own server, which speaks on standard input and output. So there is no
port and no daemon, terminal, SFTP and forwards are sshd's own, whatever a session starts is part of the run and ends
with it, and a second of the run's sessions never mixes with logins to the host.

The server accepts one key for each machine that attached. Whoever may execute `session` is root on the node already, so
the key it brings is not a new right; it is there because an SSH server wants one.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess

from . import control, paths, repair
from .errors import NodeError
from .launch import become, raise_limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .launch import User
    from .spec import Job

SERVER_PATH = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin"
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
)  # fmt: skip
KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{40,200}={0,2}")
SEPARATION = "/run/sshd"
# What sshd itself knows of a session; the run's own environment must not hide it.
OF_THE_SESSION = re.compile(r"SSH_.*|TERM|DISPLAY|LANG|LC_(?!LAMBDACTL_).*|COLORTERM|NO_COLOR")
# A client that is gone (a sleeping laptop) is noticed after two minutes: by sshd's questions, or for want of signs.
SILENCE = 120.0
ENTER_DIRECTORY = 'd=${DSTACK_WORKING_DIR:-/}; case $d in "~"*) d=$HOME${d#"~"};; esac; cd "$d" 2>/dev/null; '
LOGIN_SHELL = "for s in bash sh; do command -v $s >/dev/null && exec $s -l; done"
SFTP = (
    "for s in {paths}; do [ -x $s ] && exec $s; done; "
    'echo "this image has no sftp-server; install openssh-sftp-server in it" >&2; exit 127'
)
CONFIG = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowAgentForwarding yes
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
X11Forwarding yes
PrintMotd no
PrintLastLog no
AcceptEnv LANG LC_* COLORTERM NO_COLOR
ClientAliveInterval 30
ClientAliveCountMax 4
MaxSessions 100
LogLevel ERROR
ForceCommand {land}
"""


def folder_of(run: str) -> str:
    """Where the server's files lie."""
    return paths.run_dir(run) + "/ssh"


def _owned(path: str, data: bytes, user: User, mode: int = 0o600) -> None:
    paths.write_atomic(path, data, mode)
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)


def prepare(run: str, user: User, environment: dict[str, str], directory: str, *, container: bool = False) -> str:
    """Make the server's files for a run, and return its public host key. Raises NodeError (start-failed).

    With `container` the server stays on the host, as this node's user, and its sessions are entered from there: then
    the environment is the container's own.
    """
    folder = folder_of(run)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    if server() is None:
        raise NodeError("start-failed", "a dev environment needs OpenSSH's server (sshd) on the node: install it")
    _check(user)
    host_key = _make_host_key(folder, user)
    runner = [*repair.runner_argv(run), "land", folder]
    lines = CONFIG.format(folder=folder, land=" ".join(runner))
    sftp = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)
    lines += f"Subsystem sftp {sftp}\n" if sftp else ""
    _owned(folder + "/sshd_config", lines.encode(), user)
    session = {"env": environment, "directory": directory, "container": container}
    _owned(folder + "/session.json", json.dumps(session).encode(), user)
    if not os.path.exists(folder + "/authorized_keys"):
        _owned(folder + "/authorized_keys", b"", user)
    return host_key


def server() -> str | None:
    """The path of sshd."""
    return shutil.which("sshd", path=SERVER_PATH)


def _check(user: User) -> None:
    if user.uid == 0 and _is_locked():
        text = "root's account is locked on this node, and sshd lets no locked user in: choose another `user`"
        raise NodeError("start-failed", text)
    if os.path.basename(user.shell) in ("nologin", "false"):
        raise NodeError("start-failed", f"user {user.name} has no login shell on this node: choose another `user`")


def _is_locked() -> bool:
    line = next((line for line in paths.read_text("/etc/shadow").splitlines() if line.startswith("root:")), "")
    return line.split(":")[1:2] != [] and line.split(":")[1].startswith("!")


def _make_host_key(folder: str, user: User) -> str:
    path = folder + "/host_key"
    if not os.path.exists(path):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path]
        try:
            made = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError as error:
            raise NodeError("start-failed", f"ssh-keygen cannot be executed on the node: {error.strerror}") from None
        if made.returncode != 0:
            words = made.stderr.decode("utf-8", "replace").strip()
            raise NodeError("start-failed", f"ssh-keygen made no host key: {words or 'no reason given'}")
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)
    return " ".join(paths.read_text(path + ".pub").split()[:2])


def authorize(run: str, key: object, user: User) -> None:
    """Let a machine's key in. Raises NodeError (bad-request)."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise NodeError("bad-request", "session: the key is no public key of the type ssh-ed25519")
    path = folder_of(run) + "/authorized_keys"
    known = paths.read_text(path)
    if key not in known.splitlines():
        _owned(path, f"{known}{key}\n".encode(), user)


def session(args: list[str]) -> int:
    """Become the SSH server of a run, for one connection on standard input and output; without KEY, only be there."""
    if len(args) not in (1, 2):
        raise NodeError("bad-request", "usage: runner.pyz session RUN [KEY]")
    run = paths.run_id(args[0])
    answer = control.call(run, {"op": "session", "key": args[1] if len(args) == 2 else None})
    if answer is None:
        value = repair.repair(run)
        name = (value or {}).get("run_name", run)
        reason = (value or {}).get("message") or (value or {}).get("reason") or "nothing is known of it here"
        raise NodeError("not-found", f"{name} does not run on this node any more: {reason}")
    if len(args) == 1:
        return _stay()
    if answer.get("inside"):
        from . import volumes

        volumes.join(int(answer["inside"]))
    return _serve(run, str(answer["user"]))


def _stay() -> int:
    """Be counted as a session for as long as somebody sends a sign of life."""
    while select.select([0], [], [], SILENCE)[0]:
        if not os.read(0, 4096):
            break
    return 0


def _serve(run: str, name: str) -> NoReturn:
    from .launch import find_user

    user = find_user(name)
    program = server()
    if program is None:
        raise NodeError("start-failed", "there is no sshd on this node")
    raise_limits()
    if user.uid == 0:
        os.makedirs(SEPARATION, mode=0o755, exist_ok=True)
    become(user)
    os.chdir("/")
    os.execve(program, [program, "-i", "-e", "-f", folder_of(run) + "/sshd_config"], {"PATH": SERVER_PATH})


def session_environment(given: dict[str, str], environment: dict[str, str]) -> dict[str, str]:
    """What a session's program finds: the run's environment, with what sshd says of the session above it."""
    own = {name: value for name, value in given.items() if OF_THE_SESSION.fullmatch(name)}
    return {**environment, **own}


def inside(job: Job) -> str:
    """The working directory in a job's container, which is made already; `~` is that of dstack's default user."""
    from . import container_run

    directory = str(container_run.record(job.run_id).get("directory") or "/")
    user = (job.container.user if job.container is not None else None) or "root"
    home = "/root" if user.split(":")[0] in ("root", "0") else f"/home/{user.split(':')[0]}"
    return home + directory[1:] if directory == "~" or directory.startswith("~/") else directory


def in_container(command: str | None) -> str:
    """The line that a shell in the container runs for a session; the host's SFTP server is looked for in the image."""
    if command is None:
        return ENTER_DIRECTORY + LOGIN_SHELL
    if command in SFTP_SERVERS:
        return SFTP.format(paths=" ".join(SFTP_SERVERS))
    return ENTER_DIRECTORY + command


def land(args: list[str]) -> NoReturn:
    """What sshd executes for every session, as the run's user: the asked-for command, in the run's environment."""
    if len(args) != 1:
        raise NodeError("bad-request", "usage: runner.pyz land FOLDER")
    described: Any = paths.read_json(args[0] + "/session.json")
    if not isinstance(described, dict):
        raise NodeError("internal", f"{args[0]}/session.json cannot be read")
    from .shell import enter, execute

    command = os.environ.get("SSH_ORIGINAL_COMMAND")
    if described.get("container"):
        enter(os.path.basename(os.path.dirname(args[0])), in_container(command))
    variables = session_environment(dict(os.environ), described["env"])
    variables.pop("SSH_ORIGINAL_COMMAND", None)
    try:
        os.chdir(described["directory"])
    except OSError:  # it was removed, or the session may not enter it: the home will do
        os.chdir(variables.get("HOME", "/"))
    execute(command, variables)
