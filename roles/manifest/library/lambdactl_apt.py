#!/usr/bin/python
# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible module: Debian packages whose arrival is recorded in a role's manifest, so that they can leave again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lambdactl_apt
short_description: Install Debian packages and remember exactly which ones that added
description:
  - Installs packages with C(apt-get) and writes the complete list of what comes along into the role's manifest
    I(before) the first byte is unpacked, so that a removal is exact even after an interrupted run.
  - M(ansible.builtin.apt) would first install python3-apt with its dependencies, fails in check mode without it,
    and cannot tell afterwards what it added.
  - Waits for another package manager's lock and names its holder when the wait is over.
  - Never removes a package on the way, and never upgrades a kernel, driver, CUDA, NCCL or network stack; when apt would
    have to, the task fails and says which. Other packages that a new one needs in a newer version are upgraded.
options:
  role: {type: str, required: true, description: Role whose manifest lists the packages.}
  packages: {type: list, elements: str, default: [], description: Packages wanted (state=present).}
  state:
    type: str
    choices: [present, absent]
    default: present
    description: Install, or remove what the manifest names.
  lock_timeout: {type: int, default: 600, description: Seconds to wait for the package manager's lock.}
  cache_valid_time: {type: int, default: 3600, description: Seconds for which the package lists count as fresh.}
  retries: {type: int, default: 3, description: Attempts to reach the mirrors.}
author: [lambdactl contributors]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Install Open MPI from the distribution
  lambdactl_apt:
    role: openmpi
    packages: [openmpi-bin, libopenmpi-dev]
"""

RETURN = r"""
added: {description: Packages that were (or would be) installed., type: list, returned: state=present}
removed: {description: Packages that were (or would be) removed., type: list, returned: state=absent}
kept: {description: Packages that stay since something else needs them by now., type: list, returned: state=absent}
"""

import glob
import os
import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lambdactl_manifests import MANIFESTS, Manifest

LOCKED = re.compile(r"could not get lock|unable to lock|unable to acquire the dpkg", re.IGNORECASE)
NETWORK = re.compile(r"failed to fetch|could not resolve|temporary failure|connection (timed out|failed)", re.I)
# What a GPU node's image has carefully matched to each other; nothing here may move because a package wants it.
PROTECTED = re.compile(
    r"linux-(?!libc-dev)|nvidia|libnvidia|cuda|libcu|libnccl|mlnx|ofed|rdma|libibverbs|doca|datacenter-gpu|fabricmanager"
)
LISTS = "/var/lib/apt/lists"
POLL = 2  # seconds between two looks at a lock


class Apt:
    """apt-get with a deadline for the lock and a few attempts at the mirrors."""

    def __init__(self, module):
        self.module = module
        self.deadline = time.monotonic() + module.params["lock_timeout"]

    def run(self, *args, **kwargs):
        """One apt-get; waits while another package manager holds the lock, fails with apt's own words otherwise."""
        attempts = kwargs.get("attempts", 1)
        command = ["apt-get", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=0"]
        command += ["-o", "APT::Cmd::Disable-Script-Warning=1"]
        while True:
            rc, out, err = self.module.run_command(command + list(args), environ_update=ENVIRONMENT)
            if rc == 0:
                return out
            if LOCKED.search(err) and time.monotonic() < self.deadline:
                time.sleep(POLL)
                continue
            attempts -= 1
            if LOCKED.search(err) or attempts <= 0 or not NETWORK.search(err):
                self.fail(args, rc, err or out)
            time.sleep(POLL)

    def fail(self, args, rc, text):
        lines = [line.strip() for line in text.splitlines() if line.startswith(("E:", "dpkg:", "W: Failed"))]
        message = " ".join(lines) or text.strip()[-500:]
        self.module.fail_json(msg="apt-get %s failed: %s" % (args[0], message), rc=rc, stderr=text)

    def refresh(self):
        """Fetch the package lists where they are older than cache_valid_time, or missing."""
        newest = max([os.path.getmtime(path) for path in glob.glob(LISTS + "/*_Packages*")] or [0.0])
        if time.time() - newest > self.module.params["cache_valid_time"]:
            self.run("update", "--error-on=any", attempts=self.module.params["retries"])

    def simulate(self, *args):
        """What apt-get would do, as three lists of names: newly installed, upgraded, removed."""
        out = self.run("-s", "-o", "Debug::NoLocking=true", *args)
        new, upgraded, removed = set(), set(), set()
        for line in out.splitlines():
            match = re.match(r"(Inst|Remv|Purg) (\S+?)(?::\S+)? (\[?)", line)
            if match:
                kind = (upgraded if match.group(3) else new) if match.group(1) == "Inst" else removed
                kind.add(match.group(2))
        return sorted(new), sorted(upgraded), sorted(removed)


ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "NEEDRESTART_MODE": "l", "NEEDRESTART_SUSPEND": "1"}


def installed(module, names):
    """Those of `names` that dpkg has installed."""
    if not names:
        return []
    _, out, _ = module.run_command(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *names])
    return sorted({line.split()[1] for line in out.splitlines() if line.startswith("installed ")})


def install(module, manifest):
    """state=present"""
    wanted = module.params["packages"]
    missing = [name for name in wanted if name not in installed(module, wanted)]
    if not missing:
        return {"changed": False, "added": []}
    if module.check_mode:
        return {"changed": True, "added": missing, "diff": _diff(missing, [])}
    apt = Apt(module)
    apt.refresh()
    added, upgraded, removed = apt.simulate("install", "--no-install-recommends", *missing)
    touched = removed + [name for name in upgraded if PROTECTED.match(name)]
    if touched:
        module.fail_json(
            msg="apt would have to replace or remove %s to install %s. "
            "Remedy: Install %s by hand in a version that fits." % (", ".join(touched), ", ".join(missing), missing[0])
        )
    manifest.write(manifest.merged(digest="", packages_added=added))
    apt.run("install", "--no-install-recommends", *missing, attempts=module.params["retries"])
    return {"changed": True, "added": added, "diff": _diff(added, [])}


def remove(module, manifest):
    """state=absent"""
    listed = installed(module, (manifest.read() or {}).get("packages_added", []))
    if not listed:
        return {"changed": False, "removed": [], "kept": []}
    apt = Apt(module)
    going, ours = listed, set(listed) | (of_other_roles() if module.check_mode else set())
    while going:
        if not set(apt.simulate("purge", *going)[2]) - ours:
            break
        # Somebody's own package has come to need one of ours: find which, and leave it and what it needs alone.
        going = [name for name in going if not set(apt.simulate("purge", name)[2]) - ours]
    if going and not module.check_mode:
        apt.run("purge", *going)
    kept = sorted(set(listed) - set(going))
    return {"changed": bool(going), "removed": going, "kept": kept, "diff": _diff([], going)}


def of_other_roles():
    """The packages in all manifests. In check mode the roles that come first in a teardown have not removed theirs."""
    roles = [os.path.basename(path)[: -len(".json")] for path in glob.glob(MANIFESTS + "/*.json")]
    return {name for role in roles for name in (Manifest(role).read() or {}).get("packages_added", [])}


def _diff(added, removed):
    return {"before": "".join(name + "\n" for name in removed), "after": "".join(name + "\n" for name in added)}


def main():
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "lock_timeout": {"type": "int", "default": 600},
            "cache_valid_time": {"type": "int", "default": 3600},
            "retries": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    manifest = Manifest(module.params["role"])
    try:
        result = (install if module.params["state"] == "present" else remove)(module, manifest)
    except OSError as error:
        module.fail_json(msg="The manifest %s cannot be kept: %s." % (manifest.path, error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
