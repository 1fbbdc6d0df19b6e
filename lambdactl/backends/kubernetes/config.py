"""Which clusters are meant: from the configuration files, the kubeconfig, the environment and the fleet file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl.errors import SpecError

from .kubeconfig import Kubeconfig, read_kubeconfig
from .settings import BackendSettings, FilesVolume, JumpAddress, read_settings

if TYPE_CHECKING:
    from lambdactl.spec import FleetSpec

__all__ = ["JumpAddress", "Target", "find_target", "fleet_targets", "targets"]


@dataclass(frozen=True, slots=True)
class Target:
    """One cluster and the namespace in it.

    Attributes:
        region: what fleet files call it: the context's name, or "" where the configuration names no contexts.
        context: the kubeconfig's context.
        namespace: where everything is made.
        kubeconfig: how to log in.
        proxy_jump: where the jump pod is reached; None: there shall be none.
        rdma_resource: the nodes' RDMA resource where the configuration names one.
        image: the image of runs that name none.
        jump_image: the jump pod's image.
        probe_image: the image in which services' probes are asked that a kubelet cannot ask.
        proxy_image: the image of the proxy in front of services.
        queue: Kueue's LocalQueue.
        files_volume: where the files of runs stay.
        controller_image: the image of the pods that start a schedule's runs; it has lambdactl in it.
        origin: the file that this comes from, for messages.
        notes: what the user should know about it, one sentence each.
    """

    region: str
    context: str
    namespace: str
    kubeconfig: Kubeconfig
    proxy_jump: JumpAddress | None = None
    rdma_resource: str | None = None
    image: str | None = None
    jump_image: str | None = None
    probe_image: str | None = None
    proxy_image: str | None = None
    queue: str | None = None
    files_volume: FilesVolume | None = None
    controller_image: str | None = None
    origin: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What people call it."""
        return self.region or self.context


def config_files(environ: Mapping[str, str] = os.environ) -> list[tuple[Path, bool]]:
    """The configuration files that may exist, the first one wins; and whether it is our own."""
    home = Path(environ.get("HOME") or "~").expanduser()
    ours = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "lambdactl" / "config.yml"
    return [(ours, True), (home / ".dstack" / "server" / "config.yml", False)]


def targets(
    kubeconfig: str | None = None, context: str | None = None, *, environ: Mapping[str, str] = os.environ
) -> tuple[Target, ...]:
    """All clusters that are configured, in the configuration's order.

    Args:
        kubeconfig: a kubeconfig to use in the place of every configuration (``--kubeconfig``).
        context: only this context (``--context``).
        environ: LAMBDACTL_KUBECONFIG and LAMBDACTL_CONTEXT stand for the two; KUBECONFIG is kubectl's.

    Raises:
        SpecError: nothing is configured, or what is configured is wrong.
    """
    kubeconfig = kubeconfig or environ.get("LAMBDACTL_KUBECONFIG") or None
    context = context or environ.get("LAMBDACTL_CONTEXT") or None
    if kubeconfig is None:
        for path, ours in config_files(environ):
            if path.is_file() and (
                settings := read_settings(path, ours=ours, project=environ.get("LAMBDACTL_PROJECT"))
            ):
                return _configured(settings, context, environ)
    found = read_kubeconfig(kubeconfig, environ=environ)
    name = found.context(context)
    return (Target("", name, found.namespace(name) or "default", found, origin=found.shown),)


def find_target(fleet: FleetSpec | None = None, *, kubeconfig: str | None = None, context: str | None = None) -> Target:
    """The one cluster that is meant.

    Raises:
        SpecError: none, or more than one, can be meant.
    """
    found = fleet_targets(fleet, kubeconfig=kubeconfig, context=context)
    if len(found) > 1:
        names = ", ".join(target.name for target in found)
        raise SpecError(
            f"several clusters are configured ({names}); choose one with `regions: [{found[0].name}]` in the fleet "
            f"file, or with LAMBDACTL_CONTEXT={found[0].name}.",
            filename=found[0].origin,
        )
    return found[0]


def fleet_targets(
    fleet: FleetSpec | None, *, kubeconfig: str | None = None, context: str | None = None
) -> tuple[Target, ...]:
    """The clusters that a fleet file means: all that are configured, or those of its ``regions``.

    Raises:
        SpecError: none is configured, or a region is unknown.
    """
    from lambdactl.spec import line_in

    found = targets(kubeconfig, context)
    if fleet is None or not fleet.regions:
        return found
    known = {target.name: target for target in found}
    for region in fleet.regions:
        if region not in known:
            raise SpecError(
                f"the region '{region}' is not a configured context; there are: {', '.join(known)}.",
                filename=fleet.source.filename,
                line=line_in(fleet, "regions"),
            )
    return tuple(known[region] for region in dict.fromkeys(fleet.regions))


def _configured(settings: BackendSettings, context: str | None, environ: Mapping[str, str]) -> tuple[Target, ...]:
    given = settings.kubeconfig
    base = Path(settings.filename).parent
    if given is None:
        found = read_kubeconfig(None, environ=environ)
    elif given.data is not None:
        found = Kubeconfig.from_text(given.data, shown=f"{settings.filename} (kubeconfig.data)", base=base)
    else:
        found = read_kubeconfig(str(base / Path(given.filename).expanduser()), environ=environ)
    if settings.contexts is None:
        return (_legacy(settings, found, context),)
    chosen = [entry for entry in settings.contexts if context in (None, entry.name)]
    if not chosen:
        raise _unknown(context or "", [entry.name for entry in settings.contexts], settings.filename)
    result = []
    for entry in chosen:
        name = found.context(entry.name, where=(settings.filename, entry.line))
        namespace = found.namespace(name) or "default"
        result.append(_target(settings, found, name, namespace, region=name, jump=entry.proxy_jump))
    return tuple(result)


def _legacy(settings: BackendSettings, found: Kubeconfig, context: str | None) -> Target:
    """Without ``contexts``: the current context, and dstack's rule for the namespace."""
    name = found.context(context)
    namespace = settings.namespace or "default"
    other = found.namespace(name)
    notes: tuple[str, ...] = ()
    if other is not None and other != namespace:
        notes = (
            f"the namespace is '{namespace}' by {settings.filename}, although the context '{name}' says '{other}'; "
            "set `namespace` there, or use `contexts`.",
        )
    return _target(settings, found, name, namespace, region="", jump=settings.proxy_jump, notes=notes)


def _target(
    settings: BackendSettings,
    found: Kubeconfig,
    context: str,
    namespace: str,
    *,
    region: str,
    jump: JumpAddress | None,
    notes: tuple[str, ...] = (),
) -> Target:
    return Target(
        region=region,
        context=context,
        namespace=namespace,
        kubeconfig=found,
        proxy_jump=jump,
        rdma_resource=settings.rdma_resource,
        image=settings.image,
        jump_image=settings.jump_image,
        probe_image=settings.probe_image,
        proxy_image=settings.proxy_image,
        queue=settings.queue,
        files_volume=settings.files_volume,
        controller_image=settings.controller_image,
        origin=settings.filename,
        notes=notes,
    )


def _unknown(context: str, known: Sequence[str], filename: str) -> SpecError:
    return SpecError(f"the context '{context}' is not configured; there are: {', '.join(known)}.", filename=filename)
