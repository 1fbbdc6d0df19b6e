"""`ssh RUN`: the aliases of dev environments, in an ssh_config of ours that the user's own one includes.

`~/.ssh/lambdactl/` (0700) holds `config` with one block for each dev environment, `known_hosts` with their host keys,
and `key`, this machine's key to them. A block has the whole route: its ProxyCommand logs in to the node as `fleet.ssh`
renders it, each hop with its own user, port and key, and turns into the run's SSH server there (`runner.pyz session`).
Nothing of a connection is kept anywhere, so whatever breaks it (sleep, another network), the next is like the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from lambdactl.errors import LambdactlError
from lambdactl.fleet import Fleet, FleetHost
from lambdactl.fleet.model import Hop
from lambdactl.fleet.options import home_path, quoted
from lambdactl.fleet.ssh import node_argv
from lambdactl.run.nodes import runner_command
from lambdactl.run.ssh_include import write_whole

Wanted: TypeAlias = Callable[["Entry"], bool]
_MARK = re.compile(
    r"^# lambdactl run (?P<run_id>[0-9a-f-]{36}) named (?P<name>\S+) on (?P<host>\S+) of (?P<fleet_id>\S+)$", re.M
)
_NOTE = "# The dev environments that this machine knows; lambdactl writes and removes these blocks.\n"
_KEX = "-sntrup761*"  # the route below is post-quantum already, as everywhere behind a jump host (fleet/options.py)


@dataclass(frozen=True)
class Alias:
    """One block of the included file.

    Attributes:
        name: what `ssh NAME` takes: the run's name.
        host: the node's inventory name.
        user: whom the run runs as.
        host_key: the run's own host key, `ssh-ed25519 AAAA...`.
        proxy: the ProxyCommand.
        identity: the file of the key that the run lets in; None: this machine's own.
        address, port: where the proxy is to go; None where the ProxyCommand ends in the run by itself.
    """

    run_id: str
    name: str
    fleet_id: str
    host: str
    user: str
    host_key: str
    proxy: str
    identity: str | None = None
    address: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class Entry:
    """What a block says of itself."""

    run_id: str
    name: str
    host: str
    fleet_id: str


def folder() -> Path:
    """Where all of it lies."""
    return Path("~/.ssh/lambdactl").expanduser()


def config_file() -> Path:
    """The file for ``ssh -F``, and for the Include line."""
    return folder() / "config"


def proxy_command(fleet: Fleet, host: FleetHost, run_id: str, public_key: str) -> str:
    """The ProxyCommand that ends in a run's SSH server.

    Keys that are named by environment variables are looked up now: an IDE is started elsewhere.

    Raises:
        SpecError: such a variable is not set.
    """
    route = replace(host.route, hops=tuple(map(_settled, host.route.hops)), target=_settled(host.route.target))
    verb = f"session {run_id} {shlex.quote(public_key)}"
    argv = node_argv(fleet, replace(host, route=route), runner_command(verb))
    return shlex.join(argv).replace("%", "%%")


def _settled(hop: Hop) -> Hop:
    return replace(hop, identity_file=hop.key_path())


def public_key() -> str:
    """This machine's public key for dev environments, made when there is none. Raises LambdactlError."""
    path = _made(folder()) / "key"
    if not path.with_suffix(".pub").is_file():
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lambdactl", "-f", str(path)]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise LambdactlError("the ssh-keygen program was not found; install OpenSSH's client.") from None
        if done.returncode != 0:
            raise LambdactlError(f"ssh-keygen could not make {path}: {done.stderr.strip() or 'no reason given'}.")
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def put(alias: Alias) -> None:
    """Add an alias, in the place of one of the same run or the same name. Raises LambdactlError."""
    _made(folder())
    with _locked():
        blocks = {entry: text for entry, text in _blocks() if alias.run_id != entry.run_id and alias.name != entry.name}
        keys = [line for line in _lines("known_hosts") if not line.startswith(f"{_host_alias(alias.run_id)} ")]
        _write("known_hosts", "".join(f"{line}\n" for line in [*keys, f"{_host_alias(alias.run_id)} {alias.host_key}"]))
        _write("config", _NOTE + "".join([*blocks.values(), _rendered(alias)]))


def drop(wanted: Wanted) -> list[Entry]:
    """Take aliases away; returns those that were there. Raises LambdactlError."""
    if not any(wanted(entry) for entry in entries()):
        return []
    with _locked():
        blocks = list(_blocks())
        gone = [entry for entry, _ in blocks if wanted(entry)]
        aliases = tuple(f"{_host_alias(entry.run_id)} " for entry in gone)
        _write("config", _NOTE + "".join(text for entry, text in blocks if entry not in gone))
        _write("known_hosts", "".join(f"{line}\n" for line in _lines("known_hosts") if not line.startswith(aliases)))
    return gone


def entries() -> list[Entry]:
    """The aliases that there are."""
    return [entry for entry, _ in _blocks()]


def _host_alias(run_id: str) -> str:
    return f"lambdactl-{run_id}"


def _rendered(alias: Alias) -> str:
    here = home_path("~/.ssh/lambdactl")
    options = [
        f"HostName {alias.address or alias.name}",
        *([f"Port {alias.port}"] if alias.port else []),
        f"User {alias.user}",
        f"HostKeyAlias {_host_alias(alias.run_id)}",
        f"UserKnownHostsFile {quoted(here + '/known_hosts')}",
        "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
        f"IdentityFile {quoted(alias.identity or here + '/key')}",
        "IdentitiesOnly yes",
        "ServerAliveInterval 15",
        "ServerAliveCountMax 4",
        *([f"KexAlgorithms {_KEX}"] if alias.identity is None else []),
        f"ProxyCommand {alias.proxy}",
    ]
    mark = f"# lambdactl run {alias.run_id} named {alias.name} on {alias.host} of {alias.fleet_id}"
    return "\n".join([mark, f"Host {alias.name}", *(f"  {option}" for option in options)]) + "\n"


def _lines(name: str) -> list[str]:
    try:
        return (folder() / name).read_text().splitlines()
    except FileNotFoundError:
        return []


def _blocks() -> Iterator[tuple[Entry, str]]:
    text = "".join(f"{line}\n" for line in _lines("config"))
    marks = list(_MARK.finditer(text))
    ends = [*(mark.start() for mark in marks), len(text)][1:]
    for mark, end in zip(marks, ends, strict=True):
        yield Entry(**mark.groupdict()), text[mark.start() : end]


def _made(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LambdactlError(f"{path} cannot be made ({error.strerror}); make it, with mode 0700.") from None
    return path


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    path = _made(folder()) / "lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(name: str, text: str) -> None:
    write_whole(folder() / name, text.encode(), 0o600)
