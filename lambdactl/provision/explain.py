"""Failures in words: what Ansible or a node said -> cause and remedy, each one clause.

The table is data. Its patterns were taken from real messages of apt, dpkg, sudo, sshd, Python and this project's roles;
`tests/unit/test_provision_explain.py` holds one for each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Explanation:
    """Why a step failed and what to do about it, each a sentence without the host's name."""

    cause: str
    remedy: str


@dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[str]
    cause: str
    remedy: str


def _rule(pattern: str, cause: str, remedy: str) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE | re.DOTALL), cause, remedy)


# First match wins, so the narrow come before the wide. `{name}` in a text is a named group of the pattern.
_RULES = (
    _rule(
        r"get lock (?P<file>\S+?)\. It is held by process (?P<pid>\d+) \((?P<holder>[^)]*)\)",
        "The package manager's lock {file} is held by {holder} (process {pid}).",
        "Wait until {holder} has ended, then run again; openmpi_lock_timeout sets how long a run waits by itself.",
    ),
    _rule(
        r"could not get lock (?P<file>\S+)|unable to (?:lock|acquire the dpkg)",
        "Another package manager is running.",
        "Wait until it has ended, then run again.",
    ),
    _rule(
        r"no space left on device|not enough free (?:disk )?space|you don't have enough free space",
        "No space is left on the node's disk.",
        "Free some space (df -h shows where it went), then run again.",
    ),
    _rule(
        r"dpkg was interrupted",
        "An earlier package installation was interrupted.",
        "Run `sudo dpkg --configure -a` on the node, then run again.",
    ),
    _rule(
        r"unmet dependencies|held broken packages",
        "The node's packages contradict each other, so that apt refuses to install.",
        "Run `sudo apt-get --fix-broken install` on the node, then run again.",
    ),
    _rule(
        r"unable to locate package (?P<package>\S+)|has no installation candidate",
        "A package is not in the node's package sources.",
        "Enable the distribution's main (Ubuntu: universe) repository on the node, then run again.",
    ),
    _rule(
        r"could not resolve '(?P<mirror>[^']+)'|temporary failure resolving '(?P<mirror2>[^']+)'",
        "The package mirror cannot be resolved by the node.",
        "Check the node's DNS and internet access, or point its package sources to a mirror that it reaches.",
    ),
    _rule(
        r"failed to fetch (?P<url>\S+)|cannot initiate the connection|connection timed out \[IP",
        "The node cannot download packages from its mirror.",
        "Check the node's internet access or proxy, or point its package sources to a mirror that it reaches.",
    ),
    _rule(
        r"remote host identification has changed|host key (?:verification failed|for \S+ has changed)",
        "The node's SSH host key is not the one that was seen before.",
        "If the node was reinstalled, forget its old key (ssh-keygen -R); otherwise somebody may be in between.",
    ),
    _rule(
        r"unprotected private key file|permissions \d+ for .* are too open|bad permissions",
        "The SSH private key can be read by other users, so ssh refuses to use it.",
        "Run `chmod 600` on the key file.",
    ),
    _rule(
        r"permission denied \((?:publickey|password|keyboard-interactive)",
        "The node refuses the SSH key.",
        "Check `user` and `identity_file` in the fleet file, and that the public key is in the node's authorized_keys.",
    ),
    _rule(
        r"(?:missing sudo password|a password is required|incorrect sudo password|privilege output closed|"
        r"is not in the sudoers)",
        "The login user has no sudo without a password.",
        "Give it to the user on the node: `<user> ALL=(ALL) NOPASSWD: ALL` in /etc/sudoers.d/.",
    ),
    _rule(
        r"(?:sudo: (?:command )?not found|/sudo: no such file)",
        "sudo is not installed on the node.",
        "Install it, or let the fleet file's `user` be root.",
    ),
    _rule(
        r"(?:python3?: (?:command )?not found|no python interpreters found|python\d?: no such file|"
        r"interpreter .* was not found|failed to locate .*python)",
        "Python 3 is missing on the node.",
        "Install it: `sudo apt-get install python3`.",
    ),
    _rule(
        r"stdio forwarding failed|administratively prohibited",
        "The jump host does not forward connections.",
        "Allow it there: `AllowTcpForwarding yes` in sshd_config.",
    ),
    _rule(
        r"kex_exchange_identification|connection reset by peer",
        "The SSH server dropped the connection before the login.",
        "Run again; if it stays, look at MaxStartups and the firewall of the jump host and the node.",
    ),
    _rule(
        r"connection refused",
        "Nothing answers on the node's SSH port.",
        "Check that sshd runs on the node and that `port` in the fleet file is right.",
    ),
    _rule(
        r"could not resolve hostname|name or service not known",
        "The node's name cannot be resolved.",
        "Write its address as `hostname` in the fleet file, or make the name known to the jump host.",
    ),
    _rule(
        r"(?:connection|operation|connect.*) timed? ?out|no route to host|host is unreachable|network is unreachable",
        "The node does not answer.",
        "Check that it is up and that the jump host reaches it.",
    ),
    _rule(
        r"timeout \((?P<limit>\d+s?)\) waiting for privilege escalation|timed out waiting for become success",
        "sudo did not answer in time.",
        "Check that `sudo -n true` works on the node without a question.",
    ),
    _rule(
        r"read-only file system",
        "The node's file system is read-only.",
        "Look for disk errors on the node (`dmesg`), then remount it writable or reboot.",
    ),
    _rule(
        r"checksum mismatch|checksum .* does not match|did not match .*checksum",
        "The downloaded file does not have the expected checksum.",
        "Check the URL and nccl_tests_sha256; nothing was installed.",
    ),
    _rule(
        r"out of memory|cannot allocate memory|killed signal",
        "The node ran out of memory.",
        "Stop what uses it, then run again.",
    ),
)
_FALLBACK = "Look at the step's whole output with `ansible-playbook -vv`, then run again."
_REMEDY = " Remedy: "  # between cause and remedy in the sentences of our own roles and playbooks
_MAX = 400


def sentence(cause: str, remedy: str) -> str:
    """How our own tasks say a failure, so that `explain` takes it apart again."""
    return f"{cause}{_REMEDY}{remedy}"


def explain(result: Mapping[str, Any] | str) -> Explanation:
    """Cause and remedy of a failed task's result, or of a message; its first line where no rule knows it."""
    text = result if isinstance(result, str) else _text(result)
    message = text if isinstance(result, str) else str(result.get("msg") or text)
    if _REMEDY in message:
        cause, _, remedy = message.partition(_REMEDY)
        return Explanation(_one_line(cause), _one_line(remedy))
    for rule in _RULES:
        found = rule.pattern.search(text)
        if found:
            names = {key: value or "" for key, value in found.groupdict().items()}
            return Explanation(rule.cause.format_map(names), rule.remedy.format_map(names))
    return Explanation(_first_line(message), _FALLBACK)


def _text(result: Mapping[str, Any]) -> str:
    """All that a result says, the items of a loop included."""
    parts = [
        str(result[key]) for key in ("msg", "stderr", "module_stderr", "stdout", "module_stdout") if result.get(key)
    ]
    for item in result.get("results") or ():
        if isinstance(item, Mapping) and item.get("failed"):
            parts.append(_text(item))
    return "\n".join(parts)


def _first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    first = lines[0][:_MAX] if lines else "The step failed without a message"
    return first if first.endswith((".", "!", "?")) else first + "."


def _one_line(text: str) -> str:
    return " ".join(text.split())
