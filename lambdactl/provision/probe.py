"""One look at all nodes at once: facts, what is provisioned there, and what stands in the way, each as one sentence.

A node whose runner is the controller's own answers in one exec with less than 1 KB sent. Any other node gets the runner
on standard input and runs it from memory: a look never writes to a node, so that it serves check mode too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambdactl import content
from lambdactl.provision.explain import explain, sentence
from lambdactl.provision.roles import ROLES, Change, Peer, needed, peers

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet
    from lambdactl.transport.api import Completed, Failure, Runner

_TIMEOUT = 90.0  # seconds a node; nvidia-smi without persistence mode takes up to ten
_NO_PYTHON, _NO_SUDO, _NO_RUNNER = 95, 94, 98  # exit codes of _FIND, below ssh's 255
_MIN_PYTHON = (3, 8)
_MIN_FREE = 600_000_000  # bytes; Open MPI with its compiler takes about 350 MB unpacked, plus the downloads

# The system's own Python comes first: a login user's PATH may lead to a virtual environment. Root needs no sudo.
# Without a program of its own for what the shell can do: each costs a node as much as the shell itself.
_FIND = (
    "p=/usr/bin/python3; [ -x $p ] || p=$(command -v python3) || exit 95; s=; "
    '[ "${LOGNAME:-}" = root ] || [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null || exit 94; s="sudo -n"; }; '
)
_INSTALLED = (
    'd="${LAMBDACTL_ROOT:-}/opt/lambdactl"; '
    'h=; { read -r h <"$d/runner.sha256"; } 2>/dev/null; [ "$h" = %s ] && [ -r "$d/runner.pyz" ] || exit 98; '
    'q="${LAMBDACTL_ROOT:-}/var/lib/lambdactl/compiled/start.py"; [ -r "$q" ] || q="$d/runner.pyz"; '
    'exec $s $p -I -S "$q" serve'
)
# `answer` and not `serve`: the latter makes the runner's folders, and a look must not leave anything behind.
_FROM_MEMORY = (
    "exec $s $p -I -S -c 'import json,os,sys\n"
    'left=%d\nfd=os.memfd_create("runner",0)\n'
    "while left:\n"
    " part=os.read(0,min(left,65536))\n"
    " if not part: sys.exit(1)\n"
    " left-=len(part)\n"
    " while part: part=part[os.write(fd,part):]\n"
    'sys.path.insert(0,"/proc/self/fd/%%d"%%fd)\n'
    "from lambdactl.node.serve import answer\n"
    "print(json.dumps(answer(sys.stdin.buffer.readline())))'"
)


@dataclass(frozen=True)
class Problem:
    """Why a host cannot be provisioned: `kind` is a transport failure's kind or no-python, no-sudo, no-space, ..."""

    host: str
    kind: str
    cause: str
    remedy: str

    @property
    def sentence(self) -> str:
        """Cause and remedy, in the form that `explain` takes apart."""
        return sentence(self.cause, self.remedy)


@dataclass(frozen=True)
class Reply:
    """A host's answer, and the controller's clock (seconds since 1970) when it was asked and when it had answered."""

    answer: Mapping[str, Any] | Problem
    asked_at: float
    answered_at: float


@dataclass(frozen=True)
class Survey:
    """What the look at a fleet brought.

    Attributes:
        facts: of each host that answered, the probe's facts as they came.
        problems: of each host that cannot be provisioned or used, why.
        addresses: the address of each node on the network that the nodes share.
        nodes: what nodes must know of each other, in rank order.
        needed: for each host without a problem the roles that it needs, empty where all is in place.
    """

    facts: Mapping[str, Mapping[str, Any]]
    problems: Mapping[str, Problem]
    addresses: Mapping[str, str]
    nodes: Sequence[Peer] = ()
    needed: Mapping[str, Sequence[Change]] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        """The hosts that need a role, in rank order."""
        return [host for host, roles in self.needed.items() if roles]


@asynccontextmanager
async def reach(fleet: Fleet) -> AsyncIterator[Runner]:
    """The parent process's open connections where LAMBDACTL_BROKER names their socket, own connections otherwise."""
    socket_path = os.environ.get("LAMBDACTL_BROKER")
    if socket_path:
        from lambdactl.transport.broker import BrokerTransport

        yield BrokerTransport(socket_path)
        return
    from lambdactl.transport import open_transport

    async with open_transport(fleet) as transport:
        yield transport


async def survey(
    fleet: Fleet,
    runner: Runner,
    *,
    names: Sequence[str] | None = None,
    variables: Mapping[str, Mapping[str, Any]] | None = None,
    force: bool = False,
    on_result: Callable[[str, Problem | None], None] | None = None,
) -> Survey:
    """Look at the hosts `names` (default: all of the fleet) and work out what each needs.

    Args:
        runner: an open transport, or the broker's client.
        variables: role variables of each host.
        force: every role is needed on every host.
        on_result: called as each host has answered.
    """
    from lambdactl.fleet.facts import NodeFacts
    from lambdactl.fleet.network import internal_ips

    chosen = [host.name for host in fleet.hosts if names is None or host.name in names]
    request = {"op": "probe", "roles": dict.fromkeys(ROLES, "")}
    answers = {name: reply.answer for name, reply in (await ask(runner, chosen, request, on_result=on_result)).items()}
    facts = {name: answer for name, answer in answers.items() if not isinstance(answer, Problem)}
    problems = {name: answer for name, answer in answers.items() if isinstance(answer, Problem)}
    addresses, reasons = internal_ips(fleet, {name: NodeFacts.from_probe(dict(known)) for name, known in facts.items()})
    problems |= {name: _no_address(name, reason) for name, reason in reasons.items() if name in facts}
    roles = needed(fleet, facts, asked_for(fleet) if variables is None else variables, addresses, force=force)
    problems |= _preflight(facts, roles, problems)
    return Survey(
        facts=facts,
        problems={name: problems[name] for name in chosen if name in problems},
        addresses=addresses,
        nodes=peers(fleet, facts, addresses),
        needed={name: roles[name] for name in chosen if name in roles and name not in problems},
    )


def asked_for(fleet: Fleet) -> dict[str, dict[str, str]]:
    """The role variables that the fleet file itself sets; the inventory gives them to Ansible as well."""
    return {host.name: fleet.role_variables for host in fleet.hosts}


async def ask(
    runner: Runner,
    names: Sequence[str],
    request: Mapping[str, Any],
    *,
    timeout: float = _TIMEOUT,
    on_result: Callable[[str, Problem | None], None] | None = None,
) -> dict[str, Reply]:
    """One request of the serve protocol to each host; the answers are in the order of `names`.

    Hosts without this runner are asked again, with the runner on standard input.

    Args:
        request: "op" and its fields; the operation must not need the runner's folders.
        timeout: seconds a node.
        on_result: called as each host has answered.
    """
    line = json.dumps({"id": 1, **request}, separators=(",", ":")).encode() + b"\n"
    replies: dict[str, Reply] = {}
    without: list[str] = []
    asked_at = time.time()

    def take(name: str, outcome: Completed | Failure) -> None:
        if getattr(outcome, "rc", None) == _NO_RUNNER and name not in without:
            without.append(name)
            return
        answer = _answer(name, outcome)
        replies[name] = Reply(answer, asked_at, time.time())
        if on_result is not None:
            on_result(name, answer if isinstance(answer, Problem) else None)

    command = _FIND + _INSTALLED % content.runner_sha256()
    await runner.fan_out(dict.fromkeys(names, (command, line)), timeout=timeout, on_result=take)
    if without:
        zipapp = content.runner_zipapp()
        carried = (_FIND + _FROM_MEMORY % len(zipapp), zipapp + line)
        asked_at = time.time()
        await runner.fan_out(dict.fromkeys(list(without), carried), timeout=timeout, on_result=take)
    return {name: replies[name] for name in names}


def _answer(name: str, outcome: Completed | Failure) -> Mapping[str, Any] | Problem:
    """The facts in a host's answer, or why there are none."""
    from lambdactl.transport.api import Failure

    if isinstance(outcome, Failure):
        return Problem(name, outcome.kind, outcome.message, outcome.remedy)
    rc, stdout = outcome.rc, outcome.stdout
    stderr = outcome.stderr.decode(errors="replace")
    if rc == _NO_PYTHON:
        return _explained(name, "no-python", "python3: not found")
    if rc == _NO_SUDO:
        return _explained(name, "no-sudo", "sudo: not found")
    for line in stdout.splitlines():
        reply = _reply(line)
        if reply is not None:
            return _facts(name, reply)
    return _explained(
        name, "no-sudo" if "sudo" in stderr else "failed", stderr or f"The node's runner ended with {rc}."
    )


def _reply(line: bytes) -> dict[str, Any] | None:
    """A line of the runner; what a login shell prints around it is not one."""
    if not line.startswith(b"{"):
        return None
    try:
        reply = json.loads(line)
    except ValueError:
        return None
    return reply if isinstance(reply, dict) and "ok" in reply else None


def _facts(name: str, reply: dict[str, Any]) -> Mapping[str, Any] | Problem:
    if reply["ok"] and isinstance(reply.get("result"), dict):
        return dict(reply["result"])
    error = reply.get("error")
    return _explained(name, "failed", str(error.get("message") if isinstance(error, dict) else reply))


def _explained(name: str, kind: str, message: str) -> Problem:
    known = explain(message)
    return Problem(name, kind, known.cause, known.remedy)


def _no_address(name: str, reason: str) -> Problem:
    remedy = "Set `network` (a subnet), or `internal_ip` on each host, in the fleet file."
    return Problem(name, "network", reason if reason.endswith(".") else f"{reason}.", remedy)


def _preflight(
    facts: Mapping[str, Mapping[str, Any]], roles: Mapping[str, Sequence[Change]], problems: Mapping[str, Problem]
) -> dict[str, Problem]:
    """What would make provisioning fail later, said before anything is changed."""
    found = {}
    for name, known in facts.items():
        problem = None if name in problems else _unfit(name, known, {change.role for change in roles.get(name, ())})
        if problem is not None:
            found[name] = problem
    return found


def _unfit(name: str, known: Mapping[str, Any], roles: set[str]) -> Problem | None:
    version = str(known.get("python", ""))
    if _version(version) < _MIN_PYTHON:
        return Problem(name, "old-python", f"Python {version} on the node is too old.", "Install Python 3.8 or newer.")
    if known.get("systemd") is False and not known.get("root"):  # below LAMBDACTL_ROOT it works without
        cause = "The node does not run systemd, which supervises the ranks."
        return Problem(name, "no-systemd", cause, "Use an image that boots with systemd.")
    free = (known.get("disk") or {}).get("free")
    if "openmpi" in roles and not known.get("openmpi") and isinstance(free, int) and free < _MIN_FREE:
        cause = (
            f"Only {free // 1_000_000} MB are free on the node's disk, and Open MPI needs {_MIN_FREE // 1_000_000} MB."
        )
        return Problem(name, "no-space", cause, "Free some space (df -h shows where it went), then run again.")
    return None


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
