#!/usr/bin/python
# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible module: one look at what a node has to compile and run MPI programs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lambdactl_toolchain
short_description: Find Open MPI, compilers, CUDA, NCCL and GPUs of a node in one step
description:
  - Reads only, so it runs in check mode as it does otherwise, and never reports a change.
options:
  mpi_search:
    type: list
    elements: str
    default: []
    description: Glob patterns of folders with mpirun, looked at after PATH, in order.
  cuda_home: {type: str, default: "", description: CUDA toolkit to use; empty looks in PATH and /usr/local/cuda.}
  nccl_home: {type: str, default: "", description: NCCL to use; empty looks in the system and in the CUDA toolkit.}
  mpi_home: {type: str, default: "", description: Folder with include/mpi.h and lib; empty asks mpicc.}
author: [lambdactl contributors]
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Look at the toolchain
  lambdactl_toolchain:
    mpi_search: [/usr/mpi/gcc/*/bin, /opt/hpcx*/ompi/bin]
"""

RETURN = r"""
mpi: {description: mpirun, mpicc, version and home of Open MPI, or null., type: dict, returned: always}
cuda: {description: nvcc, release and home of the CUDA toolkit, or null., type: dict, returned: always}
nccl: {description: header, library and version of NCCL, or null., type: dict, returned: always}
compute_capabilities: {description: Of each GPU., type: list, returned: always}
gpus: {description: How many GPUs nvidia-smi lists., type: int, returned: always}
tools: {description: "Paths of cc, c++, make, git and apt-get, null where missing.", type: dict, returned: always}
os: {description: Name and version of the operating system., type: str, returned: always}
cpus: {description: CPUs that this process may use., type: int, returned: always}
existing: {description: Where /opt/nccl-tests/build holds a built test., type: str, returned: always}
"""

import glob
import os
import re
import shutil

from ansible.module_utils.basic import AnsibleModule

NCCL_TESTS = "/opt/nccl-tests/build/all_reduce_perf"


def output(module, *command):
    """A program's output, or nothing where it is missing, fails or hangs."""
    if not shutil.which(command[0]):
        return ""
    timeout = shutil.which("timeout")
    rc, out, _ = module.run_command(([timeout, "60"] if timeout else []) + list(command))
    return out if rc == 0 else ""


def find_mpi(module):
    """The first Open MPI: from PATH, then from the folders to search."""
    found = [shutil.which("mpirun")]
    for pattern in module.params["mpi_search"]:
        found += [os.path.join(folder, "mpirun") for folder in sorted(glob.glob(pattern), reverse=True)]
    for mpirun in found:
        if not mpirun or not os.access(mpirun, os.X_OK):
            continue
        text = output(module, mpirun, "--version")
        version = re.search(r"\(Open MPI\) (\S+)|\(OpenRTE\) (\S+)|Open MPI\D*(\d\S+)", text)
        if version is None:
            continue  # MPICH and Intel MPI have an mpirun of another kind
        mpicc = os.path.join(os.path.dirname(mpirun), "mpicc")
        mpicc = mpicc if os.access(mpicc, os.X_OK) else None
        return {
            "mpirun": mpirun,
            "version": next(group for group in version.groups() if group),
            "mpicc": mpicc,
            "home": module.params["mpi_home"] or mpi_home(module, mpicc),
        }
    return None


def mpi_home(module, mpicc):
    """The folder that nccl-tests calls MPI_HOME: it has include/mpi.h and lib/libmpi.so."""
    folders = output(module, mpicc, "--showme:incdirs").split() if mpicc else []
    for folder in [*folders, "/usr/lib/%s-linux-gnu/openmpi/include" % os.uname()[4]]:
        if os.path.isfile(os.path.join(folder, "mpi.h")):
            return os.path.dirname(folder.rstrip("/"))
    return None


def find_cuda(module):
    """The CUDA toolkit, by its compiler."""
    home = module.params["cuda_home"]
    found = [home + "/bin/nvcc"] if home else [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for nvcc in found:
        if nvcc and os.access(nvcc, os.X_OK):
            release = re.search(r"release (\d+\.\d+)", output(module, nvcc, "--version"))
            real = os.path.realpath(nvcc)
            return {
                "nvcc": nvcc,
                "release": release.group(1) if release else "",
                "home": home or os.path.dirname(os.path.dirname(real)),
            }
    return None


def find_nccl(module, cuda):
    """NCCL's header and library."""
    multiarch = "%s-linux-gnu" % os.uname()[4]
    named = module.params["nccl_home"]
    homes = [named] if named else ["/usr", (cuda or {}).get("home"), "/usr/local"]
    for home in filter(None, homes):
        header = home + "/include/nccl.h"
        libraries = ["%s/%s/libnccl.so" % (home, folder) for folder in ("lib", "lib64", "lib/" + multiarch)]
        library = next(filter(os.path.exists, libraries), None)
        if os.path.isfile(header) and library:
            with open(header, encoding="utf-8", errors="replace") as file:
                version = re.search(r"#define\s+NCCL_VERSION_CODE\s+(\d+)", file.read())
            return {"header": header, "library": library, "version": version.group(1) if version else "", "home": home}
    return None


def os_name():
    """PRETTY_NAME of /etc/os-release."""
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            match = re.search(r'^PRETTY_NAME="?([^"\n]*)', file.read(), re.MULTILINE)
    except OSError:
        return "an unknown system"
    return match.group(1) if match else "an unknown system"


def main():
    module = AnsibleModule(
        argument_spec={
            "mpi_search": {"type": "list", "elements": "str", "default": []},
            "cuda_home": {"type": "str", "default": ""},
            "nccl_home": {"type": "str", "default": ""},
            "mpi_home": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {
        "LC_ALL": "C",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    capabilities = output(module, "nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").split()
    cuda = find_cuda(module)
    module.exit_json(
        changed=False,
        mpi=find_mpi(module),
        cuda=cuda,
        nccl=find_nccl(module, cuda),
        compute_capabilities=sorted({text for text in capabilities if re.match(r"\d+\.\d+$", text)}),
        gpus=len(re.findall(r"^GPU \d+:", output(module, "nvidia-smi", "-L"), re.MULTILINE)),
        tools={tool: shutil.which(tool) for tool in ("cc", "c++", "make", "git", "apt-get")},
        os=os_name(),
        cpus=len(os.sched_getaffinity(0)),
        existing=NCCL_TESTS if os.access(NCCL_TESTS, os.X_OK) else "",
    )


if __name__ == "__main__":
    main()
