"""Where this project's Ansible content and the runner's zipapp come from: a checkout or an installed wheel alike."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
FOLDERS = ("playbooks", "roles", "inventory_plugins", "sandbox")
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
SHEBANG = b"#!/usr/bin/env -S python3 -I -S\n"
MAIN = b"use_compiled(sys.path[0])\nfrom lambdactl.node.__main__ import main\nleave(main())\n"


def root() -> Path:
    """The folder that holds playbooks/, roles/, inventory_plugins/, sandbox/ and ansible.cfg.

    In a wheel that is ``lambdactl/_content``, in a checkout the repository's root.
    """
    packaged = PACKAGE / "_content"
    return packaged if packaged.is_dir() else PACKAGE.parent


def path(*parts: str) -> Path:
    """A file or folder of the content, for example ``path("playbooks", "provision.yml")``.

    Raises FileNotFoundError naming what is missing (a damaged installation).
    """
    found = root().joinpath(*parts)
    if not found.exists():
        raise FileNotFoundError(f"{found} is missing: install lambdactl again")
    return found


def runner_files() -> list[tuple[str, bytes]]:
    """(name in the archive, content) of everything that the zipapp holds, in a fixed order."""
    files = [(f"lambdactl/node/{source.name}", source.read_bytes()) for source in (PACKAGE / "node").glob("*.py")]
    files = sorted([*files, ("lambdactl/__init__.py", b"")])
    digest = hashlib.sha256(b"".join(hashlib.sha256(name.encode() + b"\0" + data).digest() for name, data in files))
    start = (PACKAGE / "node" / "start.py").read_bytes() + MAIN
    return [("__main__.py", start.replace(b'SOURCES = ""', f'SOURCES = "{digest.hexdigest()}"'.encode())), *files]


@functools.cache
def runner_zipapp() -> bytes:
    """The runner as an executable zipapp: the same sources give the same bytes (fixed times, no compression)."""
    buffer = io.BytesIO()
    buffer.write(SHEBANG)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name, content in runner_files():
            info = zipfile.ZipInfo(name, ZIP_TIME)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()


@functools.cache
def runner_sha256() -> str:
    """Hex digest of the zipapp: what a node's ``runner`` fact is compared with."""
    return hashlib.sha256(runner_zipapp()).hexdigest()
