"""What a task file's `${{ ... }}` become in a run on Kubernetes: the same as on SSH hosts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lambdactl.backends.kubernetes.model import KubeRun
from lambdactl.backends.kubernetes.nodes import ClusterView
from lambdactl.backends.kubernetes.plan import make_plan
from lambdactl.backends.kubernetes.scripts import scripts
from lambdactl.errors import SpecError
from lambdactl.run.plan import Overrides
from lambdactl.spec import TaskSpec, loads

TASK = """
type: task
name: train
image: reg.example/team/tool
registry_auth: {username: "${{ env.WHO }}", password: "${{ secrets.REGISTRY }}"}
env: ["WHO=ann", "TOKEN=${{ secrets.HUB }}"]
commands: ["python train.py ${{ run.args }}", "echo $${{ run.args }}"]
"""


def plan(*args: str) -> KubeRun:
    task = loads(TASK)
    assert isinstance(task, TaskSpec)
    # Nothing of fleet and cluster matters to the values of the file.
    fleet: Any = SimpleNamespace(name="f")
    target: Any = SimpleNamespace(image=None, queue=None, rdma_resource=None, files_volume=None, name="c")
    return make_plan(task, fleet, target, ClusterView(()), Overrides(args=args), anyway=True).run


def test_arguments_and_secrets_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDACTL_SECRET_REGISTRY", "pa55")
    monkeypatch.setenv("LAMBDACTL_SECRET_HUB", "t0k")
    run = plan("--epochs", "3 4")
    first, *_, last = scripts(run.task)["script"].splitlines()
    assert (first, last) == ("python train.py --epochs '3 4'", "echo ${{ run.args }}")
    assert run.env == {"WHO": "ann", "TOKEN": "t0k"}
    assert run.task.registry_auth is not None
    assert (run.task.registry_auth.username, run.task.registry_auth.password) == ("ann", "pa55")


def test_a_secret_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDACTL_SECRET_REGISTRY", "pa55")
    with pytest.raises(SpecError, match="refers to the secret HUB, which is not set here"):
        plan()
