"""The wide bed as `apply` leaves a fleet: the runner, a node key and every role's manifest in place on each node.

The roles themselves cannot run there, since the nodes are folders of one machine. Each manifest has the digest that the
controller asks for and something to verify, so that a look at the fleet does all of its work and finds nothing to do.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lambdactl import content
from lambdactl.provision import ROLES, role_digests, survey
from lambdactl.transport import open_transport
from tests.bed.gang import GangBed

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{:0>43} node\n"


class ConvergedBed(GangBed):
    """See the module; `converge` once it is started."""

    def environment(self) -> dict[str, str]:
        """What commands on this bed run with: nothing of the user's, HOME in the bed."""
        kept = ("PATH", "LANG", "LC_ALL", "TERM", "VIRTUAL_ENV")
        home = {"HOME": str(self.home), "COLUMNS": "200"}
        return {**{name: os.environ[name] for name in kept if name in os.environ}, **home}

    def install(self, address: str) -> None:
        super().install(address)
        self._compile(address)
        home = pwd.getpwuid(os.geteuid()).pw_dir.lstrip("/")
        folder = self.root(address) / home / ".ssh"
        folder.mkdir(parents=True)
        (folder / "lambdactl_ed25519.pub").write_text(_KEY.format(address.replace(".", "")))

    def _compile(self, address: str) -> None:
        """As the role does; the nodes have one Python, so what it has compiled for the first is everybody's."""
        state, first = "var/lib/lambdactl", self.root(self.addresses[0])
        if address == self.addresses[0]:
            argv = ["/usr/bin/python3", "-I", "-S", str(first / "opt/lambdactl/runner.pyz"), "compile"]
            subprocess.run(argv, env={"LAMBDACTL_ROOT": str(first)}, check=True, stdout=subprocess.DEVNULL)
        else:
            shutil.copytree(first / state / "compiled", self.root(address) / state / "compiled")
            shutil.copy2(first / "opt/lambdactl/runner.pyz", self.root(address) / "opt/lambdactl")  # with its time

    def converge(self) -> None:
        """Put every manifest in place.

        Raises:
            RuntimeError: a node still needs a role, so that this bed would measure something else.
        """
        before = os.environ.get("HOME")
        os.environ["HOME"] = str(self.home)  # the fleet's known_hosts is below it
        try:
            asyncio.run(self._converge())
        finally:
            if before is not None:
                os.environ["HOME"] = before

    async def _converge(self) -> None:
        fleet = self.load()
        async with open_transport(fleet) as transport:
            seen = await survey(fleet, transport)
            for name, facts in seen.facts.items():
                digests = role_digests(facts, {}, fleet_id=fleet.id, nodes=seen.nodes)
                folder = self.root(name) / "var/lib/lambdactl/provisioned"
                folder.mkdir(parents=True, exist_ok=True)
                for role in ROLES:
                    (folder / f"{role}.json").write_text(json.dumps(_manifest(role, digests[role])))
            again = await survey(fleet, transport)
        left = {name: problem.sentence for name, problem in again.problems.items()}
        left |= {name: str(again.needed[name]) for name in again.changed}
        if left or len(again.facts) != len(fleet.hosts):
            raise RuntimeError(f"the bed did not converge: {left}")


def _manifest(role: str, digest: str) -> dict[str, Any]:
    verify: list[dict[str, Any]] = [{"path": "/opt/lambdactl/runner.sha256", "mode": "0644"}]
    if role == "runner":
        verify = [{"path": "/opt/lambdactl/runner.pyz", "sha256": content.runner_sha256()}]
    if role == "openmpi" and shutil.which("dpkg-query"):
        verify.append({"package": "coreutils"})
    return {"role": role, "digest": digest, "packages_added": [], "paths_added": [], "verify": verify}


def stamps(folder: Path) -> list[float]:
    """The moments that commands wrote into this folder."""
    return [float(path.read_text()) for path in folder.iterdir() if path.read_text().strip()]
