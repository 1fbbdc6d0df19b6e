#!/usr/bin/python
# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible module: which container engine a node has, whether it works, and whether it can give GPUs to containers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lambdactl_container_engine
short_description: Look for Docker or Podman, GPUs and the NVIDIA container toolkit
description:
  - Changes nothing. The same rules as in the runner's C(container_engine.py).
options:
  name:
    type: str
    choices: [auto, docker, podman]
    default: auto
    description: The engine that is looked for; auto takes Docker, then Podman.
author: [lambdactl contributors]
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Look for an engine
  lambdactl_container_engine:
"""

RETURN = r"""
engine: {description: docker or podman; empty where neither is installed., type: str, returned: always}
path: {description: Path of its client., type: str, returned: always}
answers: {description: Whether it works., type: bool, returned: always}
problem: {description: Why it does not., type: str, returned: always}
running: {description: How many containers run., type: int, returned: always}
gpus: {description: How many NVIDIA GPUs the driver knows., type: int, returned: always}
compute_capabilities: {description: Of each GPU., type: list, elements: str, returned: always}
toolkit: {description: Whether the NVIDIA container toolkit is installed., type: bool, returned: always}
gives_gpus: {description: Whether the engine can give GPUs to containers., type: bool, returned: always}
apt: {description: Whether packages can be installed by apt., type: bool, returned: always}
paths: {description: Folders of engines' state that exist., type: list, elements: str, returned: always}
"""

import glob
import json
import os

from ansible.module_utils.basic import AnsibleModule

TOOLKIT = ("nvidia-container-runtime-hook", "nvidia-container-toolkit")
STATE = (
    "/var/lib/docker/",
    "/var/lib/containerd/",
    "/etc/docker/",
    # containerd makes these when it starts. Others may put networks there: without a slash only an empty folder goes.
    "/etc/cni",
    "/etc/cni/net.d",
    "/var/lib/containers/",
)


def capabilities(module):
    """The compute capability of each GPU, empty without a driver."""
    program = module.get_bin_path("nvidia-smi")
    if program is None:
        return []
    rc, out, _ = module.run_command([program, "--query-gpu=compute_cap", "--format=csv,noheader"])
    return [line.strip() for line in out.splitlines() if line.strip()] if rc == 0 else []


def information(module, name, path):
    """(what the engine says of itself, why it does not work)."""
    form = "{{json .}}" if name == "docker" else "json"
    rc, out, err = module.run_command([path, "info", "--format", form])
    try:
        found = json.loads(out[out.index("{") :]) if rc == 0 else {}
    except ValueError:
        found = {}
    errors = found.get("ServerErrors") or []
    words = " ".join(str(item) for item in errors) or (err.strip().splitlines() or ["it gives no answer"])[-1]
    works = bool(found.get("ServerVersion") or found.get("host")) and not errors
    return found, "" if works else "%s does not answer (%s)" % (name.capitalize(), words.rstrip("."))


def gives_gpus(module, name, found):
    """By its hook (Docker), or by descriptions of the GPUs (CDI)."""
    cdi = any(
        "nvidia.com/gpu" in read(path) for folder in ("/etc/cdi", "/var/run/cdi") for path in glob.glob(folder + "/*")
    )
    if name == "podman":
        return cdi
    hook = any(module.get_bin_path(program) for program in TOOLKIT)
    return hook or (cdi and bool(found.get("CDISpecDirs")))  # named only where it reads them


def read(path):
    """A file's text, empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def main():
    module = AnsibleModule(
        argument_spec={"name": {"type": "str", "choices": ["auto", "docker", "podman"], "default": "auto"}},
        supports_check_mode=True,
    )
    wanted = module.params["name"]
    paths = {name: module.get_bin_path(name) for name in ("docker", "podman") if wanted in ("auto", name)}
    name = next((name for name, path in paths.items() if path), "")
    found, problem = information(module, name, paths[name]) if name else ({}, "")
    running = found.get("ContainersRunning") or ((found.get("store") or {}).get("containerStore") or {}).get("running")
    compute = capabilities(module)
    module.exit_json(
        changed=False,
        engine=name,
        path=paths[name] if name else "",
        answers=bool(name) and not problem,
        problem=problem,
        running=int(running or 0),
        gpus=len(compute),
        compute_capabilities=compute,
        toolkit=any(module.get_bin_path(program) for program in TOOLKIT),
        gives_gpus=bool(name) and gives_gpus(module, name, found),
        apt=module.get_bin_path("apt-get") is not None,
        paths=[path for path in STATE if os.path.isdir(path)],
    )


if __name__ == "__main__":
    main()
