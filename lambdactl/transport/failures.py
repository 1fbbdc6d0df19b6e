"""Every way a connection fails, as data: what is wrong and what to do, in one sentence each, for both backends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lambdactl.transport.api import Failure, FailureKind
from lambdactl.transport.hostkeys import HostKeyChanged

Cause = Literal[
    "refused", "timeout", "name", "route", "auth", "no-key", "auth-stopped", "forwarding", "algorithms", "dropped",
    "lost", "unknown-key", "unfiled-key", "not-started", "too-long", "too-big", "other",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """The machine at which something failed, as messages name it."""

    role: Literal["jump", "node"]
    host: str  # the fleet host whose result this becomes
    address: str
    port: int
    user: str | None
    identity: str | None  # identity file, None for the agent and the default keys
    via: str | None = None  # address of the jump host in front

    @property
    def words(self) -> dict[str, str]:
        """What the templates of CAUSES may use."""
        endpoint = f"{self.address}:{self.port}"
        node = f"host {self.host}" if self.host == self.address else f"host {self.host} ({self.address})"
        return {
            "what": f"jump host {self.address}" if self.role == "jump" else node,
            "address": self.address,
            "endpoint": endpoint,
            "port": str(self.port),
            "login": f"user {self.user}" if self.user else "your own user name",
            "key": f"key {self.identity}" if self.identity else "the keys of your agent and ~/.ssh",
            "via": f" from jump host {self.via}" if self.via else "",
            "who": f"jump host {self.via}" if self.via else "this machine",
        }


# cause: (kind at a jump host, kind at a node, message, remedy)
CAUSES: dict[Cause, tuple[FailureKind, FailureKind, str, str]] = {
    "refused": (
        "jump-unreachable", "unreachable",
        "{what} refuses connections on port {port}{via}.",
        "Check that it is up, that sshd runs there and that the port in the fleet file is right.",
    ),
    "timeout": (
        "jump-unreachable", "timeout",
        "{what} did not answer on {endpoint} in time{via}.",
        "Check that it is up and that no firewall is in between.",
    ),
    "name": (
        "jump-unreachable", "unreachable",
        "The name {address} of {what} is not known to {who}.",
        "Check the spelling in the fleet file, or write the IP address there.",
    ),
    "route": (
        "jump-unreachable", "unreachable",
        "There is no network route to {what} at {endpoint}{via}.",
        "Check the address in the fleet file and the network or VPN in between.",
    ),
    "auth": (
        "jump-auth", "auth",
        "{what} refused the login of {login} with {key}.",
        "Check user and identity_file in the fleet file, and that this public key is in its authorized_keys.",
    ),
    "no-key": (
        "jump-auth", "auth",
        "{key} for {what} cannot be used: {detail}.",
        "Add it to your agent with ssh-add, or correct identity_file in the fleet file.",
    ),
    "auth-stopped": (
        "jump-auth", "auth",
        "{what} was not tried, because the first hosts all refused {login} with {key}.",
        "Check user and identity_file in the fleet file, then try again.",
    ),
    "unknown-key": (
        "host-key", "host-key",
        "The host key of {what} is not on file, and the fleet's host key policy is to trust only those that are.",
        "Add it to {detail}, or set the policy accept-new.",
    ),
    "unfiled-key": (
        "host-key", "host-key",
        "The host key of {what} cannot be kept: {detail}.",
        "Make that file writable for you: it is where a changed key will be noticed.",
    ),
    "forwarding": (
        "jump-forwarding", "jump-forwarding",
        "{who} forbids forwarding to {what} at {endpoint}.",
        "Set AllowTcpForwarding yes, and PermitOpen if it is used, in the jump host's sshd_config.",
    ),
    "algorithms": (
        "jump-unreachable", "unreachable",
        "{what} and this machine have no SSH algorithm in common: {detail}.",
        "Update the older of the two SSH installations.",
    ),
    "dropped": (
        "jump-unreachable", "unreachable",
        "{what} closed the connection before the login, several times in a row.",
        "Its sshd is over its MaxStartups limit or blocks this address (PerSourcePenalties): try again in a minute.",
    ),
    "lost": (
        "jump-unreachable", "lost",
        "The connection to {what} was lost{detail}.",
        "What ran there may still be running: check the host and the network, then try again.",
    ),
    "not-started": (
        "jump-forwarding", "lost",
        "{what} accepted the login and refused to start a command: {detail}.",
        "Check ForceCommand, MaxSessions and the user's shell on it.",
    ),
    "too-long": (
        "jump-unreachable", "timeout",
        "The command on {what} did not end within {detail} s.",
        "What it started may still be running there: check the host, or allow more time.",
    ),
    "too-big": (
        "jump-unreachable", "lost",
        "The command on {what} wrote more than {detail} MB.",
        "Let it write to a file, or read it through a live channel.",
    ),
    "other": (
        "jump-unreachable", "unreachable",
        "Connecting to {what} failed: {detail}.",
        "Try it by hand with ssh -v to see more.",
    ),
}  # fmt: skip


def failure(place: Place, cause: Cause, detail: str = "") -> Failure:
    """The one message for this cause at this place."""
    jump_kind, node_kind, message, remedy = CAUSES[cause]
    words = place.words | {"detail": detail.strip().rstrip(".") if cause != "lost" else detail}
    text = message.format(**words)
    kind = jump_kind if place.role == "jump" else node_kind
    return Failure(place.host, kind, text[0].upper() + text[1:], remedy.format(**words))


def host_key_failure(place: Place, changed: HostKeyChanged) -> Failure:
    """A changed or revoked host key, with the file, the line and the command that forgets it."""
    what = place.words["what"]
    if changed.revoked:
        return Failure(
            place.host,
            "host-key",
            f"The host key of {what} is revoked in {changed.path}:{changed.line}.",
            "Do not connect until its owner has given it a new key.",
        )
    return Failure(
        place.host,
        "host-key",
        f"The host key of {what} is not the one in {changed.path}:{changed.line}: "
        "it was reinstalled, or someone is in between.",
        f"If you know why, forget the old key with: ssh-keygen -R '{changed.name}' -f '{changed.path}'",
    )


# What OpenSSH's client prints, first match wins. Sources: ssh.c, sshconnect.c, channels.c, mux.c, packet.c.
STDERR: tuple[tuple[str, Cause], ...] = (
    (r"Permission denied \(|Too many authentication failures|No more authentication methods", "auth"),
    (r"administratively prohibited", "forwarding"),
    (r"Could not resolve hostname|Name or service not known|Temporary failure in name resolution", "name"),
    (r"No address associated with hostname|nodename nor servname", "name"),
    (r"Connection refused", "refused"),
    (r"timed out|Timeout, server .* not responding", "timeout"),
    (r"No route to host|Network is unreachable|Host is down", "route"),
    (r"Unable to negotiate|no matching .* found", "algorithms"),
    (r"kex_exchange_identification|banner exchange|Connection closed by|Connection reset by", "dropped"),
    (r"Session open refused by peer|resource shortage|Broken pipe|mux_client", "dropped"),
)
_OFFENDING = re.compile(r"Offending \S+ key in (?P<path>.+):(?P<line>\d+)")
_CHANGED = re.compile(r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|key is marked as revoked")


def stderr_cause(text: str) -> Cause | None:
    """What OpenSSH's stderr says went wrong; None when it says nothing that is known."""
    return next((cause for pattern, cause in STDERR if re.search(pattern, text)), None)


def stderr_failure(place: Place, text: str, *, name: str, known_hosts: str) -> Failure:
    """Failure for the stderr of an ssh process that did not connect; ``name`` is the host as known_hosts has it."""
    from pathlib import Path

    if _CHANGED.search(text):
        found = _OFFENDING.search(text)
        path, line = (found["path"], int(found["line"])) if found else (known_hosts, 0)
        return host_key_failure(place, HostKeyChanged(name, Path(path), line, revoked="revoked" in text))
    cause = stderr_cause(text)
    if cause is None:
        lines = [line for line in text.splitlines() if line.strip()]
        return failure(place, "other", lines[-1] if lines else "ssh ended without a message")
    return failure(place, cause, _detail(text, cause))


def _detail(text: str, cause: Cause) -> str:
    if cause != "algorithms":
        return ""
    return next((line for line in text.splitlines() if "matching" in line), "no common algorithm")
