"""What a transport takes and gives: the results, and the protocols that both backends keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet

FailureKind = Literal[
    "jump-unreachable", "jump-auth", "jump-forwarding", "unreachable", "auth", "host-key", "timeout", "lost"
]
Kind = Literal["auto", "asyncssh", "openssh"]

CONNECT_TIMEOUT = 15.0  # seconds for each hop: TCP, key exchange and login
WINDOW = 64  # inner handshakes under way at a time
SESSIONS = 8  # exec sessions on one node connection at a time; sshd's stock MaxSessions is 10
STDERR_KEPT = 64 << 10  # bytes of a channel's stderr that are kept, the last ones


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a host has no result: one sentence of cause, one of remedy."""

    host: str
    kind: FailureKind
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ran to its end on a host; ``rc`` is 128+n when signal n ended it."""

    host: str
    rc: int
    stdout: bytes
    stderr: bytes


Outcome: TypeAlias = Completed | Failure
Commands: TypeAlias = str | Mapping[str, str | tuple[str, bytes]]
OnConnect: TypeAlias = Callable[[str, Failure | None], None]
OnResult: TypeAlias = Callable[[str, Outcome], None]


class TransportError(Exception):
    """Raised where there is no result to put a failure into (opening a channel or a forward)."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))


class Channel(Protocol):
    """A command's live input and output on one host."""

    @property
    def stderr(self) -> bytes:
        """The last 64 KB that the command wrote to its standard error."""
        ...

    @property
    def failure(self) -> Failure | None:
        """Why the command ended without an exit status, once it has."""
        ...

    async def write(self, data: bytes) -> None:
        """Send to the command's standard input; waits while the far side does not read."""
        ...

    async def write_eof(self) -> None:
        """End the command's standard input."""
        ...

    async def read(self, n: int = 1 << 20) -> bytes:
        """Return what has arrived, at least one byte and at most n; b"" at the end of the output."""
        ...

    async def wait(self) -> int:
        """Wait for the end and return the exit status; raises TransportError when the connection was lost."""
        ...

    async def close(self) -> None:
        """End the channel now. Idempotent."""
        ...


class Forward(Protocol):
    """A listening local port, or unix socket, whose connections come out on a node."""

    @property
    def port(self) -> int:
        """The local TCP port (0 for a unix socket)."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the connection that carries it is open; a new forward is needed when it is not."""
        ...

    async def close(self) -> None: ...


class Runner(Protocol):
    """What a transport and a broker client have in common."""

    async def connect(
        self, names: Sequence[str] | None = None, on_result: OnConnect | None = None
    ) -> dict[str, Failure | None]:
        """Connect to these hosts (default: all); those that are connected stay so. Never raises for a host."""
        ...

    async def run(self, name: str, command: str, *, input: bytes = b"", timeout: float | None = None) -> Outcome:
        """Run one command on one host, connecting first where needed."""
        ...

    async def fan_out(
        self,
        commands: Commands,
        *,
        names: Sequence[str] | None = None,
        input: bytes = b"",
        timeout: float | None = None,
        on_result: OnResult | None = None,
    ) -> dict[str, Outcome]:
        """Run one command a host, all at once.

        Args:
            commands: one command for all of ``names`` (default: every host), or per host a command or (command, input).
            input: standard input where ``commands`` does not give one.
            timeout: seconds a host, from the moment that its command starts.
            on_result: called as each host ends.
        """
        ...


class Transport(Runner, Protocol):
    """Connections to the hosts of one fleet through its jump hosts."""

    fleet: Fleet
    kind: str

    async def channel(self, name: str, command: str) -> Channel:
        """Start a command with live input and output; raises TransportError."""
        ...

    async def forward(
        self, name: str, remote: int | str, *, local_host: str = "127.0.0.1", local_port: int = 0
    ) -> Forward:
        """Listen locally and connect to ``remote`` (a port of the node's localhost, or a socket path) there."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def plan_commands(
    commands: Commands,
    names: Sequence[str] | None,
    everyone: Sequence[str],
    input: bytes,
) -> dict[str, tuple[str, bytes]]:
    """Spell out who runs what: {name: (command, input)}, in the order given."""
    if isinstance(commands, str):
        return dict.fromkeys(everyone if names is None else names, (commands, input))
    chosen = commands if names is None else {name: commands[name] for name in names}
    return {name: (item, input) if isinstance(item, str) else item for name, item in chosen.items()}
