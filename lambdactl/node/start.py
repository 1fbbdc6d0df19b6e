"""The beginning of the zipapp's `__main__.py`, before anything else: takes the modules from where `compile` left them.

A zipapp cannot keep what Python compiles, so that each start would compile every module that it needs from its source,
which is most of what a start costs. Where nothing was compiled for this runner and this Python, the sources are used.
"""

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
else:
    ModuleSpec = type(sys.__spec__)  # without loading `importlib`

SOURCES = ""  # the digest of all modules; `content.runner_zipapp` puts it here


def compiled_path() -> str:
    """Where the compiled modules of these sources lie, for the Python that runs this."""
    root, python = os.environ.get("LAMBDACTL_ROOT", "").rstrip("/"), sys.implementation.cache_tag
    return f"{root}/var/lib/lambdactl/compiled/{SOURCES}.{python}-{sys.hexversion:x}"


class Compiled:
    """Finds and loads modules from {name: marshalled code}; `archive` is the zipapp that holds their sources."""

    def __init__(self, archive: str, modules: "dict[str, bytes]") -> None:
        self.archive = archive
        self._modules = modules

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """See importlib.abc.MetaPathFinder."""
        if name not in self._modules:
            return None
        package = name in ("lambdactl", "lambdactl.node")
        return ModuleSpec(name, self, origin=f"{self.archive}/{name}", is_package=package)  # type: ignore[arg-type]  # a finder is its loader

    def create_module(self, spec: ModuleSpec) -> None:
        """See importlib.abc.Loader."""
        return

    def exec_module(self, module: "ModuleType") -> None:
        """See importlib.abc.Loader."""
        code: CodeType = marshal.loads(self._modules[module.__name__])  # noqa: S302 (see `use_compiled`)
        exec(code, module.__dict__)  # noqa: S102 (our own modules)


def use_compiled(archive: str) -> None:
    """Import the runner's modules from here on as `compile` left them, if it did, and nobody else can have.

    Only what belongs to root, or to whoever runs this, and what nobody else may write to, is executed.
    """
    try:
        with open(compiled_path(), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                return
            modules = marshal.load(file)  # noqa: S302 (root's file)
    except (OSError, ValueError, EOFError, TypeError):
        return
    sys.meta_path.insert(0, Compiled(archive, modules))


def leave(code: int) -> None:
    """End this process, without taking every module apart first where nothing needs that."""
    if "threading" in sys.modules:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed, or nobody reads it any more
            continue
    os._exit(code)
