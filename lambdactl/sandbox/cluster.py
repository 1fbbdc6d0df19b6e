"""``up``, ``status`` and ``down``: the sandbox as a whole, always brought from what Docker has to what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from lambdactl.errors import SpecError
from lambdactl.sandbox import containers, image, network
from lambdactl.sandbox.containers import JUMP_ADDRESS, Wanted, container_name
from lambdactl.sandbox.docker import LABEL, ROLE_LABEL, SUBNET_LABEL, docker, labelled, require_engine
from lambdactl.sandbox.model import JUMP, Node, NodeStatus, Progress, Sandbox, SandboxError, SandboxStatus
from lambdactl.sandbox.network import Network
from lambdactl.sandbox.store import Store
from lambdactl.sandbox.traces import forget_fleet, forget_nodes

DEFAULT_WORKERS = 2
MAX_WORKERS = 64
# Docker's own work is in one process; more at once only make each of them slower.
PARALLEL = 8

T = TypeVar("T")
R = TypeVar("R")


def up(
    name: str = "default",
    workers: int | None = None,
    *,
    base: image.Base = "auto",
    files: Mapping[str, str | Path] | None = None,
    packages: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    timeout: float = 120,
    progress: Progress | None = None,
) -> Sandbox:
    """Brings a sandbox up, or repairs what is broken of it; returns when every node's sshd answers.

    Args:
        name: the sandbox's name.
        workers: how many; None keeps those that are there, and makes 2 of a new sandbox. Surplus ones are removed.
        base: where the base image comes from: ``registry``, ``debootstrap``, or ``auto``.
        files: path in the node -> file on this machine, put on every worker with its mode.
        packages: Debian packages that new nodes have from the beginning, as a provider's own image would.
        labels: further Docker labels for what is made.
        timeout: seconds that a node has to boot.
        progress: called with one line for each thing that is done.

    Raises:
        SandboxError, DockerError, SpecError: naming the node and the reason.
    """
    store = Store(name)
    sources = _checked_files(files or {})
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise SpecError(f"A sandbox has 1 to {MAX_WORKERS} workers, not {workers}.")
    say = progress or (lambda line: None)
    require_engine()
    with store.lock():
        return _Builder(store, {**(labels or {}), LABEL: name}, say, timeout).up(workers, base, sources, packages)


def status(name: str = "default") -> SandboxStatus:
    """Asks Docker, and each node's systemd and sshd, how the sandbox is; changes nothing."""
    store = Store(name)
    require_engine()
    found = {_node_name(item): item for item in labelled("container", name)}
    net = network.find(name)
    if not found and net is None:
        return SandboxStatus(name, False, (), None, "", None)
    nodes = _parallel(
        lambda node: _node_status(node, found.get(node), net), _rank_order({JUMP, *store.workers(), *found})
    )
    return SandboxStatus(
        name=name,
        exists=True,
        nodes=tuple(nodes),
        jump_port=containers.published_port(found[JUMP]) if JUMP in found else None,
        subnet=net.subnet if net else "",
        fleet_file=store.fleet_file if store.fleet_file.exists() else None,
    )


def down(name: str = "default", *, progress: Progress | None = None) -> None:
    """Removes a sandbox: containers, network, state; nothing happens when there is none."""
    store = Store(name)
    say = progress or (lambda line: None)
    require_engine()
    with store.lock():
        made = [item["Id"] for item in labelled("container", name)]
        if made:
            say(f"removing {len(made)} containers")
            docker("rm", "--force", "--volumes", *made)
        for net in labelled("network", name):
            say(f"removing the network {net['Name']}")
            docker("network", "rm", net["Id"])
        forget_fleet(store.fleet_file)
        store.remove()


class _Builder:
    """One ``up``: compares what Docker has with what is wanted, and does the difference."""

    def __init__(self, store: Store, labels: Mapping[str, str], say: Progress, timeout: float) -> None:
        self.store = store
        self.name = store.name
        self.labels = labels
        self.say = say
        self.timeout = timeout

    def up(self, workers: int | None, base: image.Base, files: Mapping[str, Path], packages: Sequence[str]) -> Sandbox:
        tag = image.with_packages(image.ensure(base, self.say), packages, self.say)
        key = self.store.public_key()
        found = {_node_name(item): item for item in labelled("container", self.name)}
        net = self._network(found)
        names = [JUMP, *(f"worker-{index}" for index in range(workers or self._last_count(found)))]
        self._remove_surplus(found, names)
        wanted = [self._wanted(node, tag, net) for node in names]
        forget_nodes(self.store.fleet_file, [node for node in names if node not in found])
        _parallel(lambda want: self._ensure(want, found.get(want.node), files), wanted)
        self._wait(wanted, key)
        cluster = self._sandbox(wanted, net)
        self.store.write_fleet([node.name for node in cluster.workers], cluster.jump_port)
        return cluster

    def _last_count(self, found: Mapping[str, dict[str, Any]]) -> int:
        """How many workers the last ``up`` made, though some be lost since."""
        known = _rank_order({*self.store.workers(), *(node for node in found if node != JUMP)})
        return _rank(known[-1]) + 1 if known else DEFAULT_WORKERS

    def _network(self, found: Mapping[str, dict[str, Any]]) -> Network:
        net = network.find(self.name)
        if net is None:
            self.say("making the network")
            net = network.create(self.name, {**self.labels, ROLE_LABEL: "network"}, subnet=_last_subnet(found))
        return net

    def _remove_surplus(self, found: Mapping[str, dict[str, Any]], names: Sequence[str]) -> None:
        surplus = [node for node in found if node not in names]
        if surplus:
            self.say(f"removing {', '.join(_rank_order(surplus))}")
            docker("rm", "--force", "--volumes", *(found[node]["Id"] for node in surplus))

    def _wanted(self, node: str, tag: str, net: Network) -> Wanted:
        labels = {**self.labels, ROLE_LABEL: JUMP if node == JUMP else "worker", SUBNET_LABEL: net.subnet}
        return Wanted(node, container_name(self.name, node), tag, net, labels)

    def _ensure(self, wanted: Wanted, found: dict[str, Any] | None, files: Mapping[str, Path]) -> None:
        if found is not None and found["State"]["Status"] in ("dead", "removing"):
            docker("rm", "--force", "--volumes", found["Id"], check=False)
            found = None
        if found is None:
            self.say(f"{wanted.node}: making the container")
            containers.create(wanted, files)
            return
        done = containers.revive(wanted, found)
        if done:
            self.say(f"{wanted.node}: {done}")
        if wanted.node != JUMP:
            containers.copy_files(wanted.container, files)

    def _wait(self, wanted: Sequence[Wanted], key: str) -> None:
        troubles = _parallel(lambda want: self._trouble(want, key), wanted)
        bad = [(want, reason) for want, reason in zip(wanted, troubles, strict=True) if reason]
        if not bad:
            return
        others = "" if len(bad) == 1 else f" (and {len(bad) - 1} more: {', '.join(want.node for want, _ in bad[1:])})"
        first, reason = bad[0]
        said = containers.journal(first.container).replace("\n", "\n  ")
        raise SandboxError(f"{first.node} is not ready{others}: {reason}. Its last journal lines:\n  {said}")

    def _trouble(self, wanted: Wanted, key: str) -> str:
        """Why a node does not become ready, after one reboot as the last remedy."""
        reason = containers.trouble(wanted.container, key, self.timeout)
        if reason:
            self.say(f"{wanted.node}: {reason}; rebooting it")
            docker("restart", wanted.container, check=False)
            reason = containers.trouble(wanted.container, key, self.timeout)
        if not reason and wanted.node == JUMP:
            port = containers.published_port(containers.find(wanted.container) or {"HostConfig": {}})
            if port is None or not containers.sshd_answers(port, 10):
                return f"its sshd answers inside, but not on {JUMP_ADDRESS}:{port} of this machine"
        return reason

    def _sandbox(self, wanted: Sequence[Wanted], net: Network) -> Sandbox:
        found = {_node_name(item): item for item in labelled("container", self.name)}
        nodes = [Node(want.node, want.container, found[want.node]["Id"], net.address(want.node)) for want in wanted]
        port = containers.published_port(found[JUMP])
        if port is None:
            raise SandboxError(f"{JUMP} publishes no port.", remedy=f"Remove it (docker rm -f {nodes[0].container}).")
        return Sandbox(
            name=self.name,
            jump=nodes[0],
            jump_address=JUMP_ADDRESS,
            jump_port=port,
            workers=tuple(nodes[1:]),
            network=net.name,
            subnet=net.subnet,
            state_dir=self.store.folder,
            fleet_file=self.store.fleet_file,
            identity_file=self.store.identity_file,
        )


def _node_status(node: str, found: Mapping[str, Any] | None, net: Network | None) -> NodeStatus:
    if found is None:
        return NodeStatus(node, "missing", "", "there is no container; run: sandbox up")
    address = net.address(node) if net else ""
    state = found["State"]["Status"]
    if state != "running":
        return NodeStatus(node, state, address, "run: sandbox up")
    asked = docker("exec", found["Id"], "systemctl", "is-active", "ssh.service", check=False, timeout=20)
    active = asked.stdout.strip()
    reason = "" if active == "active" else f"sshd is {active or 'not to be asked'}"
    if not reason and net is None:
        reason = "the network is missing"
    return NodeStatus(node, "not ready" if reason else "ready", address, reason)


def _node_name(inspected: Mapping[str, Any]) -> str:
    return str(inspected["Config"]["Hostname"])


def _rank_order(nodes: Sequence[str] | set[str]) -> list[str]:
    return sorted(nodes, key=_rank)


def _rank(node: str) -> int:
    return -1 if node == JUMP else int(node.removeprefix("worker-"))


def _last_subnet(found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The subnet that the containers' fixed addresses came from, when their network was removed."""
    for item in found.values():
        subnet = item["Config"]["Labels"].get(SUBNET_LABEL)
        if subnet:
            return str(subnet)
    return None


def _checked_files(files: Mapping[str, str | Path]) -> dict[str, Path]:
    checked = {}
    for target, source in files.items():
        path = Path(source)
        if not target.startswith("/"):
            raise SpecError(f"{target!r} is no absolute path in the node.")
        if not path.is_file():
            raise SpecError(f"{path} is not there, to be put on the workers as {target}.")
        checked[target] = path
    return checked


def _parallel(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Results in the items' order; the first error is raised when all have ended."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return [future.result() for future in [pool.submit(work, item) for item in items]]
