"""Tools that task files ask for by name: Python releases, uv to get others, the CUDA compiler."""

from __future__ import annotations

import os

from . import light, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USER_FOLDERS = ("~/.local/bin", "~/.cargo/bin")


def _minor(version: str) -> int:
    return int(version[2:])


def _makes_venvs(path: str, version: str) -> bool:
    """Whether a Python can make virtual environments with pip: Debian and Ubuntu have that in a package of its own."""
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(path)))
    return any(os.path.isdir(f"{prefix}/{lib}/python{version}/ensurepip") for lib in ("lib", "lib64"))


def find(home: str) -> dict[str, Any]:
    """What is in PATH and the usual folders; `home` is the login user's, whose own uv counts."""
    folders = [*programs.SEARCH.split(":"), *(folder.replace("~", home) for folder in USER_FOLDERS)]
    paths = [path for folder in folders for path in light.named(folder, "python3.")]
    found = {os.path.basename(path)[6:]: path for path in paths if os.path.basename(path)[8:].isdigit()}
    whole = {version for version, path in found.items() if _makes_venvs(path, version)}
    return {
        "uv": programs.find("uv", *folders[-len(USER_FOLDERS) :]),
        "pythons": sorted(whole, key=_minor),
        "pythons_without_venv": sorted(found.keys() - whole, key=_minor),
        "nvcc": programs.find("nvcc", "/usr/local/cuda/bin"),
    }
