# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""``type: service``: replicas of something that listens on a port.

Source: dstack's reference page of the service file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .container import PORT_MAPPING, PYTHON, RunFields, check_image_sources
from .engine import At, Kind, ListOf, Schema, Struct, key
from .fields import SPOT_POLICY, SWITCH, TEXT, TEXTS, Source
from .groups import check_no_references, check_references, unique_names
from .kinds import Choice
from .nodes import Problem, show
from .resources import COUNT_RANGE, RESOURCES, Resources, gpu_needs_image
from .serving import GATEWAY, HTTPS, MODEL, PROBES, RATE_LIMITS, SCALING, Model, Probe, RateLimit, Scaling
from .task import GROUP_NAME
from .values import Range


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """The router inside of a service."""

    type: str = key(Choice("sglang", "dynamo"), "The router.", default="sglang")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaGroup:
    """Replicas that run the same. Resources are not inherited from the service."""

    name: str = key(GROUP_NAME, "The group's name.", default="", nullable=True, default_text="its position")
    replicas: Range[int] = key(COUNT_RANGE, "How many replicas; `count` is an older name.", required=True)
    scaling: Scaling | None = key(SCALING, "How their number follows the requests.")
    resources: Resources = key(RESOURCES, "What each replica's node must have.", default=Resources())
    spot_policy: str | None = key(SPOT_POLICY, "Spot or on-demand instances.", default_text="that of the service")
    reservation: str | None = key(TEXT, "A cloud reservation.", default_text="that of the service")
    commands: tuple[str, ...] = key(TEXTS, "Their commands.", default=())
    image: str | None = key(TEXT, "Their container image.", default_text="that of the service")
    python: str | None = key(PYTHON, "Their Python version.", default_text="that of the service")
    nvcc: bool | None = key(SWITCH, "Have the CUDA compiler.", default_text="that of the service")
    docker: bool | None = key(SWITCH, "Docker inside.", default_text="that of the service")
    privileged: bool | None = key(SWITCH, "Privileged mode.", default_text="that of the service")
    router: Router | None = key(Struct(Router, "router"), "Run the service's router here; one group at most.")


def _check_group(group: ReplicaGroup, at: At) -> ReplicaGroup:
    check_image_sources(group, at)
    if group.docker and group.privileged is False:
        raise at.problem("privileged", "must not be false together with 'docker: true'")
    if group.router is not None and group.replicas != Range(1, 1):
        raise at.problem("router", "needs 'replicas: 1'")
    return replace(group, replicas=replicas_in_order(group.replicas, group.scaling, at))


def replicas_in_order(replicas: Range[int], scaling: Scaling | None, at: At) -> Range[int]:
    """The range with its lower bound filled in; dstack's rules for replicas and scaling."""
    if replicas.max is None:
        raise at.problem("replicas", "must have an upper bound, such as 0..4")
    replicas = Range(replicas.min or 0, replicas.max)
    if replicas.min != replicas.max and scaling is None:
        raise at.problem("replicas", f"is a range ({replicas}), which needs 'scaling'")
    if replicas.min == replicas.max and scaling is not None:
        raise at.problem("scaling", "needs 'replicas' to be a range such as 1..4")
    return replicas


REPLICA_GROUPS = ListOf(
    Struct(ReplicaGroup, "replica groups", aliases={"count": "replicas"}, check=_check_group), least=1
)


class _Replicas(Kind[Any]):
    """A number or a range; a list of groups is the older spelling of ``groups``."""

    label = COUNT_RANGE.label
    wanted = COUNT_RANGE.wanted

    def read(self, node: Any) -> Any:
        return REPLICA_GROUPS.read(node) if node.id == "sequence" else COUNT_RANGE.read(node)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"anyOf": [*COUNT_RANGE.schema(definitions)["anyOf"], REPLICA_GROUPS.schema(definitions)]}


class _ServicePort(Kind[int]):
    """A port, in any of the forms of a forwarded one; only the container's counts."""

    label = PORT_MAPPING.label
    wanted = PORT_MAPPING.wanted

    def read(self, node: Any) -> int:
        return PORT_MAPPING.read(node).container_port

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return PORT_MAPPING.schema(definitions)

    def structs(self) -> Sequence[Struct[Any]]:
        return (PORT_MAPPING,)


@dataclass(frozen=True, kw_only=True)
class ServiceSpec(RunFields):
    """A service file."""

    type: str = key(Choice("service"), "The kind of file.", required=True)
    port: int = key(_ServicePort(), "The port that the application listens on.", required=True)
    commands: tuple[str, ...] = key(
        TEXTS, "Commands, run by one shell in this order; the first failure ends them.", default=()
    )
    replicas: Range[int] = key(
        _Replicas(), "How many replicas; a range needs `scaling`.", default=Range(1, 1), nullable=True, default_text="1"
    )
    scaling: Scaling | None = key(SCALING, "How the number of replicas follows the requests.")
    groups: tuple[ReplicaGroup, ...] | None = key(
        REPLICA_GROUPS, "Groups of unlike replicas, in the place of `replicas`."
    )
    gateway: bool | str | None = key(GATEWAY, "A gateway's name; false for none.", default_text="none")
    strip_prefix: bool = key(SWITCH, "Strip the service's path before passing requests on.", default=True)
    model: Model | None = key(MODEL, "The model that the service serves, by name or in full.")
    https: bool | str | None = key(HTTPS, "HTTPS at the gateway.", default_text="true")
    auth: bool = key(SWITCH, "Ask for a token.", default=True)
    rate_limits: tuple[RateLimit, ...] = key(RATE_LIMITS, "Limits on requests.", default=())
    probes: tuple[Probe, ...] | None = key(
        PROBES,
        "Requests that tell whether a replica is ready.",
        default_text="a chat completion where `model` is set",
    )
    source: Source = Source("", "")


def _check_service(service: ServiceSpec, at: At) -> ServiceSpec:
    check_image_sources(service, at)
    check_no_references(service.env, at)
    older: object = service.replicas
    if isinstance(older, tuple):
        if service.groups is not None:
            raise at.problem("groups", "cannot be used together with 'replicas'; remove one")
        at = At(at.node, {**at.keys, "groups": at.keys["replicas"]})
        return _with_groups(service, older, at)
    if service.groups is not None:
        if at.has("replicas"):
            raise at.problem("replicas", "cannot be used together with 'groups'; each group has its own 'replicas'")
        return _with_groups(service, service.groups, at)
    if not service.commands and not service.image:
        raise Problem(at.node, "the service has neither 'commands' nor 'image'; give one of them")
    if gpu_needs_image(service.resources.gpu) and not service.image and not service.docker:
        raise at.problem("resources", "asks for GPUs that are not NVIDIA's, which needs an 'image'")
    replicas = service.replicas
    if at.has("replicas"):
        replicas = replicas_in_order(replicas, service.scaling, at)
    if service.schedule is not None and replicas.min == 0:
        raise at.problem("schedule", "cannot be used where 'replicas' may go down to 0")
    wrong = check_references(service.commands, [replicas.min or 0], "replicas")
    if wrong:
        raise at.problem("commands", wrong)
    return replace(service, replicas=replicas)


_EITHER_LEVEL = ("image", "docker", "privileged", "python", "nvcc", "spot_policy", "reservation")
_IMAGE_SOURCES = {
    "image": ("docker", "python", "nvcc"),
    "docker": ("image", "python", "nvcc"),
    "python": ("image", "docker"),
    "nvcc": ("image", "docker"),
}


def _with_groups(service: ServiceSpec, groups: tuple[ReplicaGroup, ...], at: At) -> ServiceSpec:
    for name in ("scaling", "commands"):
        if getattr(service, name):
            raise at.problem(name, "cannot be used together with 'groups'; give it in each group")
    groups = tuple(replace(group, name=group.name or str(index)) for index, group in enumerate(groups))
    unique_names([group.name for group in groups], at)
    routers = [index for index, group in enumerate(groups) if group.router is not None]
    if len(routers) > 1:
        raise _at_group(at, routers[1], "is the second one with a 'router'; one group at most may have it")
    sizes = [group.replicas.min or 0 for group in groups]
    if service.schedule is not None and not any(sizes):
        raise at.problem("schedule", "cannot be used where all replicas may go down to 0")
    for index, group in enumerate(groups):
        wrong = _group_problem(service, group) or check_references(group.commands, sizes, "replicas")
        if wrong:
            raise _at_group(at, index, wrong)
    return replace(service, groups=groups, replicas=Range(sum(sizes), sum(group.replicas.max or 0 for group in groups)))


def _at_group(at: At, index: int, text: str) -> Problem:
    return Problem(at.keys["groups"].value[index], text).under(index).under("groups")


def _group_problem(service: ServiceSpec, group: ReplicaGroup) -> str | None:
    """dstack's rules for what may stand at the service and what in a group."""
    for name in _EITHER_LEVEL:
        if getattr(service, name) and getattr(group, name) is not None:
            return f"has '{name}', which the service has too; keep one of them"
    for name, excluded in _IMAGE_SOURCES.items():
        for other in excluded:
            if getattr(service, name) and getattr(group, other) is not None:
                return f"has '{other}', which cannot be used together with the service's '{name}'"
    image = service.image or group.image
    if not group.commands and not image:
        return (
            f"({show(group.name)}) has neither 'commands' nor 'image', and the service has no 'image'; give one of them"
        )
    if gpu_needs_image(group.resources.gpu) and not (image or service.docker or group.docker):
        return "asks for GPUs that are not NVIDIA's, which needs an 'image'"
    return None


SERVICE = Struct(ServiceSpec, "service", check=_check_service)
