"""Molecule's scenario of a whole fleet; `make molecule` runs it and the scenarios of the single roles."""

from __future__ import annotations

import os
import pwd
import subprocess

import pytest

from lambdactl import sandbox as sandboxes
from tests.integration.conftest import ROOT, STACK, _up

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(1500)]


def test_the_fleet_scenario(engine: None) -> None:
    # Molecule's own create finds this cluster and keeps it: so it carries this run's label and is removed whatever
    # happens, and Open MPI is there, whose installation test_provision.py tests.
    cluster = _up(workers=2, packages=STACK)
    # The user's own: elsewhere the way to a host is a look-up of HOME, which stayed text under Molecule (only there).
    home = pwd.getpwuid(os.getuid()).pw_dir
    try:
        done = subprocess.run(
            [str(ROOT / "scripts" / "molecule"), "fleet"],
            cwd=ROOT, env={**os.environ, "HOME": home, "LAMBDACTL_MOLECULE": cluster.name, "NO_COLOR": "1"},
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1400,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-8000:]
        recap = next(line for line in said.splitlines() if line.startswith("fleet ") and "actions=" in line)
        assert "actions=7" in recap
        assert "successful=7" in recap
        assert not sandboxes.status(cluster.name).exists, "Molecule's destroy removed it"
    finally:
        sandboxes.down(cluster.name)
