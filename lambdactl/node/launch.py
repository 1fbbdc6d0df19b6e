"""Starting a program as another user, in its own session, from a single-threaded process (3.8 has no user=)."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import resource
import struct
import termios
import tty

from . import paths
from .errors import NodeError
from .light import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TERMINAL_SIZE = (24, 80)
INLINE_SCRIPT = 100_000  # bytes; one argument holds 128 KiB at most (MAX_ARG_STRLEN)


class User:
    """Whom a program runs as: names, numbers, home and login shell."""

    def __init__(self, entry: pwd.struct_passwd, gid: int) -> None:
        self.name = entry.pw_name
        self.uid = entry.pw_uid
        self.gid = gid
        self.home = entry.pw_dir or "/"
        self.shell = entry.pw_shell or "/bin/sh"

    @property
    def groups(self) -> list[int]:
        """The user's groups; asked for only where they are set, because that asks every source of accounts."""
        return os.getgrouplist(self.name, self.gid)


def find_user(text: str) -> User:
    """The user that "name", "uid", "name:group" or "uid:gid" means. Raises NodeError (start-failed)."""
    name, _, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise NodeError("start-failed", f"user {name!r} does not exist on this node") from None
    if not group:
        return User(entry, entry.pw_gid)
    try:
        return User(entry, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid)
    except KeyError:
        raise NodeError("start-failed", f"group {group!r} does not exist on this node") from None


def known_uids(*names: str) -> set[int]:
    """Root's, this process's, and those of the users that exist here."""
    uids = {0, os.geteuid()}
    for name in names:
        try:
            uids.add(find_user(name).uid)
        except NodeError:  # the start of the job will say so
            continue
    return uids


def shell_argv(shell: str | None, script: str, path: str, user: User) -> list[str]:
    """How a shell runs a script; one that is too long for an argument is written to `path`, for this user."""
    program = shell or ("bash" if os.path.exists("/bin/bash") else "/bin/sh")
    if len(script.encode()) <= INLINE_SCRIPT:
        return [program, "-c", script]
    paths.write_atomic(path, script.encode(), 0o400)
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)
    return [program, path]


def open_terminal() -> tuple[int, int]:
    """(our end, the program's end) of a terminal that passes bytes on unchanged.

    A terminal, because programs then write line by line; OPOST off, because it would turn \\n into \\r\\n.
    """
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *TERMINAL_SIZE, 0, 0))
    return ours, theirs


def become(user: User) -> None:
    """Be the user from now on, for good; nothing where this process is not root."""
    if os.geteuid() != 0 or (user.uid == 0 and user.gid == 0):
        return
    os.setgroups(user.groups)
    os.setgid(user.gid)
    os.setuid(user.uid)


def raise_limits() -> None:
    """What a job may pin and dump."""
    for kind in (resource.RLIMIT_MEMLOCK, resource.RLIMIT_CORE):  # RDMA pins memory; a core file is no part of a run
        try:
            limit = resource.RLIM_INFINITY if kind == resource.RLIMIT_MEMLOCK else 0
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1] if kind == resource.RLIMIT_CORE else limit))
        except (ValueError, OSError):
            continue


def _enter(directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    os.chdir(directory)


def _child(
    argv: Sequence[str],
    user: User,
    env: Mapping[str, str],
    files: tuple[int, int, int],
    cwd: str,
    gate: tuple[int, int],
    report: int,
    setup: Callable[[], None] | None,
) -> None:
    step = "setting up"
    try:
        os.setsid()
        for number, descriptor in enumerate(files):
            os.dup2(descriptor, number)
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if gate[0] >= 0:
            os.close(gate[1])
            os.read(gate[0], 1)  # ends when the parent has closed its side, too
            raise_limits()
            _reset_oom_score()
        if setup is not None:
            setup()
        step = f"becoming user {user.name}"
        become(user)
        step = f"entering the working directory {cwd}"
        _enter(cwd)
        step = f"executing {argv[0]}"
        os.execvpe(argv[0], list(argv), dict(env))
    except BaseException as error:  # anything at all must end this process, never return into the supervisor's code
        text = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
        os.write(report, f"{step}: {text}".encode("utf-8", "replace")[:1000])
    finally:
        os._exit(127)


def _reset_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"0")
    except OSError:
        return


def spawn(
    argv: Sequence[str],
    user: User,
    env: Mapping[str, str],
    files: tuple[int, int, int],
    *,
    cwd: str = "/",
    job: Callable[[int], object] | None = None,
    setup: Callable[[], None] | None = None,
) -> int:
    """Start a program in a session of its own and return its process id once it is executing.

    `files` become its standard input, output and error. `job(pid)` is called before the program executes (to put it
    into a control group), and makes it a job: limits raised, not protected from the kernel's out-of-memory killer.
    `setup()` is called in the new process, before it becomes the user.
    Raises NodeError (start-failed) with the step that failed.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    gate_reader, gate_writer = os.pipe2(os.O_CLOEXEC) if job is not None else (-1, -1)
    pid = os.fork()
    if pid == 0:
        _child(argv, user, env, files, cwd, (gate_reader, gate_writer), writer, setup)
    os.close(writer)
    if job is not None:
        job(pid)
        os.close(gate_reader)
        os.close(gate_writer)
    with open(reader, "rb") as report:
        problem = report.read().decode("utf-8", "replace")
    if problem:
        os.waitpid(pid, 0)
        raise NodeError("start-failed", f"the commands could not be started, {problem}")
    return pid
