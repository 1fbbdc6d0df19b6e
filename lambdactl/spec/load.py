"""Reading a file: bytes, type, model; every mistake becomes one SpecError with file and line."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

from yaml.nodes import ScalarNode

from lambdactl.errors import SpecError

from . import values
from .dev_environment import DEV_ENVIRONMENT, DevEnvironmentSpec
from .engine import Struct
from .fields import NAME, Source
from .fleet import FLEET, FleetSpec
from .kinds import OffDuration
from .nodes import MAX_BYTES, Problem, compose, describe, entries, escape, line_of, nearest, show
from .resources import CPU, GPU
from .service import SERVICE, ServiceSpec
from .task import TASK, TaskSpec
from .values import EnvVar, Range

T = TypeVar("T")
Spec: TypeAlias = FleetSpec | TaskSpec | DevEnvironmentSpec | ServiceSpec

FILES: Mapping[str, Struct[Any]] = {
    "fleet": FLEET,
    "task": TASK,
    "dev-environment": DEV_ENVIRONMENT,
    "service": SERVICE,
}
KINDS: tuple[str, ...] = tuple(FILES)
_FOREIGN = ("gateway", "preset", "volume")
"""Types that dstack knows and lambdactl has no use for."""


@overload
def load(path: str | os.PathLike[str], *, kind: Literal["fleet"]) -> FleetSpec: ...


@overload
def load(path: str | os.PathLike[str], *, kind: str | None = None) -> Spec: ...


def load(path: str | os.PathLike[str], *, kind: str | None = None) -> Spec:
    """Reads a file; ``-`` is standard input.

    Args:
        path: the file.
        kind: the only type that is wanted (one of KINDS); None: any.

    Raises:
        SpecError: the file cannot be read, or something in it is wrong.
    """
    name = os.fspath(path)
    shown = "<stdin>" if name == "-" else escape(name)
    try:
        if name == "-":
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"the file cannot be read: {error.strerror or error}", filename=shown) from None
    except ValueError:
        raise SpecError("the file cannot be read: its name is not valid", filename=shown) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError("the file is not UTF-8 text; save it as UTF-8", filename=shown, line=line) from None
    return loads(text, filename=shown, kind=kind)


@overload
def loads(text: str, *, filename: str = "<string>", kind: Literal["fleet"]) -> FleetSpec: ...


@overload
def loads(text: str, *, filename: str = "<string>", kind: str | None = None) -> Spec: ...


def loads(text: str, *, filename: str = "<string>", kind: str | None = None) -> Spec:
    """Reads a file's text; as :func:`load`."""
    try:
        root = compose(text.removeprefix("\ufeff"))
        given = _type(root, kind)
        spec: Spec = FILES[given].read(root)
    except Problem as problem:
        raise SpecError(problem.sentence(), filename=filename, line=problem.line) from None
    return dataclasses.replace(spec, source=Source(filename, text))


def _type(root: Any, kind: str | None) -> str:
    found = [(key_node, value) for name, key_node, value in entries(root) if name == "type"]
    allowed = ", ".join(KINDS)
    if not found:
        raise Problem(root, f"the file has no 'type'; allowed: {allowed}")
    _, node = found[0]
    given = node.value if isinstance(node, ScalarNode) else None
    if given not in FILES:
        if given in _FOREIGN:
            raise Problem(node, f"files of the type '{given}' have no use here; allowed: {allowed}")
        meant = nearest(given, KINDS) if given else None
        raise Problem(
            node,
            f"'type' must be one of {allowed}, not {describe(node)}" + (f"; did you mean '{meant}'?" if meant else ""),
        )
    if kind is not None and given != kind:
        raise Problem(node, f"this is a {given} file; a {kind} file is wanted here")
    return str(given)


def _option(reader: Callable[[str], T], text: str, name: str) -> T:
    try:
        return reader(text)
    except ValueError as error:
        raise SpecError(f"'{escape(name)}' {error}") from None


def parse_name(text: str, *, name: str = "name") -> str:
    """A run's or a fleet's name as given on the command line; SpecError when the files would not take it."""
    if NAME.pattern is not None and NAME.pattern.fullmatch(text) is None:
        raise SpecError(f"'{escape(name)}' must be {NAME.wanted}, not {show(text)}")
    return text


def parse_range(text: str, *, name: str = "range") -> Range[int]:
    """``8``, ``2..8``, ``2..`` or ``..8``; SpecError names it ``name``."""
    return _option(values.read_whole_range, text, name)


def parse_memory(text: str, *, name: str = "memory") -> Range[float]:
    """``16GB``, ``16GB..``, ``..80GB`` or ``40GB..80GB``, in GB."""
    return _option(values.read_size_range, text, name)


def parse_size(text: str, *, name: str = "size") -> float:
    """``512MB``, ``16GB`` or ``1TB``, in GB."""
    return _option(values.read_size, text, name)


def parse_cpu(text: str, *, name: str = "cpu") -> CPU:
    """``4``, ``2..8``, ``x86:16`` or ``arm:8..``."""
    return CPU(**_option(values.read_cpu, text, name))


def parse_gpu(text: str, *, name: str = "gpu") -> GPU:
    """``8``, ``H100:8``, ``nvidia:B200:80GB..:1..8``, parts in any order."""
    return GPU(**_option(values.read_gpu, text, name))


def parse_duration(text: str | int | bool | None, *, default: int | None = None, name: str = "duration") -> int | None:
    """Seconds of ``90``, ``90s``, ``5m``, ``2h``, ``1d``, ``1w``; None is off (``off``, ``false``, False).

    True and None give ``default``.
    """
    if text is None or text is True:
        return default
    if text is False or text in ("off", "false"):
        return None
    return _option(_off_reader, str(text), name)


def _off_reader(text: str) -> int:
    try:
        return values.read_duration(text)
    except ValueError:
        raise ValueError(f"must be {OffDuration.wanted}, not {show(text)}") from None


def parse_env_item(text: str, *, name: str = "-e") -> EnvVar:
    """``NAME=value`` or ``NAME`` (value None: from the caller's environment)."""
    return _option(values.read_env, text, name)


def parse_ports(text: str, *, name: str = "-p") -> tuple[int | None, int]:
    """``8501``, ``80:8080`` or ``*:8080``: the local port (None: any free one) and the one of the run."""
    return _option(values.read_ports, text, name)


def merge_env(*layers: tuple[EnvVar, ...]) -> tuple[EnvVar, ...]:
    """The variables of all layers; a later layer wins, the place of the first mention stays."""
    merged: dict[str, EnvVar] = {}
    for layer in layers:
        merged.update({variable.name: variable for variable in layer})
    return tuple(merged.values())


def resolve_env(env: tuple[EnvVar, ...], environ: Mapping[str, str]) -> dict[str, str]:
    """Values for all variables, bare ones from ``environ``.

    Raises:
        SpecError: a bare variable is not set there.
    """
    missing = [variable.name for variable in env if variable.value is None and variable.name not in environ]
    if missing:
        names = ", ".join(missing)
        raise SpecError(f"the environment has no value for {names}; set it, or pass -e {missing[0]}=...")
    return {variable.name: environ[variable.name] if variable.value is None else variable.value for variable in env}


def line_in(spec: Spec, key: str) -> int | None:
    """The line where a top-level key of a spec's file stands: for errors that are found later."""
    try:
        return next((line_of(node) for name, node, _ in entries(compose(spec.source.text)) if name == key), None)
    except Problem:
        return None


@contextlib.contextmanager
def placed(spec: Spec, key: str) -> Iterator[None]:
    """Gives an error that has no place the file of a spec and the line of a top-level key."""
    try:
        yield
    except SpecError as error:
        if error.filename is not None or not spec.source.filename:
            raise
        raise SpecError(error.message, filename=spec.source.filename, line=line_in(spec, key)) from None
