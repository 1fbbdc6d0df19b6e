"""Tools that task files ask for by name: Python releases, uv to get others, the CUDA compiler."""

from __future__ import annotations

import glob
import os
import re

from . import programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USER_FOLDERS = ("~/.local/bin", "~/.cargo/bin")


def find(home: str) -> dict[str, Any]:
    """What is in PATH and the usual folders; `home` is the login user's, whose own uv counts."""
    folders = [*programs.SEARCH.split(":"), *(folder.replace("~", home) for folder in USER_FOLDERS)]
    names = {os.path.basename(path) for folder in folders for path in glob.glob(folder + "/python3.*")}
    found = {match.group(1) for match in (re.fullmatch(r"python(3\.\d+)", name) for name in names) if match}
    return {
        "uv": programs.find("uv", *folders[-len(USER_FOLDERS) :]),
        "pythons": sorted(found, key=lambda text: int(text[2:])),
        "nvcc": programs.find("nvcc", "/usr/local/cuda/bin"),
    }
