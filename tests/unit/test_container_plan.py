"""From a task file with an image to the job's `container` key, and the hosts that cannot take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lambdactl.errors import CapacityError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import NodeFacts
from lambdactl.node import programs, tools
from lambdactl.node.spec import Job
from lambdactl.run.plan import NodeView, Overrides, RunPlan, job_specs, make_plan
from lambdactl.run.status import combine, pull_text
from lambdactl.spec import FleetSpec, TaskSpec, loads

FLEET = "type: fleet\nname: lab\nssh_config:\n  user: ubuntu\n  hosts: [n0, n1]\n"
GPU = {"index": 0, "name": "NVIDIA H100 80GB HBM3", "memory": 80 << 30, "uuid": "GPU-1"}
DOCKER = {"engine": "docker", "version": "27.0", "gpus": "toolkit", "arch": "x86_64"}


def view(name: str, **facts: Any) -> NodeView:
    place = int(name[1:]) + 1
    base = {
        "runner": "x", "cpus": 8, "memory": 64 << 30, "disk": {"path": "/", "total": 1 << 40, "free": 1 << 40},
        "addresses": [{"interface": "eth0", "address": f"10.0.0.{place}", "prefix": 24}], "container_engines": [DOCKER],
        "tools": {"uv": None, "pythons": ["3.11"], "nvcc": None},
    }  # fmt: skip
    return NodeView(name, facts=NodeFacts.from_probe({**base, **facts}))


def plan(task: str, views: dict[str, NodeView] | None = None, **overrides: Any) -> RunPlan:
    parsed, fleet = loads(f"type: task\nname: train\n{task}"), loads(FLEET)
    assert isinstance(parsed, TaskSpec)
    assert isinstance(fleet, FleetSpec)
    views = views or {name: view(name) for name in ("n0", "n1")}
    return make_plan(parsed, Fleet.from_spec(fleet, path=None), views, Overrides(**overrides))


def spec(task: str, **more: Any) -> dict[str, Any]:
    found = job_specs(plan(task, **more))["n0"]
    Job(found)  # the node takes it
    return found


def test_an_image_makes_a_job_in_a_container() -> None:
    job = spec("image: a/b:1\nuser: ann\nworking_dir: ~/x\nresources:\n  shm_size: 16GB\ncommands: [id, pwd]\n")
    container = job["container"]
    assert job["user"] == "ubuntu"
    assert (container["image"], container["user"], container["working_dir"]) == ("a/b:1", "ann", "~/x")
    assert (container["shm_size"], container["engine"], container["pull_timeout"]) == (16 << 30, "docker", None)
    assert job["script"].startswith("id\n")


def test_an_entrypoint_takes_the_commands_as_its_arguments() -> None:
    job = spec("image: a\nentrypoint: python3 -m 'my app'\ncommands: ['--lr 1', x]\n")
    assert job["container"]["entrypoint"] == ["python3", "-m", "my app"]
    assert job["container"]["arguments"] == ["--lr 1", "x"]
    assert job["script"] == ""


def test_a_task_without_commands_runs_what_the_image_says() -> None:
    job = spec("image: a\n")
    assert (job["container"]["entrypoint"], job["container"]["arguments"], job["script"].strip()) == (None, [], "")


def test_each_groups_containers_have_what_it_asks_for() -> None:
    one = "{name: a, nodes: 1, resources: {shm_size: 1GB}, commands: [id]}"
    jobs = job_specs(plan(f"image: a\nvolumes: ['/srv:/data']\ngroups:\n  - {one}\n  - {{name: b, nodes: 1}}\n"))
    assert [jobs[name]["container"]["shm_size"] for name in ("n0", "n1")] == [1 << 30, None]
    assert [jobs[name]["script"].strip() for name in ("n0", "n1")] == ["id", ""]
    assert jobs["n0"]["volumes"] == [{"source": "/srv", "target": "/data", "optional": False}]


def test_a_repository_below_a_home_that_no_shell_knows_is_refused() -> None:
    with pytest.raises(SpecError, match="'repos': with 'entrypoint' its path must not begin with ~"):
        plan("image: a\nentrypoint: cat\nrepos: [{local_path: ., path: ~/x}]\ncommands: [x]\n")


def test_the_example_of_a_utilization_policy_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs GPUs to run."""
    example = Path(__file__).resolve().parents[2] / "examples/utilization-policy.dstack.yml"
    text = example.read_text().partition("name: thrifty\n")[2]
    gpus = [{**GPU, "index": index, "uuid": f"GPU-{index}"} for index in range(8)]
    jobs = job_specs(plan(text, {name: view(name, gpus=gpus) for name in ("n0", "n1")}))
    assert {name: job["utilization"] for name, job in jobs.items()} == {
        name: {"min": 10, "window": 1800} for name in ("n0", "n1")
    }
    assert Job(jobs["n1"]).utilization is not None
    with pytest.raises(CapacityError, match="n0 has no GPU, 8 wanted"):
        plan(text)


def test_a_login_takes_the_runs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHO", "ann")
    auth = "registry_auth:\n  username: ${{ env.WHO }}\n  password: ${{ env.TOKEN }}\n"
    job = spec(f"image: a\nenv: [TOKEN=t0k]\n{auth}commands: [id]\n")
    assert job["container"]["registry_auth"] == {"username": "ann", "password": "t0k"}


def test_a_login_takes_a_secret_and_says_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = "registry_auth:\n  username: ann\n  password: ${{ secrets.REGISTRY }}\n"
    monkeypatch.setenv("LAMBDACTL_SECRET_REGISTRY", "t0k")
    job = spec(f"image: a\n{auth}commands: [id]\n")
    assert job["container"]["registry_auth"] == {"username": "ann", "password": "t0k"}
    monkeypatch.delenv("LAMBDACTL_SECRET_REGISTRY")
    with pytest.raises(SpecError, match=r"'registry_auth' \(password\) refers to the secret REGISTRY"):
        spec(f"image: a\n{auth}commands: [id]\n")


def test_the_command_line_chooses_engine_and_limit() -> None:
    job = spec("image: a\ncommands: [id]\n", container_engine="docker", pull_timeout=60)
    assert (job["container"]["engine"], job["container"]["pull_timeout"]) == ("docker", 60)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("image: 'a b'\ncommands: [id]\n", "'image': 'a b' is not the name of an image"),
        ('image: a\nentrypoint: "it\'s"\n', "'entrypoint': it cannot be split"),
        ("image: a\nentrypoint: x\nworking_dir: ~/x\n", "'working_dir': with 'entrypoint' it must be absolute"),
    ],
)
def test_what_cannot_be_is_one_sentence(task: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(task)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"container_engines": []},
            "n0 has neither Docker nor Podman, which a container needs; put 'container_engine: auto'",
        ),
        ({"container_engines": [{**DOCKER, "problem": "Docker is installed, but does not answer"}]}, "does not answer"),
        ({"gpus": [GPU], "container_engines": [{**DOCKER, "gpus": None}]}, "its docker cannot give them to containers"),
    ],
)
def test_a_host_without_the_means_is_refused_before_the_run(facts: dict[str, Any], sentence: str) -> None:
    views = {"n0": view("n0", **facts), "n1": view("n1")}
    with pytest.raises(CapacityError, match="1 of 2 in lab can take it") as caught:
        plan("image: a\nnodes: 2\ncommands: [id]\n", views)
    assert sentence in str(caught.value)


def test_all_nodes_of_a_run_use_the_same_engine() -> None:
    podman, dead = {"engine": "podman"}, {**DOCKER, "problem": "Docker is installed, but does not answer"}
    views = {"n0": view("n0", container_engines=[DOCKER, podman]), "n1": view("n1", container_engines=[dead, podman])}
    assert job_specs(plan("image: a\ncommands: [id]\n", views))["n0"]["container"]["engine"] == "docker"
    assert job_specs(plan("image: a\nnodes: 2\ncommands: [id]\n", views))["n0"]["container"]["engine"] == "podman"


def test_a_task_without_an_image_needs_no_engine() -> None:
    assert plan("commands: [id]\n", {name: view(name, container_engines=[]) for name in ("n0", "n1")}).container is None


def test_python_without_an_image_is_the_hosts_own() -> None:
    job = spec("python: '3.11'\ncommands: [python -V]\n")
    assert job["container"] is None
    assert "python3.11 -m venv" in job["script"]
    with pytest.raises(CapacityError, match=r"n0 has no Python 3\.12 and no uv to get it"):
        plan("python: '3.12'\ncommands: [id]\n")
    bare = {"uv": None, "pythons": [], "pythons_without_venv": ["3.11"], "nvcc": None}
    words = r"n0 has Python 3\.11 without its module venv, and no uv; install one of them there \(python3\.11-venv on D"
    with pytest.raises(CapacityError, match=words):
        plan("python: '3.11'\ncommands: [id]\n", {name: view(name, tools=bare) for name in ("n0", "n1")})


def test_a_python_counts_when_it_can_make_virtual_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("python3.9", "python3.12", "python3.12-config", "python3.13"):
        (tmp_path / "bin" / name).touch(0o755)
    for version in ("3.9", "3.13"):
        (tmp_path / f"lib/python{version}/ensurepip").mkdir(parents=True)
    monkeypatch.setattr(programs, "SEARCH", str(tmp_path / "bin"))
    found = tools.find(str(tmp_path / "home"))
    assert (found["pythons"], found["pythons_without_venv"]) == (["3.9", "3.13"], ["3.12"])
    with pytest.raises(CapacityError, match="n0 has no nvcc"):
        plan("nvcc: true\ncommands: [id]\n")


def test_python_runs_in_the_default_image_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDACTL_IMAGE", "my/base:1")
    job = spec("python: '3.12'\ncommands: [python -V]\n")
    assert job["container"]["image"] == "my/base:1"
    assert "python3.12 -m venv" in job["script"]


def test_docker_is_the_hosts_engine_or_a_privileged_container(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "docker version" in spec("docker: true\ncommands: [docker ps]\n")["script"]
    with pytest.raises(CapacityError, match="n0 has no Docker that answers"):
        plan("docker: true\ncommands: [id]\n", {name: view(name, container_engines=[]) for name in ("n0", "n1")})
    monkeypatch.setenv("LAMBDACTL_DOCKER_IMAGE", "docker:cli")
    container = spec("docker: true\ncommands: [docker ps]\n")["container"]
    assert (container["image"], container["privileged"], container["socket"]) == ("docker:cli", True, True)


def amounts(done: float, total: float) -> dict[str, float]:
    return {"done": done * 1e9, "total": total * 1e9}


def test_pulling_is_a_state_with_its_progress() -> None:
    rank = {"run_id": "r", "run_name": "train", "nodes_num": 2, "submitted_at": 1.0}
    ranks = [
        {**rank, "rank": 0, "node": "n0", "state": "waiting", "gang": {"state": "starting"}, "pull": amounts(2, 2)},
        {**rank, "rank": 1, "node": "n1", "state": "pulling", "pull": amounts(1, 2)},
    ]
    status = combine(ranks)
    assert status.state == "pulling"
    assert status.as_json()["pull"] == {"done": 3_000_000_000, "total": 4_000_000_000}
    assert pull_text(status) == "pulling 3.0 of 4.0 GB, 1 of 2 nodes ready"
