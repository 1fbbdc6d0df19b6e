"""Programs of the machine that some tests need beside Python; scripts/bootstrap installs them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

BROWSERS = {
    "chromium-headless-shell": "chromium-headless-shell",
    "chromium": "chromium",
    "chromium-browser": None,  # Ubuntu's package of this name is a snap
    "google-chrome": None,
}
PROMTOOL = {"promtool": "prometheus"}


def tool(programs: dict[str, str | None]) -> str:
    """The first of these programs that is here; `programs` names the apt package of each.

    A test whose program could be had fails, so that nothing passes unseen; it is skipped only on a system that does not
    offer the program.
    """
    for name in programs:
        if found := shutil.which(name):
            return found
    for name, package in programs.items():
        if package is not None and _offered(package):
            pytest.fail(f"{name} is missing; scripts/bootstrap unit installs it (apt package {package}).")
    pytest.skip(f"this system offers none of {', '.join(programs)}")


def _offered(package: str) -> bool:
    if shutil.which("apt-cache") is None:
        return False
    said = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True).stdout
    return any("Candidate:" in line and "(none)" not in line for line in said.splitlines())
