"""`priority` by a PriorityClass, and a login that works as the run's user."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from lambdactl.backends.kubernetes.client import open_client
from lambdactl.backends.kubernetes.config import Target
from lambdactl.backends.kubernetes.objects import job
from lambdactl.backends.kubernetes.payload import container_file
from lambdactl.backends.kubernetes.priorities import not_honoured, priority_class
from tests.fakes.kube import FakeCluster
from tests.unit.kube.pod_bed import kube_run


def test_the_class_of_that_value_is_taken(cluster: FakeCluster, target: Target) -> None:
    for name, value in (("b-urgent", 50), ("a-urgent", 50), ("other", 7)):
        cluster.put(
            {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value},
            namespace="",
        )

    async def body() -> list[str | None]:
        async with open_client(target) as client:
            return [await priority_class(client, value) for value in (50, 7, 8)]

    assert asyncio.run(body()) == ["a-urgent", "other", None]
    assert "priority 8 is not honoured in this cluster" in not_honoured(8)
    spec = job(kube_run("commands: [ls]", priority_class="other"))["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == "other"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_a_login_as_root_becomes_the_runs_user(shell: str) -> None:
    # Not pytest's folder: only root may enter that one.
    tmp_path = Path(tempfile.mkdtemp(prefix="login-"))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "user").write_text("nobody")
    (folder / "env").write_text("export GREETING='hello there'\n")
    script = tmp_path / "login"
    script.write_text(container_file("login.sh"))
    for path in (tmp_path, folder, script, folder / "env", folder / "user"):
        path.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "SSH_ORIGINAL_COMMAND": 'id -un; echo "$GREETING"'}
    done = subprocess.run([shell, str(script), str(folder)], env=env, capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path)
    assert done.stdout == "nobody\nhello there\n", done.stderr
