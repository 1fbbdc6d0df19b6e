# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""The parts of a service file: scaling, rate limits, probes, the model, HTTPS and gateway.

Source: dstack's reference page of the service file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from yaml.nodes import ScalarNode

from .engine import At, Kind, ListOf, Schema, Struct, key
from .fields import REFERENCE, SWITCH, TEXT
from .kinds import Choice, Duration, Number, Read, Text, Whole
from .nodes import Problem, scalar, show

MAX_PROBES = 10
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How the number of replicas follows the requests."""

    metric: str = key(Choice("rps"), "What is measured: requests a second.", required=True)
    target: float = key(Number("a number above 0", above=0), "Its value for each replica.", required=True)
    window: int = key(
        Duration(among=(30, 60, 300)), "Over how long: 30s, 60s or 300s.", default=60, nullable=True, default_text="60s"
    )
    scale_up_delay: int = key(
        Duration(), "The least time between scaling and scaling up.", default=300, default_text="5m"
    )
    scale_down_delay: int = key(
        Duration(), "The least time between scaling and scaling down.", default=600, default_text="10m"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitioningKey:
    """Whose requests are counted together: those of an address, or those with one value of a header."""

    type: str = key(Choice("ip_address", "header"), "By address or by header.", required=True)
    header: str | None = key(Text(r"[a-zA-Z0-9-_]+", "a header's name", most=500), "The header.")


def _check_partition(partition: PartitioningKey, at: At) -> PartitioningKey:
    if (partition.type == "header") != (partition.header is not None):
        raise Problem(at.node, "must have 'header' when its type is header, and only then")
    return partition


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """A limit on the requests to a path."""

    prefix: str = key(Text(r"/[^\s\\{}]*", "a path that starts with '/'", most=4094), "The path's start.", default="/")
    rps: float = key(
        Number("a number of at least 1/60", least=1 / 60, most=_MAX_INT64 // 60), "Requests a second.", required=True
    )
    burst: int = key(Whole(0, _MAX_INT64), "Requests that may come ahead of the limit.", default=0)
    key: PartitioningKey = key(
        Struct(PartitioningKey, "rate_limits key", check=_check_partition),
        "Whose requests are counted together.",
        default=PartitioningKey(type="ip_address"),
        default_text="by address",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPHeader:
    """A header of a probe."""

    name: str = key(Text(r"(?s:.+)", "a header's name", most=256), "Name.", required=True)
    value: str = key(Text(r"(?s:.+)", "a header's value", most=2048, secret=True), "Value.", required=True, secret=True)


def _url(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"must start with '/', not {show(text)}")
    if not text.isprintable():
        raise ValueError("must not contain characters that cannot be printed")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A request that tells whether a replica is ready."""

    type: str = key(Choice("http"), "The kind of probe.", required=True)
    url: str = key(
        Text(check=_url, wanted="a path that starts with '/'", most=2048), "The path.", default="/", nullable=True
    )
    method: str = key(
        Choice("get", "post", "put", "delete", "patch", "head"), "The method.", default="get", nullable=True
    )
    headers: tuple[HTTPHeader, ...] = key(ListOf(Struct(HTTPHeader, "headers"), most=16), "Headers.", default=())
    body: str | None = key(Text(r"(?s:.+)", "text", most=2048, secret=True), "The body.")
    timeout: int = key(Duration(least=1), "How long a request may take.", default=10, nullable=True, default_text="10s")
    interval: int = key(Duration(least=1), "The time between requests.", default=15, nullable=True, default_text="15s")
    ready_after: int = key(Whole(1), "How many successes in a row make it ready.", default=1, nullable=True)
    until_ready: bool = key(SWITCH, "Stop probing once it is ready.", default=False, nullable=True)


def _check_probe(probe: Probe, at: At) -> Probe:
    if probe.body is not None and at.has("method") and probe.method in ("get", "head"):
        raise at.problem("body", f"cannot be used with the method {probe.method}; remove one")
    if probe.timeout > 300:
        raise at.problem("timeout", "must be at most 5m")
    return probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model behind an OpenAI-compatible endpoint."""

    type: str = key(Choice("chat"), "The kind of model.", default="chat")
    name: str = key(TEXT, "The model's name.", required=True)
    format: str = key(Choice("openai", "tgi"), "The interface that the service speaks.", required=True)
    prefix: str = key(TEXT, "The path's start; openai only.", default="/v1")
    chat_template: str | None = key(TEXT, "The prompt's template; tgi only.", default_text="the model's")
    eos_token: str | None = key(TEXT, "The end token; tgi only.", default_text="the model's")


def _check_model(model: Model, at: At) -> Model:
    foreign = ("chat_template", "eos_token") if model.format == "openai" else ("prefix",)
    for name in foreign:
        if name in at.keys:
            raise at.problem(name, f"cannot be used with the format {model.format}; remove it")
    return model


MODEL = Struct(
    Model,
    "model",
    shorthand=Read(lambda text: {"name": text, "format": "openai"}, "model name", "a model's name", {"type": "string"}),
    check=_check_model,
)


def _unique_prefixes(limits: tuple[RateLimit, ...], node: Any) -> None:
    counts = Counter(limit.prefix for limit in limits)
    for index, limit in enumerate(limits):
        if counts[limit.prefix] > 1:
            raise Problem(
                node.value[index], f"has the prefix {show(limit.prefix)}, as another limit has; each needs its own"
            ).under(index)


def _unique_probes(probes: tuple[Probe, ...], node: Any) -> None:
    for index, probe in enumerate(probes):
        if probe in probes[:index]:
            raise Problem(node.value[index], "is the same as an earlier probe; remove one").under(index)


RATE_LIMITS = ListOf(Struct(RateLimit, "rate_limits"), check=_unique_prefixes)
PROBES = ListOf(Struct(Probe, "probes", check=_check_probe), most=MAX_PROBES, check=_unique_probes)
SCALING = Struct(Scaling, "scaling")


class Switched(Kind[Any]):
    """true, false, or something else."""

    def __init__(self, other: Kind[Any]) -> None:
        self.other = other
        self.label = f"true, false or {other.label}"
        self.wanted = f"true, false or {other.wanted}"

    def read(self, node: Any) -> Any:
        if isinstance(node, ScalarNode) and scalar(node)[0] == "bool":
            return SWITCH.read(node)
        return self.other.read(node)

    def schema(self, definitions: dict[str, Schema]) -> Schema:
        return {"anyOf": [SWITCH.schema(definitions), self.other.schema(definitions)]}


GATEWAY = Switched(REFERENCE)
HTTPS = Switched(Choice("auto"))
