"""The YAML files as typed models: fleet, task, dev environment and service, as dstack has them.

Standard library and PyYAML only: the inventory plugin reads fleets with this package inside any execution environment.
"""

from __future__ import annotations

from .container import FileMapping, Mount, PortMapping, RegistryAuth, Repo
from .dev_environment import DevEnvironmentSpec
from .fields import InstanceSelector, Retry, Schedule, Source, UtilizationPolicy
from .fleet import FleetSpec, HostSpec, NodesRange, ProxyJump, SSHConfig
from .load import (
    KINDS,
    Spec,
    line_in,
    load,
    loads,
    merge_env,
    parse_cpu,
    parse_duration,
    parse_env_item,
    parse_gpu,
    parse_memory,
    parse_name,
    parse_ports,
    parse_range,
    parse_size,
    placed,
    resolve_env,
)
from .resources import CPU, GPU, Resources
from .schema import json_schema, reference_markdown
from .service import ReplicaGroup, ServiceSpec
from .task import NodeGroup, TaskSpec
from .values import EnvVar, Range, format_duration, format_size

__all__ = [
    "CPU",
    "GPU",
    "KINDS",
    "DevEnvironmentSpec",
    "EnvVar",
    "FileMapping",
    "FleetSpec",
    "HostSpec",
    "InstanceSelector",
    "Mount",
    "NodeGroup",
    "NodesRange",
    "PortMapping",
    "ProxyJump",
    "Range",
    "RegistryAuth",
    "ReplicaGroup",
    "Repo",
    "Resources",
    "Retry",
    "SSHConfig",
    "Schedule",
    "ServiceSpec",
    "Source",
    "Spec",
    "TaskSpec",
    "UtilizationPolicy",
    "format_duration",
    "format_size",
    "json_schema",
    "line_in",
    "load",
    "loads",
    "merge_env",
    "parse_cpu",
    "parse_duration",
    "parse_env_item",
    "parse_gpu",
    "parse_memory",
    "parse_name",
    "parse_ports",
    "parse_range",
    "parse_size",
    "placed",
    "reference_markdown",
    "resolve_env",
]
