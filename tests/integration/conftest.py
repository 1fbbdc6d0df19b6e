"""Real sandboxes for tests: made on first use, removed whatever happens.

``sandbox`` and ``provisioned`` are one cluster for all tests of a process; tests that break a node, or need fakes on
the workers, take their own from ``make_sandbox``. scripts/test gives whole files to pytest-xdist's processes: the tests
of a file run in order and in one process.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lambdactl import sandbox as sandboxes
from lambdactl.sandbox import Sandbox
from lambdactl.sandbox.docker import docker

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
OWNER_LABEL = f"{sandboxes.LABEL}.owner"
# scripts/test names its run, and removes what is left of it even when this process was killed.
RUN_LABEL = f"{sandboxes.LABEL}.run"
# A machine for tests has two cores; a test that wants more clusters at once wants too much.
SANDBOXES_PER_TEST = 3


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when there is none. Tells a reused pid apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def owner() -> str:
    """Names this process, for the label of what it makes."""
    return f"{os.getpid()}-{_started(os.getpid())}"


def sweep(everything_of: str | None = None) -> None:
    """Removes the sandboxes of test processes that are gone, or all those of one owner."""
    form = f'{{{{.Label "{sandboxes.LABEL}"}}}} {{{{.Label "{OWNER_LABEL}"}}}}'
    found = set()
    for kind, everything in (("container", ["--all"]), ("network", [])):
        listed = docker(kind, "ls", *everything, "--filter", f"label={OWNER_LABEL}", "--format", form, check=False)
        found |= {tuple(line.split()) for line in listed.stdout.splitlines() if len(line.split()) == 2}
    for name, owned_by in found:
        pid, _, started = owned_by.partition("-")
        dead = not pid.isdigit() or _started(int(pid)) != started
        if owned_by == everything_of or (everything_of is None and dead):
            sandboxes.down(name)


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A Docker engine that answers, started (and installed) by scripts/bootstrap where none does."""
    if docker("version", check=False, timeout=20).returncode != 0:
        started = subprocess.run(
            [str(ROOT / "scripts" / "bootstrap"), "engine"], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if started.returncode != 0:
            pytest.fail(f"No Docker engine, and scripts/bootstrap engine failed:\n{started.stdout}{started.stderr}")
    sweep()
    yield
    sweep(owner())


Up = Callable[..., Sandbox]

# What Lambda's images have, too. Installing it takes a minute a cluster; test_provision does that for real, the other
# tests start where a rented node does.
STACK = ("gcc", "libc6-dev", "libopenmpi-dev", "openmpi-bin")


def _up(**options: Any) -> Sandbox:
    name = f"t{os.getpid()}-{secrets.token_hex(3)}"
    try:
        return sandboxes.up(
            name, labels={OWNER_LABEL: owner(), RUN_LABEL: os.environ.get("TEST_RUN_ID", "none")}, **options
        )
    except BaseException:
        sandboxes.down(name)
        raise


@pytest.fixture(scope="session")
def sandbox(engine: None) -> Iterator[Sandbox]:
    """The cluster that the tests of this process share: two workers, nothing provisioned. Leave it as it was found."""
    cluster = _up(workers=2, packages=STACK)
    yield cluster
    sandboxes.down(cluster.name)


@pytest.fixture
def make_sandbox(engine: None) -> Iterator[Up]:
    """Makes sandboxes for one test: ``make_sandbox(workers=1, files={...})``; they are gone after it."""
    made: list[Sandbox] = []

    def make(**options: Any) -> Sandbox:
        if len(made) >= SANDBOXES_PER_TEST:
            pytest.fail(f"A test may have at most {SANDBOXES_PER_TEST} sandboxes at a time.")
        made.append(_up(**options))
        return made[-1]

    yield make
    for cluster in made:
        sandboxes.down(cluster.name)


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, standard output and standard error."""

    rc: int
    out: str
    err: str


def _like_a_shell() -> None:
    """Workers of pytest-xdist ignore SIGINT, and a program inherits that; a user's shell starts it with the default."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Cli:
    """The installed ``lambdactl``, run as a user's shell would."""

    program = Path(sys.executable).with_name("lambdactl")

    def __call__(
        self,
        *argv: str | Path,
        stdin: str = "",
        timeout: float = 300,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ROOT,
    ) -> Outcome:
        """Runs ``lambdactl ARGV`` to its end."""
        done = subprocess.run(
            [str(self.program), *map(str, argv)],
            input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout, cwd=cwd,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(
        self, *argv: str | Path, env: Mapping[str, str] | None = None, cwd: str | Path = ROOT
    ) -> subprocess.Popen[str]:
        """Starts ``lambdactl ARGV`` in its own session, for tests that signal it; the caller ends it."""
        return subprocess.Popen(
            [str(self.program), *map(str, argv)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            cwd=cwd, env={**os.environ, **(env or {})}, start_new_session=True, preexec_fn=_like_a_shell,
        )  # fmt: skip


@pytest.fixture(scope="session")
def cli() -> Cli:
    """``cli("apply", "-f", path, "-y").rc`` runs the command line; HOME is the test session's."""
    return Cli()


@pytest.fixture(scope="session")
def provisioned(sandbox: Sandbox, cli: Cli) -> Sandbox:
    """The shared cluster, provisioned through its jump host by ``lambdactl apply``."""
    done = cli("apply", "-f", sandbox.fleet_file, "-y", timeout=600)
    assert done.rc == 0, f"provisioning the sandbox failed ({done.rc}):\n{done.out}\n{done.err}"
    return sandbox
