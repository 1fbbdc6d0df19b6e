# Copyright: lambdactl contributors. Apache-2.0.
"""A role's manifest on a node: what it added, how to see that it is still there, and how to take it away again.

Runs on nodes with Python >= 3.8 and the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat

STATE_DIR = "/var/lib/lambdactl"
MANIFESTS = STATE_DIR + "/provisioned"


class Manifest:
    """The file /var/lib/lambdactl/provisioned/<role>.json.

    ``paths_added`` are removed by teardown: a file or a link; a directory when it is empty; with a slash at the end a
    directory and all that is in it.
    """

    def __init__(self, role):
        self.role = role
        self.path = "%s/%s.json" % (MANIFESTS, role)

    def read(self):
        """The manifest, or None where the role never ran; a damaged one counts as none."""
        try:
            with open(self.path, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def merged(self, **changes):
        """The present manifest with `changes`; what was added by an earlier run stays listed."""
        before = self.read() or {}
        content = {"role": self.role, "digest": "", "packages_added": [], "paths_added": [], "verify": []}
        content.update({key: value for key, value in before.items() if key in content})
        for key, value in changes.items():
            if key in ("packages_added", "paths_added"):
                value = content[key] + [item for item in value if item not in content[key]]
            content[key] = value
        return content

    def write(self, content):
        """Replace the file in one step; True when that changed it."""
        if content == self.read():
            return False
        os.makedirs(MANIFESTS, mode=0o755, exist_ok=True)
        partial = self.path + ".partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, sort_keys=True)
            file.write("\n")
        os.chmod(partial, 0o644)
        os.replace(partial, self.path)
        return True

    def remove(self):
        """Remove the file, and the folders above it once they are empty."""
        for path in (self.path, self.path + ".partial"):
            if os.path.lexists(path):
                os.unlink(path)
        for folder in (MANIFESTS, STATE_DIR):
            remove_if_empty(folder)


def render(content):
    """How a manifest, or its absence, looks in a diff."""
    return "" if content is None else json.dumps(content, indent=1, sort_keys=True) + "\n"


def verify_entry(entry):
    """Fill in checksum and mode of a {"path": ...} entry from what is on the disk; one with a mode stays as it is."""
    path = entry.get("path")
    if not path or "mode" in entry or not os.path.isfile(path):
        return entry
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return dict(entry, sha256=digest, mode="%04o" % stat.S_IMODE(os.stat(path).st_mode))


def present_paths(paths):
    """Those of `paths` that a removal would take away."""
    return [path for path in paths if os.path.lexists(path.rstrip("/"))]


def remove_path(path):
    """Remove one ``paths_added`` entry; a folder that somebody else put things in stays. True when something went."""
    bare = path.rstrip("/")
    if os.path.islink(bare) or os.path.isfile(bare):
        os.unlink(bare)
        return True
    if not os.path.isdir(bare):
        return False
    if not path.endswith("/"):
        return remove_if_empty(bare)
    if bare == STATE_DIR:
        return _remove_state()
    shutil.rmtree(bare)
    return True


def remove_if_empty(folder):
    """rmdir that takes a folder with content, or none at all, for an answer."""
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def _remove_state():
    """All of /var/lib/lambdactl but the manifests: each role removes its own."""
    gone = False
    for entry in os.listdir(STATE_DIR):
        path = os.path.join(STATE_DIR, entry)
        if path == MANIFESTS:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
        gone = True
    return gone
