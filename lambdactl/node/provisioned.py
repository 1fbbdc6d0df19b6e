"""What roles have installed here, and whether it is still so: each role leaves a manifest that says what to look at.

Verify items: {"path", "sha256"?, "mode"?}, {"package"}, {"line", "in"}, {"absent"}.
"""

from __future__ import annotations

import os
import time

from . import paths, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 1 << 20
DPKG = "/var/lib/dpkg"
DIGESTS = paths.STATE + "/digests.answer.json"
SETTLED = 2.0
MOST_DIGESTS = 200


def manifests() -> dict[str, dict[str, Any]]:
    """The manifest of each role; an unreadable one is empty."""
    found = {}
    try:
        names = sorted(os.listdir(paths.PROVISIONED))
    except OSError:
        return {}
    for name in names:
        role = name[:-5] if name.endswith(".json") else ""
        if paths.is_role_name(role):
            value = paths.read_json(f"{paths.PROVISIONED}/{name}")
            found[role] = value if isinstance(value, dict) else {}
    return found


def sha256(path: str) -> str:
    """Hex digest of a file, read in pieces."""
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(CHUNK), b""):
            digest.update(block)
    return digest.hexdigest()


def known_sha256(path: str) -> str:
    """Hex digest of a file, computed once while the file is as it was; both digests of the runner are asked for."""
    known = paths.read_json(DIGESTS)
    known = known if isinstance(known, dict) else {}
    state = programs.state_of(path)
    if path in known and known[path][:-1] == state:
        return str(known[path][-1])
    digest = sha256(path)
    # A file that was changed within a tick of the clock may change once more without another time.
    if state and time.time() - max(state[-2:]) / 1e9 > SETTLED and os.access(paths.STATE, os.W_OK):
        paths.write_json(DIGESTS, {**dict(list(known.items())[-MOST_DIGESTS:]), path: [*state, digest]})
    return digest


def _verify_path(item: dict[str, Any]) -> str | None:
    path = paths.ROOT + str(item["path"])
    try:
        mode = os.stat(path).st_mode & 0o7777
        if item.get("sha256") and known_sha256(path) != item["sha256"]:
            return f"{item['path']} was changed"
    except OSError as error:
        return f"{item['path']}: {error.strerror}"
    wanted = item.get("mode")
    if wanted is not None and mode != (int(wanted, 8) if isinstance(wanted, str) else int(wanted)):
        return f"{item['path']} has mode {mode:04o}, {wanted} expected"
    return None


def _verify_line(item: dict[str, Any]) -> str | None:
    missing = str(item["line"]) not in paths.read_text(paths.ROOT + str(item["in"])).splitlines()
    return f"a line is missing in {item['in']}" if missing else None


def _verify_absent(item: dict[str, Any]) -> str | None:
    return f"{item['absent']} is back" if os.path.lexists(paths.ROOT + str(item["absent"])) else None


CHECKS = {"path": _verify_path, "line": _verify_line, "absent": _verify_absent}


def _items(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    items = manifest.get("verify")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def start_package_query(found: dict[str, dict[str, Any]]) -> programs.Program | None:
    """Start one dpkg-query for all packages of all manifests, or None when there is nothing to ask."""
    packages = sorted(
        {str(item["package"]) for manifest in found.values() for item in _items(manifest) if "package" in item}
    )
    program = programs.find("dpkg-query")
    if not packages or program is None:
        return None
    names = [name for name in packages if name[:1].isalnum()]
    argv = [program, "-W", "-f", "${db:Status-Status} ${Package}\\n", "--", *names]
    if _dpkg_works_now():
        return programs.Program(argv)
    return programs.Remembered(argv, DPKG + "/status")


def _dpkg_works_now() -> bool:
    """Whether changes may be in dpkg's journal that are not in its status file yet."""
    try:
        return bool(os.listdir(DPKG + "/updates"))
    except OSError:
        return True


def _drift(manifest: dict[str, Any], installed: set[str]) -> list[str]:
    if not manifest:
        return ["the manifest cannot be read"]
    if not manifest.get("digest"):
        return ["the role was interrupted before its end"]
    drift = []
    for item in _items(manifest):
        try:
            if "package" in item:
                known = str(item["package"]).partition(":")[0] in installed
                problem = None if known else f"package {item['package']} is not installed"
            else:
                check = next((CHECKS[key] for key in CHECKS if key in item), None)
                problem = check(item) if check is not None else f"cannot verify {sorted(item)}"
        except (ValueError, TypeError, KeyError):
            problem = f"cannot verify {str(item)[:80]}"
        if problem:
            drift.append(problem)
    return drift


def report(
    found: dict[str, dict[str, Any]],
    query: programs.Program | None,
    wanted: dict[str, Any],
    problems: list[str],
) -> dict[str, dict[str, Any]]:
    """{role: {digest, drift}}; for a role with a wanted digest also `current`: nothing to do for it."""
    text = query.result(problems)[1] if query is not None else ""
    installed = {line.split()[1] for line in text.splitlines() if line.startswith("installed ")}
    roles: dict[str, dict[str, Any]] = {}
    for role, manifest in found.items():
        roles[role] = {"digest": manifest.get("digest"), "drift": _drift(manifest, installed)}
        if role in wanted:
            roles[role]["current"] = manifest.get("digest") == wanted[role] and not roles[role]["drift"]
    return roles
