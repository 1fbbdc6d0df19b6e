"""`runner.pyz compile`: compiles the runner once for the Python of this node, so that no start has to; see `start`.

The role `runner` does it. After an upgrade of Python the next start of a rank does it again.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import sys
import time

from . import paths
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = paths.STATE + "/compiled"


def _target() -> str | None:
    """The file that `start` looks for; None where this is not the zipapp."""
    begun = sys.modules["__main__"]
    return begun.compiled_path() if getattr(begun, "SOURCES", None) else None


def _modules(archive: str) -> Iterator[tuple[str, bytes]]:
    import zipfile

    with zipfile.ZipFile(archive) as sources:
        for file in sources.namelist():
            name = file[:-3].replace("/", ".").replace(".__init__", "")
            if name != "__main__":
                code = compile(sources.read(file), f"{archive}/{file}", "exec", dont_inherit=True)
                yield name, marshal.dumps(code)


def _write(target: str) -> None:
    os.makedirs(FOLDER, mode=0o755, exist_ok=True)
    paths.write_atomic(target, marshal.dumps(dict(_modules(paths.self_path()))), 0o644)
    sources = os.path.basename(target).partition(".")[0]
    for name in os.listdir(FOLDER):
        path = f"{FOLDER}/{name}"
        with contextlib.suppress(FileNotFoundError):
            if not name.startswith(sources) and os.stat(path).st_mtime < time.time() - 60:  # not one being written now
                os.unlink(path)


def renew() -> None:
    """Compile again where that was done for another runner or another Python; without it everything works, slower."""
    target = _target()
    if target is not None and os.path.isdir(FOLDER) and not os.path.exists(target):
        try:
            _write(target)
        except OSError:  # no space is no reason for a run not to start
            return


def main(args: list[str]) -> int:
    """Compile unless it is done; says on standard output when it did."""
    target = _target()
    if args or target is None:
        raise NodeError("bad-request", "usage: runner.pyz compile")
    if not os.path.exists(target):
        paths.make_state_dirs()
        _write(target)
        sys.stdout.write("compiled\n")
    return 0
