"""One login with asyncssh: options, host key policy, credentials and the gate in front of them."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from lambdactl.errors import LambdactlError
from lambdactl.transport.hostkeys import DEFAULT_PORT, HostKeyChanged, KnownHosts
from lambdactl.transport.identity import Identities, UnusableKey
from lambdactl.transport.window import AuthGate

if TYPE_CHECKING:
    from lambdactl.fleet import Hop

KEEPALIVE = 15  # seconds between keepalives; four unanswered ones end the connection
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"  # fastest in asyncssh by far, and in every OpenSSH since 6.2
# The outer connection is post-quantum already; curve25519 alone costs a fifth of the CPU.
INNER_KEX = "^curve25519-sha256,curve25519-sha256@libssh.org"
PLAIN_KEY_TYPES = (
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256",
)  # fmt: skip
CERTIFICATE_TYPES = tuple(f"{kind}-cert-v01@openssh.com" for kind in PLAIN_KEY_TYPES)
SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}  # key type -> signature algorithms, where they differ


class Policy:
    """The fleet's host key policy over its known_hosts file."""

    def __init__(self, known_hosts: KnownHosts, rule: str) -> None:
        self.known_hosts = known_hosts
        self.rule = rule  # StrictHostKeyChecking: accept-new | yes | no

    def trusted(self, host: str, port: int) -> tuple[list[Any], ...]:
        """What asyncssh wants to know: trusted keys, certificate authorities, revoked keys, and X.509's four (none)."""
        keys: dict[str, list[Any]] = {"": [], "@cert-authority": [], "@revoked": []}
        for entry in self.known_hosts.entries(host, port):
            try:
                key = asyncssh.import_public_key(entry.text)
            except asyncssh.KeyImportError:
                continue  # a key type that asyncssh does not know cannot be offered either
            keys.setdefault(entry.marker, []).append(key)
        return keys[""], keys["@cert-authority"], keys["@revoked"], [], [], [], []

    def algorithms(self, host: str, port: int) -> list[str]:
        """Host key algorithms to ask for: the known key's own first, so that another type is no "changed" key."""
        entries = self.known_hosts.entries(host, port)
        known = [
            name for entry in entries if not entry.marker for name in SIGNATURES.get(entry.key_type, (entry.key_type,))
        ]
        certified = CERTIFICATE_TYPES if any(entry.marker == "@cert-authority" for entry in entries) else ()
        return [name for name in dict.fromkeys((*certified, *known, *PLAIN_KEY_TYPES)) if name in _SUPPORTED]


_SUPPORTED = {
    name.decode() for name in asyncssh.public_key.get_public_key_algs() + asyncssh.public_key.get_certificate_algs()
}


class Client(asyncssh.SSHClient):
    """One login: what asyncssh asks during it, and what it left behind for the message when it failed."""

    def __init__(self, policy: Policy, alias: str | None, gate: AuthGate | None) -> None:
        self._policy = policy
        self._alias = alias
        self._gate = gate
        self.pairs: list[asyncssh.SSHKeyPair] = []
        self.connection: asyncssh.SSHClientConnection | None = None
        self.changed: HostKeyChanged | None = None
        self.unknown_key = False
        self.unfiled = ""  # why the key of a new host could not be kept
        self.spared = False  # the gate was shut: the key was not tried here
        self._credential: Hashable = None
        self._entered = False

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn

    @property
    def secured(self) -> bool:
        """Whether the key exchange got to its end."""
        return self.connection is not None and self.connection.get_extra_info("send_cipher") is not None

    def known_hosts(self, host: str, _address: str, port: int | None) -> tuple[list[Any], ...]:
        return self._policy.trusted(*self._filed_as(host, port))

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called for keys that are not trusted yet."""
        text = key.export_public_key("openssh").decode()
        name, port = self._filed_as(host, port)
        try:
            if self._policy.rule == "yes":
                self.unknown_key = not self._policy.known_hosts.check(name, port, text)
                return not self.unknown_key
            self._policy.known_hosts.accept(name, port, text)
        except HostKeyChanged as changed:
            if self._policy.rule != "no" or changed.revoked:
                self.changed = changed
                return False
        except OSError as error:
            self.unfiled = f"{self._policy.known_hosts.path}: {error.strerror or error}"
            return False
        return True

    def _filed_as(self, host: str, port: int | None) -> tuple[str, int]:
        # OpenSSH files an alias without the port.
        return (self._alias, DEFAULT_PORT) if self._alias else (host, port or DEFAULT_PORT)

    async def public_key_auth_requested(self) -> list[asyncssh.SSHKeyPair] | None:
        """All keys at once, when the gate lets this host through."""
        if not self.pairs:
            return None
        pairs, self.pairs = self.pairs, []
        if self._gate is not None:
            username = self.connection.get_extra_info("username") if self.connection else ""
            self._credential = (username, tuple(pair.public_data for pair in pairs))
            self._entered = await self._gate.enter(self._credential)
            self.spared = not self._entered
        return None if self.spared else pairs

    def finish(self, *, accepted: bool | None) -> None:
        """Tell the gate how the login ended."""
        if self._gate is not None and self._entered:
            self._gate.leave(self._credential, accepted=accepted)


class Logins:
    """Makes asyncssh connections for hops."""

    def __init__(self, policy: Policy, timeout: float) -> None:
        self.policy = policy
        self.identities = Identities()
        self._timeout = timeout

    async def connect(
        self, client: Client, hop: Hop, tunnel: asyncssh.SSHClientConnection | None, alias: str | None
    ) -> asyncssh.SSHClientConnection:
        """Log in at one hop, through ``tunnel`` if there is one; the user's ~/.ssh/config fills in what we do not set.

        Raises UnusableKey; ValueError for a configuration that asyncssh cannot read; what asyncssh and sockets raise.
        """
        settings: dict[str, Any] = {
            "client_factory": lambda: client,
            "host": hop.hostname,
            "port": hop.port,
            "known_hosts": client.known_hosts,
            "encryption_algs": CIPHERS,
            "compression_algs": None,
            "keepalive_interval": KEEPALIVE,
            "keepalive_count_max": 4,
            "login_timeout": self._timeout,
            "agent_forwarding": False,
            "x509_trusted_certs": None,
        }
        if tunnel is not None:
            settings |= {"kex_algs": INNER_KEX, "tunnel": tunnel}
        if hop.user is not None:
            settings["username"] = hop.user
        if alias is not None:
            settings["host_key_alias"] = alias
        # asyncssh.connect() prepares its options anew; these here are only asked what ~/.ssh/config has to say.
        path = key_path(hop)
        if path is not None:
            client.pairs = await self.identities.from_file(path)
            options = asyncssh.SSHClientConnectionOptions(client_keys=None, **settings)
        else:
            options = asyncssh.SSHClientConnectionOptions(**settings)
            client.pairs = await self._default_keys(options)
        name, port = (alias, DEFAULT_PORT) if alias else (options.host_key_alias or options.host, options.port)
        algorithms = self.policy.algorithms(name, port)
        # All keys are handed over by the client, which waits at the gate first.
        return await asyncssh.connect(client_keys=None, server_host_key_algs=algorithms, **settings)

    async def _default_keys(self, options: asyncssh.SSHClientConnectionOptions) -> list[asyncssh.SSHKeyPair]:
        """The keys of the agent, and those that asyncssh found for itself."""
        held = await self.identities.from_agent(options.agent_path) if options.agent_path else []
        wanted = options.agent_identities
        pairs = [pair for pair in held if wanted is None or pair.public_data in wanted]
        return pairs + list(options.client_keys or ())


def key_path(hop: Hop) -> str | None:
    """The hop's identity file on this machine. Raises UnusableKey when the fleet names one that is not set."""
    try:
        return hop.key_path()
    except LambdactlError as error:
        raise UnusableKey(error.message) from None


async def unusable(identities: Identities, hops: list[Hop]) -> str | None:
    """Why asyncssh cannot log in at these hops though OpenSSH perhaps could; None when it can."""
    for hop in hops:
        try:
            path = key_path(hop)
            if path is not None:
                if Path(path).exists():  # noqa: ASYNC240 - a file that is missing is missing for OpenSSH too
                    await identities.from_file(path)
                continue
            options = asyncssh.SSHClientConnectionOptions(host=hop.hostname, port=hop.port)
            held = await identities.from_agent(options.agent_path) if options.agent_path else []
            if not options.client_keys and not held:
                return f"no key for {hop.hostname} that needs no passphrase"
        except UnusableKey as error:
            return f"key {hop.identity_file}: {error}"
        except (ValueError, OSError) as error:
            return f"~/.ssh/config: {error}"
    return None
