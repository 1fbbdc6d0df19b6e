"""Where the runner keeps things on a node, and the checks that stand between a request and a path.

``LAMBDACTL_ROOT`` (a directory) prefixes everything and makes the runner work without root and without systemd.
"""

from __future__ import annotations

import os

from . import light
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = os.environ.get("LAMBDACTL_ROOT", "").rstrip("/")
OPT = ROOT + "/opt/lambdactl"
STATE = ROOT + "/var/lib/lambdactl"
RUNS = STATE + "/runs"
LEASES = STATE + "/leases"
QUEUE = STATE + "/queue"
SCHEDULES = STATE + "/schedules"
PROVISIONED = STATE + "/provisioned"
RUNNER = OPT + "/runner.pyz"
GPU_CACHE = STATE + "/gpus.json"
READ_SIZE = 1 << 16

HEX = "0123456789abcdef"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"


def is_run_id(text: str) -> bool:
    """Whether this is a UUID in lower case."""
    parts = text.split("-")
    return [*map(len, parts)] == [8, 4, 4, 4, 12] and light.made_of("".join(parts), HEX)


def is_run_name(text: str) -> bool:
    """Whether this may be a run's name."""
    return light.is_word(text, LETTERS + DIGITS, LETTERS + DIGITS + "-", 100)


def is_role_name(text: str) -> bool:
    """Whether this may be a role's name."""
    return light.is_word(text, LETTERS, LETTERS + DIGITS + "_", 64)


def run_id(value: object) -> str:
    """The value when it is a run's UUID in lower case; it names folders, units and sockets, so nothing else passes."""
    if isinstance(value, str) and is_run_id(value):
        return value
    raise NodeError("bad-request", f"run_id {str(value)[:60]!r} is not a UUID in lower case")


def run_key(value: object) -> str:
    """The value when it may be a run's name or UUID."""
    if isinstance(value, str) and (is_run_id(value) or is_run_name(value)):
        return value
    raise NodeError("bad-request", f"run {str(value)[:60]!r} is neither a run's name ([a-z0-9-]) nor its UUID")


def run_dir(identifier: str) -> str:
    """The folder of a run, given its validated UUID."""
    return f"{RUNS}/{run_id(identifier)}"


def unit_name(identifier: str) -> str:
    """The systemd unit that executes a run's rank on this node."""
    return f"lambdactl-{identifier}.service"


def make_state_dirs() -> None:
    """Create the folders that every operation relies on; a job's user may pass through, not list."""
    for path, mode in ((STATE, 0o755), (RUNS, 0o711), (LEASES, 0o700), (QUEUE, 0o700), (PROVISIONED, 0o755)):
        if not os.path.isdir(path):
            os.makedirs(path, exist_ok=True)
            os.chmod(path, mode)


def read_bytes(path: str) -> bytes:
    """A small file as it is; without what `open` does for larger ones. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while data := os.read(descriptor, READ_SIZE):
            parts.append(data)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def read_text(path: str, default: str = "") -> str:
    """A small text file, or the default when it cannot be read."""
    try:
        return read_bytes(path).decode("utf-8", "replace")
    except OSError:
        return default


def read_json(path: str) -> Any:
    """A JSON file's value, or None when it is missing or broken (a crash may have cut it)."""
    try:
        return light.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return None


def write_atomic(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step, so that readers see the old or the new content, never a part."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def write_json(path: str, value: object, mode: int = 0o600) -> None:
    """Replace a JSON file in one step."""
    write_atomic(path, light.compact(value).encode(), mode)


def memory() -> int | None:
    """The machine's memory in bytes, or None when it is not known."""
    for line in read_text("/proc/meminfo").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and words[2:] == ["kB"] and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def kernel_boot_id() -> str:
    """The kernel's boot id."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


_boot: list[str] = []  # it does not change while a process lives


def boot() -> str:
    """What changes whenever the node starts anew: the kernel's boot id and the start of process 1.

    The second part tells a restarted container (or a soft reboot) from the one before, where the kernel goes on.
    """
    if ROOT and "LAMBDACTL_BOOT" in os.environ:
        return os.environ["LAMBDACTL_BOOT"]
    if not _boot:
        fields = read_text("/proc/1/stat").rpartition(")")[2].split()
        _boot.append(f"{kernel_boot_id()}/{fields[19] if len(fields) > 19 else ''}")
    return _boot[0]


def has_systemd() -> bool:
    """Whether ranks run as systemd units here."""
    return not ROOT and os.geteuid() == 0 and os.path.isdir("/run/systemd/system")


def self_path() -> str:
    """The zipapp that this code was loaded from."""
    archive = getattr(globals().get("__loader__"), "archive", None)
    return str(archive) if archive else RUNNER


def is_shutting_down() -> bool:
    """Whether systemd is taking the node down."""
    if not has_systemd():
        return False
    import subprocess

    try:
        answer = subprocess.run(["systemctl", "is-system-running"], capture_output=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.stdout.strip() == b"stopping"
