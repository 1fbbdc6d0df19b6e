"""One real message for each failure that has words of its own."""

from __future__ import annotations

import pytest

from lambdactl.provision import Explanation, explain, sentence
from lambdactl.provision.explain import _RULES

MESSAGES = [
    (
        "apt-get install failed: E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 4711 "
        "(unattended-upgr) E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is it?",
        "lock /var/lib/dpkg/lock-frontend is held by unattended-upgr (process 4711)",
        "Wait until unattended-upgr has ended",
    ),
    ("E: Unable to lock directory /var/lib/apt/lists/", "Another package manager is running", "Wait until"),
    ("[Errno 28] No space left on device: '/opt/lambdactl/runner.pyz'", "No space is left", "Free some space"),
    ("E: You don't have enough free space in /var/cache/apt/archives/.", "No space is left", "Free some space"),
    (
        "E: dpkg was interrupted, you must manually run 'sudo dpkg --configure -a' to correct the problem.",
        "package installation was interrupted",
        "dpkg --configure -a",
    ),
    ("E: Unmet dependencies. Try 'apt --fix-broken install'", "packages contradict each other", "--fix-broken"),
    ("E: Unable to locate package openmpi-bin", "not in the node's package sources", "repository"),
    ("E: Package 'x' has no installation candidate", "not in the node's package sources", "repository"),
    ("W: Failed to fetch http://m/ Temporary failure resolving 'deb.debian.org'", "mirror cannot be resolved", "DNS"),
    ("E: Failed to fetch http://m/x.deb  404  Not Found [IP: 1.2.3.4 80]", "cannot download packages", "proxy"),
    (
        "Failed to connect to the host via ssh: @@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@",
        "host key is not the one",
        "ssh-keygen -R",
    ),
    ("Host key verification failed.", "host key is not the one", "ssh-keygen -R"),
    ("@ WARNING: UNPROTECTED PRIVATE KEY FILE! @", "can be read by other users", "chmod 600"),
    ("ubuntu@w1: Permission denied (publickey).", "refuses the SSH key", "identity_file"),
    ("Task failed: Missing sudo password", "no sudo without a password", "NOPASSWD"),
    ("sudo: a password is required", "no sudo without a password", "NOPASSWD"),
    ("ubuntu is not in the sudoers file.", "no sudo without a password", "NOPASSWD"),
    ("/bin/sh: 1: sudo: not found", "sudo is not installed", "root"),
    ("/bin/sh: 1: /usr/bin/python3: not found", "Python 3 is missing", "apt-get install python3"),
    ("channel 0: open failed: administratively prohibited: open failed", "does not forward", "AllowTcpForwarding"),
    ("kex_exchange_identification: Connection closed by remote host", "dropped the connection", "MaxStartups"),
    ("ssh: connect to host w1 port 22: Connection refused", "Nothing answers on the node's SSH port", "sshd"),
    ("ssh: Could not resolve hostname w9: Name or service not known", "name cannot be resolved", "hostname"),
    ("ssh: connect to host w1 port 22: Connection timed out", "does not answer", "Check that it is up"),
    ("ssh: connect to host w1 port 22: No route to host", "does not answer", "Check that it is up"),
    ("Timeout (12s) waiting for privilege escalation prompt: ", "sudo did not answer", "sudo -n true"),
    ("[Errno 30] Read-only file system: '/opt/lambdactl'", "file system is read-only", "dmesg"),
    ("The checksum for /x did not match abc; checksum mismatch", "expected checksum", "nccl_tests_sha256"),
    ("g++: fatal error: Killed signal terminated program cc1plus", "out of memory", "Stop what uses it"),
]


@pytest.mark.parametrize(("message", "cause", "remedy"), MESSAGES, ids=[message[:40] for message, *_ in MESSAGES])
def test_a_known_message(message: str, cause: str, remedy: str) -> None:
    known = explain({"msg": message, "failed": True})
    assert cause in known.cause
    assert remedy in known.remedy
    assert "\n" not in known.cause + known.remedy
    assert known.cause.endswith(".")
    assert known.remedy.endswith(".")


def test_every_rule_has_a_message() -> None:
    used = {next(i for i, rule in enumerate(_RULES) if rule.pattern.search(message)) for message, *_ in MESSAGES}
    assert used == set(range(len(_RULES)))


@pytest.mark.parametrize(
    ("result", "cause"),
    [
        ({"msg": "Boom\nTraceback: ..."}, "Boom."),
        ({"msg": "", "stderr": "oh no"}, "oh no."),
        ({}, "The step failed without a message."),
        ({"msg": "x" * 5000}, "x" * 400 + "."),
    ],
)
def test_an_unknown_message_gives_its_first_line(result: dict[str, str], cause: str) -> None:
    assert explain(result).cause == cause


def test_our_own_sentences_are_taken_apart() -> None:
    assert explain({"msg": sentence("It broke.", "Mend it.")}) == Explanation("It broke.", "Mend it.")


def test_our_own_sentence_wins_over_what_it_mentions() -> None:
    assert explain({"msg": "w1 cannot log in to w2: Connection refused. Remedy: Look."}).remedy == "Look."


def test_the_standard_error_of_a_module_counts() -> None:
    assert "Python 3" in explain({"msg": "MODULE FAILURE", "module_stderr": "python3: not found"}).cause


def test_a_failed_item_of_a_loop_counts() -> None:
    result = {
        "msg": "One or more items failed",
        "results": [{"failed": False}, {"failed": True, "msg": "No space left on device"}],
    }
    assert "space" in explain(result).cause
