#!/usr/bin/python
# Copyright: lambdactl contributors. Apache-2.0.
"""Ansible module: write, or act on, a role's manifest."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lambdactl_manifest
short_description: Record what a role added to a node, or take exactly that away
description:
  - With O(state=present) writes C(/var/lib/lambdactl/provisioned/<role>.json), the last step of every lambdactl role.
  - What an earlier run added stays listed, so that a removal is complete however often the role ran.
  - With O(state=begun) only lists O(paths_added), before the role makes them, so that a removal is complete also when
    the role does not come to its end. A manifest without a digest says that it did not.
  - With O(state=absent) removes the paths that the manifest names, then the manifest.
    Packages must be gone before (M(lambdactl_apt)); they are returned as RV(packages_added).
options:
  role: {type: str, required: true, description: Name of the role.}
  state:
    type: str
    choices: [present, begun, absent]
    default: present
    description: Write it, list what will be added, or undo what it names.
  digest: {type: str, default: "", description: What was installed, see C(lambdactl.provision.digests).}
  paths_added:
    type: list
    elements: str
    default: []
    description: Paths that the role created. A slash at the end means the folder with all that is in it.
  verify:
    type: list
    elements: dict
    default: []
    description:
      - What shows that the role's work is still in place.
      - An entry has one of the keys path, package, line (with in), absent.
      - For a path the checksum and mode are read from the disk.
author: [lambdactl contributors]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Record what was installed
  lambdactl_manifest:
    role: runner
    digest: 3b1f
    paths_added: [/opt/lambdactl/runner.pyz]
    verify:
      - path: /opt/lambdactl/runner.pyz
"""

RETURN = r"""
packages_added: {description: Packages that the role had added., type: list, returned: always}
paths_removed: {description: Paths that were removed., type: list, returned: state=absent}
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lambdactl_manifests import (
    Manifest,
    present_paths,
    remove_path,
    render,
    verify_entry,
)


def write(module, manifest):
    """state=present"""
    missing = [entry["path"] for entry in module.params["verify"] if not os.path.exists(entry.get("path") or "/")]
    if missing and not module.check_mode:
        module.fail_json(
            msg="%s is missing although the role %s has ended. Remedy: Run again, and look for what removes it."
            % (", ".join(missing), manifest.role)
        )
    before = manifest.read()
    after = manifest.merged(
        digest=module.params["digest"],
        paths_added=module.params["paths_added"],
        verify=[verify_entry(entry) for entry in module.params["verify"]],
    )
    changed = before != after
    if changed and not module.check_mode:
        manifest.write(after)
    return {"changed": changed, "diff": _diff(manifest.path, before, after), "packages_added": after["packages_added"]}


def begin(module, manifest):
    """state=begun"""
    before = manifest.read()
    after = manifest.merged(paths_added=module.params["paths_added"])
    changed = before != after
    if changed and not module.check_mode:
        manifest.write(after)
    return {"changed": changed, "diff": _diff(manifest.path, before, after), "packages_added": after["packages_added"]}


def undo(module, manifest):
    """state=absent"""
    before = manifest.read()
    if before is None:
        return {"changed": False, "packages_added": [], "paths_removed": []}
    paths = present_paths(before.get("paths_added", []))
    if not module.check_mode:
        paths = [path for path in reversed(paths) if remove_path(path)]
        manifest.remove()
    return {
        "changed": True,
        "diff": _diff(manifest.path, before, None),
        "packages_added": before.get("packages_added", []),
        "paths_removed": paths,
    }


def _diff(path, before, after):
    return {"before_header": path, "after_header": path, "before": render(before), "after": render(after)}


def main():
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "begun", "absent"], "default": "present"},
            "digest": {"type": "str", "default": ""},
            "paths_added": {"type": "list", "elements": "str", "default": []},
            "verify": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    manifest = Manifest(module.params["role"])
    try:
        result = {"present": write, "begun": begin, "absent": undo}[module.params["state"]](module, manifest)
    except OSError as error:
        module.fail_json(msg="The manifest %s cannot be kept: %s." % (manifest.path, error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
