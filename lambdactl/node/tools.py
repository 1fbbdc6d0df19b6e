"""Tools that task files ask for by name: Python releases, uv to get others, the CUDA compiler."""

from __future__ import annotations

import os

from . import programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USER_FOLDERS = ("~/.local/bin", "~/.cargo/bin")
# Each is asked for by its name: a folder of programs has more entries than all of these together.
RELEASES = [f"3.{minor}" for minor in range(6, 30)]


def _minor(version: str) -> int:
    return int(version[2:])


def _makes_venvs(path: str, version: str) -> bool:
    """Whether a Python can make virtual environments with pip: Debian and Ubuntu have that in a package of its own."""
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(path)))
    return any(os.path.isdir(f"{prefix}/{lib}/python{version}/ensurepip") for lib in ("lib", "lib64"))


def find(home: str) -> dict[str, Any]:
    """What is in PATH and the usual folders; `home` is the login user's, whose own uv counts."""
    folders = [*programs.SEARCH.split(":"), *(folder.replace("~", home) for folder in USER_FOLDERS)]
    places = [(version, f"{folder}/python{version}") for folder in folders for version in RELEASES]
    found = {version: path for version, path in places if os.access(path, os.X_OK)}
    whole = {version for version, path in found.items() if _makes_venvs(path, version)}
    return {
        "uv": programs.find("uv", *folders[-len(USER_FOLDERS) :]),
        "pythons": sorted(whole, key=_minor),
        "pythons_without_venv": sorted(found.keys() - whole, key=_minor),
        "nvcc": programs.find("nvcc", "/usr/local/cuda/bin"),
    }
