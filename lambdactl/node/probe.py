"""Everything that is to be known of a node, in one pass: hardware, software, what is provisioned, who uses it.

Sizes in bytes, times in seconds since 1970. `problems` holds what is wrong with the node, a sentence each.
"""

from __future__ import annotations

import os
import sys
import time

from . import gpus, lease, light, network, paths, programs, provisioned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPENMPI_FOLDERS = (("/usr/mpi/gcc", "openmpi-"), ("/opt", "openmpi"))  # folders of folders, begin of their names
OPENMPI_REDHAT = "/usr/lib64/openmpi/bin"
NCCL_TESTS = "/opt/nccl-tests/build"
CUDA_VERSION = "/usr/local/cuda/version.json"
VERSION = paths.DIGITS + "."


def _system() -> dict[str, Any]:
    entries = (line.partition("=") for line in paths.read_text("/etc/os-release").splitlines())
    release = {name: value.strip("\"'") for name, _, value in entries}
    kernel = os.uname()
    return {
        "hostname": kernel.nodename,
        "boot_id": paths.kernel_boot_id(),
        "machine_id": paths.read_text("/etc/machine-id").strip(),
        "time": time.time(),
        "os": {
            "id": release.get("ID"),
            "version_id": release.get("VERSION_ID"),
            "pretty": release.get("PRETTY_NAME"),
        },
        "kernel": kernel.release,
        "arch": kernel.machine,
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "root": paths.ROOT,
        "systemd": paths.has_systemd(),
        "sudo": os.geteuid() == 0,
    }


def _space(path: str) -> tuple[int, int]:
    try:
        space = os.statvfs(path)
    except OSError:
        return 0, 0
    return space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize


def _numa_nodes() -> int:
    found = light.named(gpus.sysfs() + "/devices/system/node", "node")
    return sum(os.path.basename(path)[4:5].isdigit() for path in found)


def _hardware() -> dict[str, Any]:
    disk = paths.ROOT or "/"
    total, free = _space(disk)
    return {
        "cpus": os.cpu_count(),
        "numa_nodes": _numa_nodes() or 1,
        "memory": paths.memory(),
        "disk": {"path": disk, "total": total, "free": free},
        "shared_memory": _space("/dev/shm")[0],  # noqa: S108 (the size of the file system, not a file in it)
        "addresses": network.addresses(),
        "infiniband": network.infiniband(),
    }


def _login_home() -> str:
    import pwd

    name = os.environ.get("SUDO_USER")
    try:
        return pwd.getpwnam(name).pw_dir if name else pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/root"


def _keys() -> dict[str, Any]:
    hosts = light.named("/etc/ssh", "ssh_host_", "_key.pub")
    return {
        "ssh_host_keys": [" ".join(paths.read_text(path).split()[:2]) for path in hosts],
        "node_ssh_key": paths.read_text(paths.ROOT + _login_home() + "/.ssh/lambdactl_ed25519.pub").strip() or None,
    }


def _number(text: str) -> str:
    """The number with dots that a text begins with."""
    length = len(text) - len(text.lstrip(VERSION))
    return text[:length].strip(".")


def _first_version(text: str) -> str | None:
    numbers = (_number(word.lstrip("(")) for word in text.split())
    return next((number for number in numbers if "." in number), None)


def _start_mpi() -> tuple[str, programs.Program] | None:
    path = programs.find(
        "mpirun", *(path + "/bin" for place in OPENMPI_FOLDERS for path in light.named(*place)), OPENMPI_REDHAT
    )
    return (path, programs.Remembered([path, "--version"])) if path else None


def _openmpi(started: tuple[str, programs.Program] | None, problems: list[str]) -> dict[str, Any] | None:
    if started is None:
        return None
    code, text = started[1].result(problems)
    if code != 0 or not any(name in text for name in ("Open MPI", "OpenRTE", "PRRTE")):
        return None
    return {"version": _first_version(text), "path": started[0]}


def _start_nvcc() -> programs.Program | None:
    path = None if os.path.exists(CUDA_VERSION) else programs.find("nvcc", "/usr/local/cuda/bin")
    return programs.Remembered([path, "--version"]) if path else None


def _cuda(nvcc: programs.Program | None, problems: list[str]) -> str | None:
    if nvcc is not None:
        return _number(nvcc.result(problems)[1].partition("release ")[2]) or None
    value = paths.read_json(CUDA_VERSION)
    version = value.get("cuda", {}).get("version") if isinstance(value, dict) else None
    return str(version) if version else None


def _start_engines() -> list[Any]:
    from . import container_engine

    return container_engine.start_query()


def _finish_engines(query: list[Any]) -> list[dict[str, Any]]:
    from . import container_engine

    return [engine.as_dict() for engine in container_engine.finish_query(query)]


def _tools() -> dict[str, Any]:
    from . import tools

    return tools.find(_login_home())


def _runner(*, recorded: bool) -> str | None:
    if not os.path.exists(paths.RUNNER):
        return None
    text = paths.read_text(paths.OPT + "/runner.sha256").strip() if recorded else ""
    return text or provisioned.known_sha256(paths.RUNNER)


def probe(wanted: dict[str, Any], without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """All facts; `wanted` is {role: digest} of what the controller would provision.

    `without` names facts that take time and that nobody will look at: container_engines, cuda, openmpi, provisioned and
    tools are empty then, and `runner` is what the runner's role has written down.
    """
    problems: list[str] = []
    query = gpus.start_query()
    engines = [] if "container_engines" in without else _start_engines()
    mpi = None if "openmpi" in without else _start_mpi()
    nvcc = None if "cuda" in without else _start_nvcc()
    manifests = {} if "provisioned" in without else provisioned.manifests()
    packages = provisioned.start_package_query(manifests)
    facts = {**_system(), **_hardware(), **_keys()}  # while the programs run
    facts["gpus"], facts["driver"] = gpus.finish_query(query, problems)
    facts["cuda"] = _cuda(nvcc, problems)
    facts["openmpi"] = _openmpi(mpi, problems)
    facts["container_engines"] = _finish_engines(engines) if engines else []
    facts["tools"] = None if "tools" in without else _tools()
    tests = paths.ROOT + NCCL_TESTS
    facts["nccl_tests"] = {"path": NCCL_TESTS} if os.access(tests + "/all_reduce_perf", os.X_OK) else None
    facts["runner"] = _runner(recorded="runner" in without)
    facts["provisioned"] = provisioned.report(manifests, packages, wanted, problems)
    facts["leases"] = lease.current()
    facts["queue"] = lease.queue()
    facts["problems"] = problems
    return facts
