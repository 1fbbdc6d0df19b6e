"""A bed whose nodes have the runner: gangs run on it without root and without systemd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lambdactl import content, spec
from lambdactl.fleet import Fleet
from tests.bed.bed import Bed


class GangBed(Bed):
    """See the module; the peers of a gang reach each other by starting the agent on this machine."""

    def __init__(self, nodes: int = 2, **options: Any) -> None:
        super().__init__(nodes, **options)
        peer = (
            f"sh -c 'LAMBDACTL_ROOT={self.roots}/{{ip}} exec python3 -I -S "
            f"{self.roots}/{{ip}}/opt/lambdactl/runner.pyz agent {{run}}'"
        )
        for options in self.node.matches.values():
            options["SetEnv"] += f' "LAMBDACTL_PEER_COMMAND={peer}"'
        self._runner = content.runner_zipapp()
        for address in self.addresses:
            self.install(address)
        self.fleet_file = self.directory / f"{self.name}.dstack.yml"

    def install(self, address: str) -> None:
        """Put the runner on one node."""
        folder = self.root(address) / "opt/lambdactl"
        folder.mkdir(parents=True)
        (folder / "runner.pyz").write_bytes(self._runner)
        (folder / "runner.sha256").write_text(content.runner_sha256() + "\n")

    def root(self, address: str) -> Path:
        """The node's file system."""
        return self.roots / address

    def load(self) -> Fleet:
        """The fleet from its file, as a user has it; the bed must be started (its ports are in the file)."""
        data = self.spec()
        data["ssh_config"]["network"] = "127.0.0.0/8"
        self.fleet_file.write_text(yaml.safe_dump(data))
        return Fleet.load(str(self.fleet_file))


def task(*commands: str, **fields: Any) -> spec.TaskSpec:
    """A task file with these commands, read as a user's file is."""
    text = yaml.safe_dump({"type": "task", "name": "t1", "commands": list(commands), **fields})
    parsed = spec.loads(text, filename="task.dstack.yml")
    assert isinstance(parsed, spec.TaskSpec)
    return parsed
