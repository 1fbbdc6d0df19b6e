"""What every test stands on: a home folder of its own, and nothing of the user's in the environment."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Variables that would let the user's own set-up into a test.
FOREIGN = ("ANSIBLE_", "LAMBDACTL_", "DSTACK_", "OMPI_", "SSH_", "KUBECONFIG", "XDG_", "NO_COLOR", "FORCE_COLOR")


def clean_environment(home: Path) -> dict[str, str]:
    """This process's environment with HOME and XDG_* in ``home``, and without the user's settings.

    DOCKER_CONFIG and DOCKER_HOST stay: the engine is the machine's. COLUMNS is fixed, so that tables come out the same.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    docker_config = os.environ.get("DOCKER_CONFIG", str(Path(os.environ.get("HOME", "/")) / ".docker"))
    return {
        **kept,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
        "DOCKER_CONFIG": docker_config,
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ.get('PATH', '')}",
        "COLUMNS": "160",
    }


@pytest.fixture(scope="session", autouse=True)
def session_home() -> Iterator[Path]:
    """HOME and XDG_* of the whole test process point to a temporary folder."""
    before = dict(os.environ)
    # Not one of pytest's own folders: the path of a ControlMaster socket in it may have at most 104 bytes.
    with tempfile.TemporaryDirectory(prefix="lctl-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ours = clean_environment(Path(folder))
        os.environ.clear()
        os.environ.update(ours)
        yield Path(folder)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def signals() -> None:
    """Signals that a shell's `&` and `nohup` have turned off are heard again: programs of tests inherit that."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own, empty home folder for one test."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name, value in clean_environment(folder).items():
        monkeypatch.setenv(name, value)
    return folder
