"""What OpenSSH prints, as the kinds of Failure; the texts are from OpenSSH 8.2 to 10.0."""

from __future__ import annotations

from typing import get_args

import pytest

from lambdactl.transport.api import FailureKind
from lambdactl.transport.failures import CAUSES, Cause, Place, failure, stderr_cause, stderr_failure

JUMP = Place("jump", "n1", "head.example", 22, "ubuntu", "~/.ssh/id")
NODE = Place("node", "n1", "10.0.0.1", 22, "ubuntu", None, "head.example")

PRINTED = [
    ("ssh: connect to host head.example port 22: Connection refused", "refused"),
    ("ssh: connect to host head.example port 22: Connection timed out", "timeout"),
    ("ssh: connect to host head.example port 22: No route to host", "route"),
    ("ssh: Could not resolve hostname head.example: Name or service not known", "name"),
    ("Connection timed out during banner exchange\nConnection to UNKNOWN port 65535 timed out", "timeout"),
    ("ubuntu@head.example: Permission denied (publickey).", "auth"),
    ("Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures", "auth"),
    ("channel 0: open failed: administratively prohibited: open failed\nstdio forwarding failed", "forwarding"),
    ("channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed", "refused"),
    ("channel 2: open failed: connect failed: Name or service not known", "name"),
    ("channel 2: open failed: connect failed: Temporary failure in name resolution", "name"),
    ("kex_exchange_identification: Connection closed by remote host", "dropped"),
    ("kex_exchange_identification: read: Connection reset by peer", "dropped"),
    ("Connection closed by UNKNOWN port 65535", "dropped"),
    ("mux_client_request_stdio_fwd: session request failed: Session open refused by peer", "dropped"),
    ("Unable to negotiate with 10.0.0.1 port 22: no matching host key type found. Their offer: ssh-rsa", "algorithms"),
    ("bash: line 1: gibberish", None),
]


@pytest.mark.parametrize(("text", "cause"), PRINTED)
def test_stderr_to_cause(text: str, cause: str | None) -> None:
    assert stderr_cause(f"Warning: Permanently added 'x' (ED25519) to the list of known hosts.\n{text}\n") == cause


@pytest.mark.parametrize("place", [JUMP, NODE], ids=["jump", "node"])
@pytest.mark.parametrize("cause", get_args(Cause))
def test_every_cause_is_one_sentence_and_one_remedy(place: Place, cause: Cause) -> None:
    made = failure(place, cause, " while it ran" if cause == "lost" else "a detail.")
    assert made.kind in get_args(FailureKind)
    assert made.host == "n1"
    for text in (made.message, made.remedy):
        assert text[0].isupper()
        assert text.endswith(".")
        assert not {"{", "}", "\n"} & set(text)
        assert ".." not in text
    assert set(CAUSES) == set(get_args(Cause))


def test_a_changed_key_is_read_from_the_banner() -> None:
    text = (
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n"
        "Offending ED25519 key in /home/a b/.ssh/known_hosts:7\n"
        "Host key verification failed.\n"
    )
    made = stderr_failure(NODE, text, name="10.0.0.1", known_hosts="~/x")
    assert made.kind == "host-key"
    assert "/home/a b/.ssh/known_hosts:7" in made.message
    assert made.remedy.endswith("ssh-keygen -R '10.0.0.1' -f '/home/a b/.ssh/known_hosts'")


def test_what_is_not_known_is_quoted() -> None:
    made = stderr_failure(NODE, "noise\nssh: some new complaint.\n", name="x", known_hosts="x")
    assert (made.kind, "ssh: some new complaint." in made.message) == ("unreachable", True)
