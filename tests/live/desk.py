"""A user at a cluster: the command line as a process of its own, with a state of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.resources import CONFIGMAPS, DEPLOYMENTS, JOBS, PODS, SECRETS, SERVICES

PATIENCE = 300
FLEET = "type: fleet\nname: live\nnodes: 0..\nbackends: [kubernetes]\n"


@dataclass
class Desk:
    """Where a check stands.

    Attributes:
        folder: the working directory.
        target: the cluster.
        env: the commands' environment.
        image: an image with /bin/sh that every node has, or can pull.
        fake: whether the cluster is the fake one, which has no control groups.
    """

    folder: Path
    target: Target
    env: dict[str, str]
    image: str
    fake: bool = False
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:5])
    _nodes: int | None = None

    def name(self, what: str) -> str:
        """A run's name that nobody else has."""
        return f"live-{self.mark}-{what}"

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "lambdactl", *words]

    def run(self, *words: str, rc: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A command to its end, with the exit code that it should have."""
        done = subprocess.run(
            self.argv(*words), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600, check=False
        )
        said = f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert rc is None or done.returncode == rc, said
        assert "Traceback" not in done.stderr, said
        assert "this is a bug" not in done.stderr, said
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words), cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def fleet(self) -> None:
        """Make the fleet known."""
        (self.folder / "fleet.yml").write_text(FLEET)
        self.run("apply", "-f", "fleet.yml", "-y")

    @property
    def nodes(self) -> int:
        """How many nodes take pods."""
        if self._nodes is None:
            hosts = json.loads(self.run("fleet", "get", "live", "--json").stdout)["hosts"]
            self._nodes = sum(host["state"] in ("ready", "busy") for host in hosts)
        return self._nodes

    def task(self, what: str, text: str) -> str:
        """Write a task file, with the image; its path."""
        path = f"{what}.yml"
        head = f"type: task\nname: {self.name(what)}\n"
        (self.folder / path).write_text(head + ("" if "image:" in text else f"image: {self.image}\n") + text)
        return path

    def apply(self, what: str, text: str, *options: str, rc: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a task to its end."""
        return self.run("apply", "-f", self.task(what, text), "-y", *options, rc=rc)

    def left(self, what: str) -> list[str]:
        """What exists of a run."""
        return self._labelled(f"lambdactl.dev/run={self.name(what)}")

    def left_of_service(self, what: str) -> list[str]:
        """What exists of a service."""
        return self._labelled(f"lambdactl.dev/service={self.name(what)}")

    def _labelled(self, labels: str) -> list[str]:
        async def look() -> list[str]:
            async with open_client(self.target) as client:
                found = []
                for resource in (DEPLOYMENTS, JOBS, PODS, SERVICES, CONFIGMAPS, SECRETS):
                    listing = await client.list(resource, labels=labels)
                    found += [f"{resource.plural}/{item['metadata']['name']}" for item in listing.items]
                return found

        return asyncio.run(look())

    def tidy(self) -> None:
        """Remove the runs that checks which failed have left."""

        async def look() -> None:
            async with open_client(self.target) as client:
                for item in (await client.list(JOBS, labels="lambdactl.dev/run")).items:
                    if item["metadata"]["name"].startswith(self.name("")):
                        await client.delete(JOBS, item["metadata"]["name"], propagation="Background")

        asyncio.run(look())

    def nothing_left(self, what: str) -> None:
        """Wait until nothing of a run exists."""
        deadline = time.monotonic() + PATIENCE
        while left := self.left(what):
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


def environment(folder: Path, home: str, **more: str) -> dict[str, str]:
    """A user's environment with an empty state and configuration; `home` is for login programs of a kubeconfig."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAMBDACTL_", "KUBECONFIG"))}
    places = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CONFIG", "CACHE", "DATA")}
    return {**kept, **places, "HOME": home, "NO_COLOR": "1", "COLUMNS": "160", **more}
