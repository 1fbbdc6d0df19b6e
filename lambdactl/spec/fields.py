# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""What the kinds of files share: names, environment, policies, container settings, mounts.

The fields that every run takes (task, dev environment, service) are declared once here, as bases of their dataclasses.
Source: dstack's reference pages of ``.dstack.yml`` and ``profiles.yml``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import values
from .engine import At, Either, ListOf, Struct, key
from .kinds import Blocks, Choice, Duration, Number, OffDuration, Read, Switch, Text, Whole
from .mappings import Table
from .nodes import Problem

NAME = Text(r"[a-z][a-z0-9-]{1,40}", "2 to 41 lower-case letters, digits and '-', starting with a letter", label="name")
TEXT = Text()
SWITCH = Switch()
TEXTS = ListOf(TEXT)
PORT = Whole(1, 65535, what="a port")
BLOCKS = Blocks()

TAGS = Table(
    Text(r"[_\-a-zA-Z0-9]{1,60}", "1 to 60 letters, digits, '_' and '-'"),
    Text(r"[a-zA-Z0-9 .:/=_\-+@]{0,256}", "at most 256 letters, digits, spaces and . : / = _ - + @"),
    "mapping of text to text",
)
BACKENDS = ListOf(
    Choice(
        *("amddevcloud", "aws", "azure", "cloudrift", "crusoe", "cudo", "datacrunch", "digitalocean", "dstack", "gcp"),
        *("hotaisle", "jarvislabs", "kubernetes", "lambda", "nebius", "oci", "remote", "runpod", "slurm", "tensordock"),
        *("vastai", "verda", "vultr"),
    )
)
SPOT_POLICY = Choice("spot", "on-demand", "auto")
MAX_PRICE = Number("a price above 0", above=0)

RETRY_EVENTS = ("no-capacity", "interruption", "error")
IDLE_RUN = 5 * 60
IDLE_FLEET = 3 * 86400


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a spec was read from."""

    filename: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When to try again, and for how long (seconds)."""

    on_events: tuple[str, ...] = key(
        ListOf(Choice(*RETRY_EVENTS), least=1),
        "Events that are retried.",
        default=RETRY_EVENTS,
        nullable=True,
        default_text="all",
    )
    duration: int = key(Duration(), "How long retries go on.", default=3600, nullable=True, default_text="1h")


class _RetryKind(Either):
    """``true`` is every event for an hour, ``false`` is None."""

    def read(self, node: Any) -> Retry | None:
        value = super().read(node)
        return Retry() if value is True else None if value is False else value


RETRY = _RetryKind(SWITCH, Struct(Retry, "retry"))


@dataclass(frozen=True, slots=True, kw_only=True)
class VastaiOptions:
    """Options of the Vast.ai backend; accepted, and of no effect here."""

    type: str = key(Choice("vastai"), "The backend.", default="vastai")
    offer_order: str | None = key(Choice("score", "price"), "Order of offers.")
    min_reliability: float | None = key(Number("a number from 0 to 1", least=0, most=1), "The least reliability.")
    min_score: int | None = key(Whole(0), "The least score.")


def _one_each(options: tuple[VastaiOptions, ...], node: Any) -> None:
    if len(options) > 1:
        raise Problem(node.value[1], "has a second entry for the backend 'vastai'; remove one")


BACKEND_OPTIONS = ListOf(Struct(VastaiOptions, "backend_options"), check=_one_each)


@dataclass(frozen=True, kw_only=True)
class OfferFields:
    """Where a cloud backend looks for instances; accepted everywhere, of no effect on SSH fleets."""

    backends: tuple[str, ...] | None = key(BACKENDS, "Backends to use.", default_text="all")
    regions: tuple[str, ...] | None = key(TEXTS, "Regions to use; on Kubernetes, contexts.", default_text="all")
    availability_zones: tuple[str, ...] | None = key(TEXTS, "Availability zones to use.", default_text="all")
    instance_types: tuple[str, ...] | None = key(TEXTS, "Instance types to use.", default_text="all")
    reservation: str | None = key(TEXT, "A cloud reservation (AWS, GCP).")
    spot_policy: str | None = key(SPOT_POLICY, "Spot or on-demand instances.", default_text="`on-demand`")
    max_price: float | None = key(MAX_PRICE, "The highest price of an instance, dollars an hour.", default_text="any")
    backend_options: tuple[VastaiOptions, ...] | None = key(BACKEND_OPTIONS, "Options of one backend.")
    tags: dict[str, str] | None = key(TAGS, "Tags of the cloud resources.")


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilizationPolicy:
    """Stop a run whose GPUs idle."""

    min_gpu_utilization: int = key(
        Whole(0, 100, what="a percentage"), "The least use of every GPU, percent.", required=True
    )
    time_window: int = key(Duration(least=300), "For how long; 5 minutes at least.", required=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When to start the run."""

    cron: tuple[str, ...] = key(
        ListOf(
            Read(values.read_cron, "cron expression", "a cron expression", {"type": "string"}), least=1, single=True
        ),
        "Cron expressions of 5 fields, in UTC, Monday is 0.",
        required=True,
    )


def read_reference(text: str) -> str:
    """``name`` or ``project/name``."""
    parts = text.split("/")
    if len(parts) > 2 or not all(parts):
        raise ValueError("must be a name, or project/name")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    project: str | None = key(TEXT, "The project.")
    name: str = key(TEXT, "The name.", required=True)


class _ReferenceKind(Struct[Any]):
    """A name with an optional project, as text: ``project/name``."""

    def read(self, node: Any, **extra: Any) -> str:
        reference = super().read(node, **extra)
        return reference.name if reference.project is None else f"{reference.project}/{reference.name}"


REFERENCE = _ReferenceKind(
    _Reference,
    "reference",
    shorthand=Read(lambda text: {"name": read_reference(text)}, "name", "a name, or project/name", {"type": "string"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSelector:
    """One instance of a fleet: by its name, by its host name, or by fleet and number."""

    name: str | None = key(Text(r"(?s:.+)", "the name of an instance"), "The instance's name.")
    hostname: str | None = key(Text(r"(?s:.+)", "a host's name or address"), "The host's name or address.")
    fleet: str | None = key(REFERENCE, "The fleet.")
    instance: int | None = key(Whole(0), "The instance's number in the fleet.")


def _one_way(selector: InstanceSelector, at: At) -> InstanceSelector:
    ways = [selector.name, selector.hostname, selector.fleet]
    if sum(way is not None for way in ways) != 1 or (selector.fleet is None) != (selector.instance is None):
        raise Problem(at.node, "must have either 'name', or 'hostname', or 'fleet' and 'instance'")
    return selector


INSTANCE = Struct(
    InstanceSelector,
    "instances",
    shorthand=Read(lambda text: {"name": text}, "instance name", "the name of an instance", {"type": "string"}),
    check=_one_way,
)


@dataclass(frozen=True, kw_only=True)
class PolicyFields(OfferFields):
    """dstack's profile parameters: where and when a run is placed, retried and stopped."""

    fleets: tuple[str, ...] | None = key(ListOf(REFERENCE), "Fleets that the run may use.", default_text="any")
    instances: tuple[InstanceSelector, ...] | None = key(
        ListOf(INSTANCE, least=1), "Instances that the run may use.", default_text="any"
    )
    creation_policy: str | None = key(
        Choice("reuse", "reuse-or-create"), "Whether instances may be created.", default_text="`reuse-or-create`"
    )
    idle_duration: int | None = key(
        OffDuration(IDLE_RUN, negative=True),
        "How long a created instance stays idle.",
        default=IDLE_RUN,
        nullable=True,
        default_text="5m",
    )
    retry: Retry | None = key(RETRY, "Whether the run is tried again.", default_text="false")
    max_duration: int | None = key(OffDuration(None), "How long the run may be running.", default_text="off")
    stop_duration: int | None = key(
        OffDuration(300),
        "How long stopping may take before it is forced.",
        default=300,
        nullable=True,
        default_text="5m",
    )
    utilization_policy: UtilizationPolicy | None = key(
        Struct(UtilizationPolicy, "utilization_policy"), "Stop the run when its GPUs idle."
    )
    startup_order: str = key(
        Choice("any", "master-first", "workers-first"), "Which nodes start first.", default="any", nullable=True
    )
    stop_criteria: str = key(
        Choice("all-done", "master-done"), "When the run is done.", default="all-done", nullable=True
    )
    schedule: Schedule | None = key(Struct(Schedule, "schedule"), "When the run is started.", default_text="now")
