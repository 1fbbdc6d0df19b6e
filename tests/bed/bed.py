"""A jump host (or several) with sshd's stock limits, and one sshd that answers on as many node addresses as asked for.

    with Bed(nodes=64) as bed:
        async with open_transport(bed.fleet()) as transport:
            ...
        assert bed.jump_logins() == 1

Every "node" is an address 127.1.x.y of one sshd. A session on it finds LAMBDACTL_ROOT set to a folder of its
own, so the runner works there without root and systemd. The bed needs sshd and ssh-keygen, no privileges.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lambdactl.fleet.model import Fleet, FleetHost, Hop, Route, fleet_id
from tests.bed.sshd import Sshd, free_port, kill_all, make_key

MARK = "LAMBDACTL_BED"

# MaxStartups counts half-open logins of one machine; here one sshd plays all nodes, so its limit must not.
NODE_OPTIONS = {"MaxStartups": "10000", "MaxSessions": "10"}


def node_address(index: int) -> str:
    """Address of node ``index`` (0-based): 127.1.0.1, 127.1.0.2, ..."""
    high, low = divmod(index, 250)
    return f"127.1.{high}.{low + 1}"


class Bed:
    """See the module.

    Args:
        nodes: how many.
        jumps: length of the jump chain.
        delay_ms: added in each direction in front of the first jump host.
        name: the fleet's.
        trace: let the jump hosts log what they forward to, for ``forwards``; costs them some time.
    """

    def __init__(
        self, nodes: int = 8, *, jumps: int = 1, delay_ms: int = 0, name: str = "bed", trace: bool = False
    ) -> None:
        self.name = name
        self.user = getpass.getuser()
        self.addresses = tuple(node_address(index) for index in range(nodes))
        self.directory = Path(tempfile.mkdtemp(prefix="lbed-", dir="/tmp"))  # short: sockets live below it
        self.home = self.directory / "home"
        self.roots = self.directory / "roots"
        self._delay_ms = delay_ms
        self._line: subprocess.Popen[bytes] | None = None
        self._mark = uuid.uuid4().hex
        try:
            self._prepare(jumps, trace)
        except BaseException:
            self.close()
            raise

    def _prepare(self, jumps: int, trace: bool) -> None:
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        for address in self.addresses:
            (self.roots / address).mkdir(parents=True)
        self.key = make_key(self.directory / "id")
        self.authorized_keys = self.directory / "authorized_keys"
        self.authorize(self.key)
        self.jumps: list[Sshd] = [
            Sshd(self.directory, f"jump{n}", f"127.0.0.{n + 2}", authorized_keys=self.authorized_keys)
            for n in range(jumps)
        ]
        self.node = Sshd(self.directory, "node", "127.1.0.1", authorized_keys=self.authorized_keys, listen="0.0.0.0")
        # SHLVL keeps bash from reading the user's dotfiles in a session that is no login.
        environment = f"SHLVL=5 {MARK}={self._mark}"
        for jump in self.jumps:
            jump.options["SetEnv"] = environment
            jump.options["LogLevel"] = "DEBUG1" if trace else "VERBOSE"
        self.node.options |= NODE_OPTIONS
        self.node.options |= {
            "AllowUsers": f"{self.user}@127.0.0.0/8",  # it listens on every address, and is for loopback only
        }
        # The address that was called says which node is meant: no program of the bed's own is in the way of a session.
        self.node.matches = {
            f"LocalAddress {address}": {"SetEnv": f"{environment} LAMBDACTL_ROOT={self.roots / address}"}
            for address in self.addresses
        }

    def authorize(self, key: Path) -> None:
        """Let this key's owner log in at the jump hosts and the nodes."""
        with self.authorized_keys.open("a") as file:
            file.write(key.with_name(key.name + ".pub").read_text())

    def start(self) -> None:
        for server in (*self.jumps, self.node):
            server.start()
        if self._delay_ms and self.jumps:
            self._start_line()

    def _start_line(self) -> None:
        first = self.jumps[0]
        self._line_port = free_port(first.address)
        ends = [first.address, str(self._line_port), first.address, str(first.port), str(self._delay_ms)]
        argv = [sys.executable, "-m", "tests.bed.delay", *ends]
        root = Path(__file__).resolve().parents[2]
        self._line = subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._line.stdout is not None
        if self._line.stdout.readline() != b"ready\n":
            raise RuntimeError("the delay line did not start")

    def close(self) -> None:
        """Stop everything, also what commands left running on the nodes, and remove the folder."""
        if self._line is not None:
            self._line.kill()
            self._line.wait()
        for server in (*getattr(self, "jumps", ()), getattr(self, "node", None)):
            if server is not None:
                server.stop()
        kill_all(self.leftovers())
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def jump_port(self) -> int:
        """The port to reach the first jump host at (the delay line's, when there is one)."""
        return self._line_port if self._line is not None else self.jumps[0].port

    def jump_logins(self, index: int = 0) -> int:
        """How many logins this jump host has accepted."""
        return sum(self.jumps[index].logins().values())

    def node_logins(self) -> Counter[str]:
        """Logins accepted by node address."""
        return self.node.logins()

    def forwards(self, index: int = 0) -> Counter[str]:
        """Connections that this jump host was asked to make, by target address; needs ``trace``."""
        return self.jumps[index].forwards()

    def leftovers(self) -> list[int]:
        """Processes that sessions of this bed started and that still run."""
        mark = f"{MARK}={self._mark}".encode()
        return [pid for pid, environment in _environments() if mark in environment and pid != os.getpid()]

    def fleet(self, *, nodes: Sequence[Hop] = (), jumps: Sequence[Hop] | None = None, **target: Any) -> Fleet:
        """The fleet of this bed; ``target`` overrides fields of each node's Hop, ``nodes`` are added at the end."""
        base = Hop("", self.node.port, self.user, str(self.key))
        chain = tuple(self.hops() if jumps is None else jumps)
        targets = [*(replace(base, hostname=address, **target) for address in self.addresses), *nodes]
        hosts = tuple(
            FleetHost(hop.hostname if hop.hostname in self.addresses else f"extra{index}", index, Route(chain, hop))
            for index, hop in enumerate(targets)
        )
        return Fleet(self.name, fleet_id(self.name, [chain]), hosts)

    def hops(self) -> list[Hop]:
        """The jump chain as the fleet file would have it."""
        ports = [self.jump_port, *(jump.port for jump in self.jumps[1:])] if self.jumps else []
        return [Hop(jump.address, port, self.user, str(self.key)) for jump, port in zip(self.jumps, ports, strict=True)]

    def spec(self, *, hosts: Sequence[str] | None = None) -> dict[str, Any]:
        """The fleet file of this bed as data; ``yaml.safe_dump`` makes a file of it."""
        jumps: list[dict[str, Any]] = [asdict(hop) for hop in self.hops()]
        ssh: dict[str, Any] = {
            "user": self.user,
            "port": self.node.port,
            "identity_file": str(self.key),
            "hosts": list(hosts or self.addresses),
        }
        if jumps:
            ssh["proxy_jump"] = jumps[0] if len(jumps) == 1 else jumps
        return {"type": "fleet", "name": self.name, "ssh_config": ssh}


def _environments() -> list[tuple[int, bytes]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), (entry / "environ").read_bytes()))
            except OSError:
                continue
    return found
