"""Files of a ConfigMap's or Secret's volume, changed all at once as the kubelet's atomic writer does it.

A folder that begins with two dots has the files, `..data` is a link to it, and each name is a link through `..data`; a
change makes another folder and turns the one link.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

Files = dict[str, tuple[bytes, int]]
"""Paths in the volume to content and mode."""


def write(volume: Path, source: str, files: Files) -> None:
    """Make the volume have these files of that source (a projected volume has several)."""
    data = volume / f"..data-{source}"
    folder = volume / f"..{uuid.uuid4().hex[:8]}"
    for name, (content, mode) in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
    folder.mkdir(exist_ok=True)
    before = volume / os.readlink(data) if data.is_symlink() else None
    if before is not None and _same(before, folder):
        shutil.rmtree(folder)
        return
    turned = volume / f"..new-{source}"
    turned.symlink_to(folder.name)
    turned.replace(data)
    tops = {Path(name).parts[0] for name in files}
    for link in volume.iterdir():
        mine = link.is_symlink() and os.readlink(link).startswith(f"{data.name}/")
        if mine and link.name not in tops:
            link.unlink()
    for name in tops:
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"{data.name}/{name}")
    if before is not None:
        shutil.rmtree(before)


def _same(one: Path, other: Path) -> bool:
    return _held(one) == _held(other)


def _held(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode) for path in found}
