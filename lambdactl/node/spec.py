"""The job that a controller hands to a node: parsed once, strictly; everything after relies on it."""

from __future__ import annotations

from . import container, contents, dev, light, paths, service_port, share, utilization, volumes
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LETTERS = paths.LETTERS + paths.LETTERS.upper() + "_"
ALL = LETTERS + paths.DIGITS
STARTUP_ORDERS = ("any", "master-first", "workers-first")
STOP_CRITERIA = ("all-done", "master-done")
ON_NODE_FAILURE = ("stop", "ignore")
DEFAULT_LOG_LIMIT = 4 << 30
DEFAULT_NODE_TIMEOUT = 120.0
DEFAULT_STOP_GRACE = 10.0


def is_env_name(text: str) -> bool:
    """Whether this may be the name of an environment variable."""
    return light.is_word(text, LETTERS, ALL, 1 << 20)


def is_address(text: str) -> bool:
    """Whether this may be an address or a host's name."""
    return light.is_word(text, ALL.replace("_", ""), ALL.replace("_", "") + ".:%-", 254)


def is_user(text: str) -> bool:
    """Whether this is a name or number, or two with a colon between them."""
    user, colon, group = text.partition(":")
    return light.is_word(user, ALL, ALL + ".-", 32) and (not colon or light.is_word(group, ALL, ALL + ".-", 32))


def _bad(field: str, value: object, allowed: str) -> NodeError:
    return NodeError("bad-request", f"job: {field} is {str(value)[:80]!r}, allowed is {allowed}")


def _text(job: dict[str, Any], field: str, default: str | None = None) -> str:
    value = job.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or "\0" in value:
        raise _bad(field, value, "text without NUL")
    return value


def _optional_text(job: dict[str, Any], field: str) -> str | None:
    return None if job.get(field) is None else _text(job, field)


def _choice(job: dict[str, Any], field: str, choices: tuple[str, ...]) -> str:
    value = job.get(field) or choices[0]
    if value not in choices:
        raise _bad(field, value, ", ".join(choices))
    return str(value)


def _number(job: dict[str, Any], field: str, default: float | None, least: float = 0) -> float | None:
    value = job.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < 1e18:
        raise _bad(field, value, f"a number of at least {least:g}")
    return value


class Node:
    """One node of the gang, as rank 0 reaches it."""

    def __init__(self, raw: object, rank: int) -> None:
        where = f"nodes[{rank}]"
        if not isinstance(raw, dict):
            raise _bad(where, raw, "an object")
        self.raw = raw
        self.name = _text(raw, "name")
        self.ip = _text(raw, "ip", "")
        if self.ip and not is_address(self.ip):
            raise _bad(f"{where}.ip", self.ip, "an address")
        self.gpus = int(_number(raw, "gpus", 0) or 0)
        self.ssh_user = _text(raw, "ssh_user", "root")
        if not is_user(self.ssh_user):
            raise _bad(f"{where}.ssh_user", self.ssh_user, "a user's name")
        self.ssh_port = int(_number(raw, "ssh_port", 22, 1) or 22)


class Job:
    """What one node executes of a run. ``raw`` is the request as it came; times are in seconds, sizes in bytes."""

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, dict):
            raise _bad("job", raw, "an object")
        self.raw = raw
        self.run_id = paths.run_id(raw.get("run_id"))
        self.run_name = _text(raw, "run_name")
        if not paths.is_run_name(self.run_name):
            raise _bad("run_name", self.run_name, "lower-case letters, digits and dashes")
        nodes = raw.get("nodes")
        if not isinstance(nodes, list) or not nodes:
            raise _bad("nodes", nodes, "a list of at least one node")
        self.nodes = [Node(node, rank) for rank, node in enumerate(nodes)]
        self.rank = int(_number(raw, "rank", 0) or 0)
        if self.rank >= len(self.nodes):
            raise _bad("rank", self.rank, f"0 to {len(self.nodes) - 1}")
        self.script = _text(raw, "script")
        self.shell = _optional_text(raw, "shell")
        self.working_dir = _optional_text(raw, "working_dir")
        self.user = _text(raw, "user", self.node.ssh_user)
        if not is_user(self.user):
            raise _bad("user", self.user, "a name or number, or user:group")
        self.env = self._env(raw.get("env", {}))
        self.defaults = self._env(raw.get("defaults") or {}, "defaults")
        self.gpus = self._gpus(raw.get("gpus"))
        self.share = share.parse(raw.get("share"))
        self.startup_order = _choice(raw, "startup_order", STARTUP_ORDERS)
        self.stop_criteria = _choice(raw, "stop_criteria", STOP_CRITERIA)
        self.on_node_failure = _choice(raw, "on_node_failure", ON_NODE_FAILURE)
        self.max_duration = _number(raw, "max_duration", None)
        self.stop_signal = self._signal(raw.get("stop_signal") or "SIGINT")
        self.stop_grace = float(_number(raw, "stop_grace", DEFAULT_STOP_GRACE) or 0)
        self.node_timeout = float(_number(raw, "node_timeout", DEFAULT_NODE_TIMEOUT, 1) or DEFAULT_NODE_TIMEOUT)
        self.memory_limit = _number(raw, "memory_limit", None, 1)
        self.log_limit = int(_number(raw, "log_limit", DEFAULT_LOG_LIMIT, 1 << 16) or DEFAULT_LOG_LIMIT)
        self.owner = _text(raw, "owner", "")
        self.submitted_at = _number(raw, "submitted_at", None)
        self.repo_id = _text(raw, "repo_id", "none")
        self.repo_dir = _optional_text(raw, "repo_dir")
        self.files = contents.parse_files(raw.get("files"))
        self.repo = contents.parse_repo(raw.get("repo"))
        self.volumes = volumes.parse(raw.get("volumes"))
        self.utilization = utilization.parse(raw.get("utilization"))
        self.tags = self._tags(raw.get("tags"))
        self.ports = self._ports(raw.get("ports"))
        self.mpi_network = _optional_text(raw, "mpi_network")
        self.dev = dev.settings(raw.get("dev"))
        self.container = container.parse(raw.get("container"))
        self.service_port = service_port.parse(raw.get("service"))

    @property
    def node(self) -> Node:
        """This node."""
        return self.nodes[self.rank]

    def memory_max(self) -> int | None:
        """The least of the memory limits that hold for the job: its own, and that of its share of the node; bytes."""
        limits = [int(limit) for limit in (self.memory_limit, self.share.memory if self.share else None) if limit]
        return min(limits) if limits else None

    @property
    def multi_node(self) -> bool:
        """Whether there are peers to coordinate with."""
        return len(self.nodes) > 1

    @property
    def prepares(self) -> bool:
        """Whether this rank has something to prepare before any rank may start its commands."""
        from . import prepare

        return prepare.needed(self)

    @property
    def gated(self) -> bool:
        """Whether no rank may start before all ranks have what they need: files, volumes, a container."""
        return self.prepares or self.container is not None

    @staticmethod
    def _tags(tags: object) -> dict[str, str]:
        if tags is None:
            return {}
        if not isinstance(tags, dict) or not all(isinstance(item, str) for pair in tags.items() for item in pair):
            raise _bad("tags", tags, "an object of texts")
        return tags

    @staticmethod
    def _ports(ports: object) -> list[list[int | None]]:
        """Pairs of (port on the user's machine or null, port here)."""
        if ports is None:
            return []
        if not isinstance(ports, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and type(pair[1]) is int and type(pair[0]) in (int, type(None))
            for pair in ports
        ):
            raise _bad("ports", ports, "a list of [local port or null, port]")
        return ports

    @staticmethod
    def _env(env: object, field: str = "env") -> dict[str, str]:
        if not isinstance(env, dict):
            raise _bad(field, env, "an object of texts")
        for name, value in env.items():
            if not is_env_name(name):
                raise _bad(field, name, "names of letters, digits and underscores")
            if not isinstance(value, str) or "\0" in value:
                raise _bad(f"{field}.{name}", type(value).__name__, "text without NUL")
        return env

    @staticmethod
    def _gpus(gpus: object) -> list[int] | None:
        if gpus is None:
            return None
        if not isinstance(gpus, list) or not all(type(index) is int and 0 <= index < 4096 for index in gpus):
            raise _bad("gpus", gpus, "a list of GPU indices, or null")
        return gpus

    @staticmethod
    def _signal(name: object) -> int:
        if isinstance(name, str) and name.startswith("SIG") and name[3:4].isalpha():
            number = getattr(light.signal, name, None)
            if isinstance(number, int):
                return number
        raise _bad("stop_signal", name, "a signal's name such as SIGINT or SIGTERM")


def load(run: str) -> Job:
    """The job of a run that was started on this node.

    Raises NodeError (not-found) when there is none.
    """
    raw = paths.read_json(paths.run_dir(run) + "/job.json")
    if raw is None:
        raise NodeError("not-found", f"run {run} has no job on this node: it was never started here, or forgotten")
    return Job(raw)
