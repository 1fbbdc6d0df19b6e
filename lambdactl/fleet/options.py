"""The pieces of which every rendering of a route is made: ssh options, paths, sockets, the ProxyCommand.

Choices that are not obvious:

- An explicit ProxyCommand, because ``-J`` hands neither the key nor the host-key policy to the hop.
- The hop's socket is given with ``-S``. ansible-core looks for the other spelling of that option anywhere in its
  arguments, also inside a ProxyCommand, and then turns its own multiplexing of the nodes off.
- ``KexAlgorithms=-sntrup761*`` behind a jump host: sntrup761 costs 90 ms of CPU a handshake, and the outer connection
  is post-quantum already. What is left is curve25519 first (OpenSSH 8.2 to 9.8) or mlkem768 (9.9 and later, cheap). A
  list that starts with "-" may name algorithms that a version does not have; one that starts with "^" may not.
- ``~`` is written out when $HOME is not the home of the passwd entry: OpenSSH only ever looks at the latter.
"""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lambdactl.errors import LambdactlError
from lambdactl.fleet import checks
from lambdactl.fleet.model import Fleet, FleetHost, Hop, chain_id

SOCKET_PATH_MAX = 104 - 17
"""Bytes: the smallest ``sun_path`` of our platforms (macOS) less the suffix of ssh's temporary name for a socket."""

CONNECT_TIMEOUT = "ConnectTimeout=15"
_ALIVE = ("ServerAliveInterval=15", "ServerAliveCountMax=4")
_INNER_KEX = "KexAlgorithms=-sntrup761*"


class Way(NamedTuple):
    """What all connections of a fleet have in common; paths as OpenSSH is to read them."""

    control_dir: str
    known_hosts: str
    policy: str


def way_of(fleet: Fleet) -> Way:
    """The fleet's control folder, known_hosts and host-key policy."""
    return Way(home_path(fleet.control_dir), home_path(fleet.known_hosts), fleet.host_key_policy)


def home_path(path: str) -> str:
    """A path for OpenSSH that leads where Python's and the shell's ``~`` leads."""
    home = str(Path("~").expanduser())
    return path if home == _passwd_home(os.getuid()) else str(Path(path).expanduser())


@lru_cache(maxsize=1)
def _passwd_home(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return None


def quoted(path: str) -> str:
    """A path in the syntax of ssh_config, which splits at spaces."""
    return f'"{path}"' if " " in path else path


def flags(options: Sequence[str]) -> list[str]:
    """``-o`` before each option."""
    return [word for option in options for word in ("-o", option)]


def socket_in(control_dir: str, hops: Sequence[Hop]) -> str:
    """The socket of a jump chain in a control folder."""
    return f"{control_dir}/j{chain_id(hops)}"


def checked_socket(socket: str) -> str:
    """The socket's absolute path. Raises LambdactlError when it is too long for a socket."""
    path = str(Path(socket).expanduser())
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise LambdactlError(
            f"The control socket's path {path} has more than {SOCKET_PATH_MAX} bytes, which the system does not allow.",
            remedy="Set HOME to a folder with a shorter path.",
        )
    return path


def hop_options(way: Way, *, inner: bool) -> list[str]:
    """Options of a connection; ``inner`` when it runs inside of the connection to a jump host."""
    options = [f"StrictHostKeyChecking={way.policy}", f"UserKnownHostsFile={quoted(way.known_hosts)}"]
    return [*options, CONNECT_TIMEOUT, *_ALIVE, *([_INNER_KEX] if inner else [])]


def node_options(way: Way, host: FleetHost) -> list[str]:
    """Options of the connection to a node, less user, port and key: Ansible has variables for them."""
    hops = host.route.hops
    options = [option for option in hop_options(way, inner=bool(hops)) if option != CONNECT_TIMEOUT]
    if host.host_key_alias is not None:
        options.append(f"HostKeyAlias={host.host_key_alias}")
    if host.route.target.identity_file is not None:
        options.append("IdentitiesOnly=yes")
    if hops:
        options.append(f"ProxyCommand={proxy_command(way, hops)}")
    return options


@lru_cache(maxsize=1024)
def proxy_command(way: Way, hops: tuple[Hop, ...]) -> str:
    """The shell command that connects to ``%h:%p`` from the last of ``hops``; an earlier hop's command nests in it."""
    hop = hops[-1]
    words = ["ssh", "-S", socket_in(way.control_dir, hops), "-o", "ControlMaster=no"]
    words += flags(hop_options(way, inner=len(hops) > 1))
    if len(hops) > 1:
        # ssh replaces its % tokens before the shell sees the command, so those of the inner command are doubled.
        words += ["-o", "ProxyCommand=" + proxy_command(way, hops[:-1]).replace("%", "%%")]
    words += ["-p", str(hop.port), *(["-l", hop.user] if hop.user else [])]
    key = ""
    if hop.identity_file is not None and checks.is_variable(hop.identity_file):
        key = f' -o IdentitiesOnly=yes -i "{hop.identity_file}"'  # looked up by the shell when the connection is made
    elif hop.identity_file is not None:
        words += flags(key_options(home_path(hop.identity_file)))
    return f"{shlex.join(words)}{key} -W '[%h]:%p' -- {shlex.quote(hop.hostname)}"


def key_options(path: str) -> list[str]:
    """The key to log in with, and no other; ``-i`` would fall back to the usual keys where there is no such file."""
    return [f"IdentityFile={quoted(path)}", "IdentitiesOnly=yes"]
