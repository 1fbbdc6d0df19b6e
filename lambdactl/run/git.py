"""Git on the controller, with the user's own configuration: SSH agent, credential helpers, proxies.

A URL travels in Git's environment, never on a command line, and is shown without the credentials that may be in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lambdactl.errors import LambdactlError

_LAST = 600


class GitError(LambdactlError):
    """Git refused; `reason` is the end of what it said."""

    def __init__(self, message: str, reason: str) -> None:
        self.reason = reason
        super().__init__(message)


def without_credentials(url: str) -> str:
    """The URL without user and password; an SSH user (git@host) stays."""
    return re.sub(r"^((?:https?|ftps?)://)[^/@]*@", r"\1", url)


def git(
    *words: str, at: Path | None = None, bare: Path | None = None, url: str | None = None,
    env: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Run Git and return its standard output.

    Args:
        at: a working tree to run it in.
        bare: a repository without one.
        url: of the remote `origin`, for this call.

    Raises:
        GitError: it failed; one sentence with the end of what it said.
        LambdactlError: there is no Git here.
    """
    place = ["-C", str(at)] if at is not None else [f"--git-dir={bare}"] if bare is not None else []
    own = {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    own |= {"LC_ALL": "C"} | dict(env or {})
    if url is not None:
        own |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "remote.origin.url", "GIT_CONFIG_VALUE_0": url}
    if not sys.stdin or not sys.stdin.isatty():
        own["GIT_TERMINAL_PROMPT"] = "0"  # a question that nobody can see would wait for ever
    try:
        done = subprocess.run(
            ["git", *place, *words], capture_output=True, env=own, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise LambdactlError("'repos' needs Git on this machine; install it.") from None
    if done.returncode != 0:
        text = done.stderr.decode("utf-8", "replace").strip()
        text = without_credentials(text.replace(url, without_credentials(url)) if url else text)
        reason = " ".join(text.split())[-_LAST:] or f"exit code {done.returncode}"
        raise GitError(f"git {words[0]} failed: {reason}", reason)
    return done.stdout.decode("utf-8", "surrogateescape")
