# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""``type: dev-environment``: a node to work on, from an IDE or over SSH.

Source: dstack's reference page of the dev environment file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .container import PORT_MAPPING, PortMapping, RunFields, check_image_sources
from .engine import At, ListOf, Struct, key
from .fields import TEXT, TEXTS, Source
from .groups import check_no_references, check_references
from .kinds import Choice, OffDuration
from .nodes import show
from .resources import gpu_needs_image


@dataclass(frozen=True, kw_only=True)
class DevEnvironmentSpec(RunFields):
    """A dev environment file."""

    type: str = key(Choice("dev-environment"), "The kind of file.", required=True)
    ide: str | None = key(
        Choice("vscode", "cursor", "windsurf", "zed"), "The IDE to prepare.", default_text="none: SSH only"
    )
    version: str | None = key(TEXT, "The IDE's version; for `windsurf`, `version@commit`.")
    init: tuple[str, ...] = key(TEXTS, "Commands that run at the start.", default=())
    inactivity_duration: int | None = key(
        OffDuration(None), "Stop after so long without a connection.", default_text="off"
    )
    ports: tuple[PortMapping, ...] = key(ListOf(PORT_MAPPING), "Ports to forward to your machine.", default=())
    source: Source = Source("", "")


def _check(spec: DevEnvironmentSpec, at: At) -> DevEnvironmentSpec:
    check_image_sources(spec, at)
    check_no_references(spec.env, at)
    if spec.entrypoint is not None:
        raise at.problem("entrypoint", "cannot be used in a dev environment; remove it")
    if spec.version and spec.ide is None:
        raise at.problem("version", "needs 'ide'")
    if spec.ide == "windsurf" and spec.version and not re.fullmatch(r".+@[a-f0-9]+", spec.version):
        raise at.problem("version", f"must be version@commit for windsurf, not {show(spec.version)}")
    if spec.dstack and spec.inactivity_duration is not None:
        raise at.problem("dstack", "cannot be used together with 'inactivity_duration'; remove one")
    if gpu_needs_image(spec.resources.gpu) and not spec.image and not spec.docker:
        raise at.problem("resources", "asks for GPUs that are not NVIDIA's, which needs an 'image'")
    wrong = check_references(spec.init, [1], "nodes")
    if wrong:
        raise at.problem("init", wrong)
    return spec


DEV_ENVIRONMENT = Struct(DevEnvironmentSpec, "dev environment", check=_check)
