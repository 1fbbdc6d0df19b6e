"""Talking to the runners on the nodes: the serve protocol over a transport, one exec a node for all its requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from lambdactl.errors import CapacityError, ConnectionFailed, LambdactlError
from lambdactl.transport.api import Completed, Failure, FailureKind

if TYPE_CHECKING:
    from lambdactl.transport.api import Outcome, Runner

# One line of POSIX shell: root needs no sudo; LAMBDACTL_ROOT is a runner without root and systemd. The system's own
# Python comes first, because a login user's PATH may lead to a virtual environment. 96 and 97 are our exit codes.
# `start.py` is the same runner as this Python has compiled it (lambdactl/node/compiled.py).
_RUNNER = (
    'r="${{LAMBDACTL_ROOT:-}}/opt/lambdactl/runner.pyz"; '
    '[ -e "$r" ] || {{ echo "lambdactl: no runner" >&2; exit 96; }}; '
    'q="${{LAMBDACTL_ROOT:-}}/var/lib/lambdactl/compiled/start.py"; [ -r "$q" ] && r=$q; '
    "p=/usr/bin/python3; [ -x $p ] || p=python3; "
    'if [ -n "${{LAMBDACTL_ROOT:-}}" ] || [ "${{LOGNAME:-}}" = root ] || [ "$(id -u)" = 0 ]; '
    'then exec $p -I -S "$r" {verb}; fi; '
    'command -v sudo >/dev/null || {{ echo "lambdactl: no sudo" >&2; exit 97; }}; '
    'exec sudo -n $p -I -S "$r" {verb}'
)
# Refusals that another moment may lift: in use, kept for a run that comes first, the name is taken.
CAPACITY_CODES = ("busy", "queued", "exists")
_EXIT_NO_RUNNER, _EXIT_NO_SUDO = 96, 97
# Seconds that the other hosts get once it is known what was asked for: more than any host that is well needs.
OTHERS_GET = 1.0


def runner_command(verb: str) -> str:
    """The shell line that runs a verb of the node's runner, as root; `verb` must be made of trusted, quoted words."""
    return _RUNNER.format(verb=verb)


@dataclass(frozen=True)
class Problem:
    """Why a node gave no answer; `code` is a transport's kind, a runner's error code, or no-runner, no-sudo, ..."""

    host: str
    code: str
    message: str
    remedy: str | None = None
    data: Mapping[str, Any] | None = None

    @property
    def sentence(self) -> str:
        """Cause and remedy in one line."""
        return f"{self.host}: {self.message}" + (f" {self.remedy}" if self.remedy else "")

    def error(self) -> LambdactlError:
        """The same as an exception with the right exit code."""
        return error_of(self.code, self.sentence)


def error_of(code: str | None, sentence: str) -> LambdactlError:
    """The exception, and with it the exit code, for a Problem's code."""
    if code in CAPACITY_CODES:
        return CapacityError(sentence)
    if code in get_args(FailureKind):
        return ConnectionFailed(sentence)
    return LambdactlError(sentence)


Reply = dict[str, Any]
Answers: TypeAlias = Mapping[str, Reply | Problem]
# Asked after each answer, with all that have come: whether they say what was asked for, whatever the others may say.
Settled: TypeAlias = Callable[[Answers], bool]


async def call(
    transport: Runner, requests: Mapping[str, Sequence[Mapping[str, Any]]], *, timeout: float | None = 60
) -> dict[str, list[Reply | Problem] | Problem]:
    """Send each node its requests in one exec and collect the replies in the same order.

    Args:
        requests: for each host the requests, each a mapping with "op" and the operation's fields.
        timeout: seconds for the whole exec of one node.

    Returns:
        For each host the list of results (a dict, or a Problem where the runner refused that request), or one Problem
        where the node could not be asked at all.
    """
    payloads = {host: _payload(items) for host, items in requests.items()}
    answers = await transport.fan_out(payloads, timeout=timeout)
    return {host: _replies(host, answers[host], len(requests[host])) for host in requests}


async def call_all(
    transport: Runner,
    requests: Mapping[str, Mapping[str, Any]],
    *,
    timeout: float | None = 60,
    settled: Settled | None = None,
) -> dict[str, Reply | Problem]:
    """Like `call` with one request a node.

    Args:
        settled: once it holds, the other hosts get `OTHERS_GET` seconds more, so that one that is frozen does not keep
            up a question that it has no say in. Those that are silent then are Problems.
    """
    if settled is not None:
        return await _until_settled(transport, requests, timeout, settled)
    answers = await call(transport, {host: [request] for host, request in requests.items()}, timeout=timeout)
    return {host: _only(answer) for host, answer in answers.items()}


def _payload(requests: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
    return runner_command("serve"), b"".join(_line(number, request) for number, request in enumerate(requests, 1))


def _only(answer: list[Reply | Problem] | Problem) -> Reply | Problem:
    return answer if isinstance(answer, Problem) else answer[0]


async def _until_settled(
    transport: Runner, requests: Mapping[str, Mapping[str, Any]], timeout: float | None, settled: Settled
) -> dict[str, Reply | Problem]:
    payloads = {host: _payload([request]) for host, request in requests.items()}
    come: dict[str, Reply | Problem] = {}
    try:
        async with asyncio.timeout(None) as limit:

            def heard(host: str, outcome: Outcome) -> None:
                come[host] = _only(_replies(host, outcome, 1))
                if limit.when() is None and settled(come):
                    limit.reschedule(asyncio.get_running_loop().time() + OTHERS_GET)

            await transport.fan_out(payloads, timeout=timeout, on_result=heard)
    except TimeoutError:
        if not limit.expired():
            raise
    silent = {host: Problem(host, "timeout", "it has not answered in time.") for host in requests if host not in come}
    return {host: silent.get(host) or come[host] for host in requests}


def same(hosts: Iterable[str], **request: Any) -> dict[str, dict[str, Any]]:
    """The same request for each host."""
    return dict.fromkeys(hosts, request)


def _line(number: int, request: Mapping[str, Any]) -> bytes:
    return json.dumps({"id": number, **request}, separators=(",", ":")).encode() + b"\n"


def _replies(host: str, answer: Completed | Failure, wanted: int) -> list[Reply | Problem] | Problem:
    if isinstance(answer, Failure):
        return Problem(host, answer.kind, answer.message, answer.remedy)
    replies = _parse(answer.stdout)
    if len(replies) == wanted:
        return [_result(host, reply) for reply in replies]
    return _exec_problem(host, answer)


def _parse(stdout: bytes) -> list[dict[str, Any]]:
    """The JSON objects among the lines, by id; a login message before the first object is ignored."""
    replies = []
    for line in stdout.splitlines():
        if not line.startswith(b"{"):
            continue
        try:
            reply = json.loads(line)
        except ValueError:
            continue
        if isinstance(reply, dict) and "ok" in reply:
            replies.append(reply)
    return sorted(replies, key=lambda reply: reply.get("id") or 0)


def _result(host: str, reply: dict[str, Any]) -> Reply | Problem:
    if reply.get("ok"):
        result = reply.get("result")
        return result if isinstance(result, dict) else {}
    error = reply.get("error")
    error = error if isinstance(error, dict) else {}
    return Problem(
        host, str(error.get("code", "failed")), str(error.get("message", "the runner gave no reason.")), data=error
    )


def _exec_problem(host: str, answer: Completed) -> Problem:
    if answer.rc == _EXIT_NO_RUNNER:
        return Problem(host, "no-runner", "the runner is not installed.", "Apply the fleet file first.")
    words = answer.stderr.decode("utf-8", "replace").strip().splitlines()
    refused = answer.rc == 1 and any(line.startswith("sudo:") or " sudoers " in line for line in words)  # in its words
    if answer.rc == _EXIT_NO_SUDO or refused:
        return Problem(
            host,
            "no-sudo",
            "the login user may not use sudo without a password.",
            "Give it a NOPASSWD rule in /etc/sudoers.d, or log in as root.",
        )
    if answer.rc == 127:
        return Problem(host, "no-python", "python3 is not installed.", "Install Python 3.8 or newer on the node.")
    last = words[-1][:300] if words else "it printed nothing"
    return Problem(
        host,
        "runner-failed",
        f"the runner ended with exit code {answer.rc}: {last}.",
        "Apply the fleet file again to repair it.",
    )
