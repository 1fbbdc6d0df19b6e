"""Imports asyncssh without the compiler: what looks for its optional C libraries is kept to the linker's cache.

asyncssh asks `ctypes.util.find_library` for liboqs and nettle. Where the cache does not know a library, that runs gcc
and ld for each of its names, which takes longer than a login and never finds what the loader would not.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def import_asyncssh() -> None:
    """Import asyncssh, once.

    Raises:
        ImportError: it is not installed.
    """
    if "asyncssh" in sys.modules:
        return
    import ctypes.util

    names = vars(ctypes.util)
    usual: Callable[[str], str | None] = ctypes.util.find_library
    names["find_library"] = names.get("_findSoname_ldconfig", usual)  # CPython's own first look, on Linux
    try:
        import asyncssh  # noqa: F401 (for its side effect)
    finally:
        names["find_library"] = usual
