"""`runner.pyz compile`: compiles the runner once for the Python of this node, so that no start has to; see `start`.

It leaves the modules, and `start.py`, which a session executes in the place of the archive: Python reads neither the
archive's directory nor what it needs to run an archive (together as much as a bare start of Python). Where the archive
is another than when this was made, or Python is, `start.py` executes the archive.

The role `runner` does it. After an upgrade of Python the next start of a rank does it again.
"""

from __future__ import annotations

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
START = FOLDER + "/start.py"
QUICK = """\
# Made by `runner.pyz compile`: starts what it has compiled, or the archive where that is another by now.
import marshal, os, sys

ROOT = os.environ.get("LAMBDACTL_ROOT", "").rstrip("/")
ARCHIVE, DIGEST = ROOT + "/opt/lambdactl/runner.pyz", ROOT + "/opt/lambdactl/runner.sha256"
STATE, SOURCES = {state!r}, {sources!r}


def compiled():
    try:
        now = os.stat(ARCHIVE)
        with open(DIGEST, "rb") as file:
            if [now.st_size, now.st_mtime_ns, file.read(80)] != STATE:
                return None
        name = "%s.%s-%x" % (SOURCES, sys.implementation.cache_tag, sys.hexversion)
        with open(ROOT + "/var/lib/lambdactl/compiled/" + name, "rb") as file:
            mine = os.fstat(file.fileno())
            if mine.st_uid not in (0, os.geteuid()) or mine.st_mode & 0o022:
                return None
            return marshal.load(file)
    except (OSError, ValueError, EOFError, TypeError):
        return None


modules = compiled()
sys.argv[0] = ARCHIVE
if modules is None:
    import runpy

    runpy.run_path(ARCHIVE, run_name="__main__")
else:
    sources = SOURCES
    exec(marshal.loads(modules["lambdactl.node.start"]))
    SOURCES = sources
    sys.meta_path.insert(0, Compiled(ARCHIVE, modules))
    from lambdactl.node.__main__ import main

    leave(main())
"""


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
    quick = _quick(sources)
    if quick is not None:
        paths.write_atomic(START, quick.encode(), 0o644)
    for name in os.listdir(FOLDER):
        path = f"{FOLDER}/{name}"
        try:
            if (
                not name.startswith((sources, "start.py")) and os.stat(path).st_mtime < time.time() - 60
            ):  # not one being written now
                os.unlink(path)
        except FileNotFoundError:
            continue


def _quick(sources: str) -> str | None:
    """What START is to be; None where this is not the installed runner, whose starts it is for."""
    try:
        if not os.path.samefile(paths.self_path(), paths.RUNNER):
            return None
        now = os.stat(paths.RUNNER)
        with open(paths.OPT + "/runner.sha256", "rb") as file:
            state = [now.st_size, now.st_mtime_ns, file.read(80)]
    except OSError:
        return None
    return QUICK.format(state=state, sources=sources)


def _is_there(target: str) -> bool:
    quick = _quick(os.path.basename(target).partition(".")[0])
    return os.path.exists(target) and (quick is None or paths.read_text(START) == quick)


def renew() -> None:
    """Compile again where that was done for another runner or another Python; without it everything works, slower."""
    target = _target()
    if target is not None and os.path.isdir(FOLDER) and not _is_there(target):
        try:
            _write(target)
        except OSError:  # no space is no reason for a run not to start
            return


def main(args: list[str]) -> int:
    """Compile unless it is done; says on standard output when it did."""
    target = _target()
    if args or target is None:
        raise NodeError("bad-request", "usage: runner.pyz compile")
    if not _is_there(target):
        paths.make_state_dirs()
        _write(target)
        sys.stdout.write("compiled\n")
    return 0
