"""Containers on nodes without an engine: what a job may say, the engine's command lines, logins, progress, errors."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from lambdactl.node import (
    container_argv,
    container_engine,
    container_env,
    container_place,
    container_pull,
    container_ssh,
)
from lambdactl.node.container import Container
from lambdactl.node.container_argv import FIRST_PROCESS, Place
from lambdactl.node.container_engine import Engine
from lambdactl.node.errors import NodeError
from lambdactl.node.spec import Job

RUN = "3f0f3c5e-6a30-4b8f-9a52-0d6b1c1f7e11"
GROUP = f"/system.slice/lambdactl-{RUN}.service/job"
DOCKER_INFO = {"ServerVersion": "20.10.24", "CgroupDriver": "cgroupfs", "CgroupVersion": "1", "Architecture": "x86_64"}
PODMAN_INFO = {"host": {"cgroupManager": "systemd", "cgroupVersion": "v2"}, "version": {"Version": "4.3.1"}}


def engine(name: str = "docker", gpus: str | None = None, **info: Any) -> Engine:
    made = Engine(name, f"/usr/bin/{name}", {**(DOCKER_INFO if name == "docker" else PODMAN_INFO), **info})
    made.gpus = gpus
    return made


def job(script: str = "id\n", nodes: int = 1, **fields: Any) -> Job:
    container = {"image": "nvcr.io/nvidia/pytorch:25.01-py3", **fields.pop("container", {})}
    places = [
        {"name": f"n{rank}", "ip": f"10.0.0.{rank + 1}", "gpus": 8, "ssh_user": "ubuntu"} for rank in range(nodes)
    ]
    raw = {"run_id": RUN, "run_name": "train", "nodes": places, "rank": 0, "script": script, "container": container}
    return Job({**raw, **fields})


def argv(job: Job, place: Place | None = None, made: Engine | None = None) -> list[str]:
    assert job.container is not None
    return container_argv.create(made or engine(), job, job.container, place or Place(terminal="/dev/pts/7"))


def place(**fields: Any) -> Place:
    made = Place(terminal="/dev/pts/7")
    for name, value in fields.items():
        setattr(made, name, value)
    return made


BASE = (
    "/usr/bin/docker create --name lambdactl-3f0f3c5e-6a30-4b8f-9a52-0d6b1c1f7e11-0"
    " --label lambdactl.run=3f0f3c5e-6a30-4b8f-9a52-0d6b1c1f7e11 --label lambdactl.name=train"
    " --pull never --network host --log-driver none --no-healthcheck"
)
SHM = "--tmpfs /dev/shm:rw,exec,nosuid,nodev,mode=1777,size=0"

A = "aaaaaaaaaaaa"
IMAGE = "nvcr.io/nvidia/pytorch:25.01-py3"


def test_the_whole_command_line_of_a_task_with_commands() -> None:
    words = argv(job())
    golden = f"{BASE} --cap-add SYS_PTRACE {SHM} --mount type=bind,source=/dev/pts/7,target={container_argv.TERMINAL}"
    golden += f" --entrypoint /bin/sh {IMAGE} -c"
    assert words == [*golden.split(" "), FIRST_PROCESS, "lambdactl", "", "/bin/sh", "-c", "id\n"]


@pytest.mark.parametrize(
    ("what", "options", "after"),
    [
        ({"container": {"entrypoint": ["/bin/echo", "-n"], "arguments": ["a b", "$c"]}, "script": ""},
         ["--entrypoint", "/bin/echo"], ["-n", "a b", "$c"]),
        ({"script": "\n"}, [], []),
        ({"script": "", "container": {"working_dir": "/w"}}, ["--workdir", "/w"], []),
        ({"shell": "/usr/bin/bash", "container": {"working_dir": "~/x"}}, ["--entrypoint", "/bin/sh"],
         ["-c", FIRST_PROCESS, "lambdactl", "~/x", "/usr/bin/bash", "-c", "id\n"]),
        ({"script": "x" * 200_000}, ["--entrypoint", "/bin/sh"],
         ["-c", FIRST_PROCESS, "lambdactl", "", "/bin/sh", "/dstack/script"]),
        ({"container": {"user": "1000:100"}, "script": ""}, ["--user", "1000:100"], []),
    ],
)  # fmt: skip
def test_what_runs_in_the_image(what: dict[str, Any], options: list[str], after: list[str]) -> None:
    words = argv(job(**what))
    at = words.index(IMAGE)
    assert words[at + 1 :] == after
    assert words[at - len(options) : at] == options


@pytest.mark.parametrize(
    ("fields", "made", "wanted"),
    [
        ({"gpus": ["GPU-1", "GPU-2"]}, engine(gpus="toolkit"), ["--gpus", '"device=GPU-1,GPU-2"']),
        ({"gpus": ["GPU-1", "3"]}, engine("podman", gpus="cdi"),
         ["--device", "nvidia.com/gpu=GPU-1", "--device", "nvidia.com/gpu=3"]),
        ({"devices": ["/dev/infiniband"]}, engine(), ["--device", "/dev/infiniband"]),
        ({"limits": {"memlock": -1, "core": 0}}, engine(), ["--ulimit", "core=0:0", "--ulimit", "memlock=-1:-1"]),
        ({"shm_size": 1 << 34}, engine(), ["--tmpfs", "/dev/shm:rw,exec,nosuid,nodev,mode=1777,size=17179869184"]),
        ({"cgroup_parent": "/x.service/job"}, engine(), ["--cgroup-parent", "/x.service/job"]),
        ({"cpus": [0, 1, 8]}, engine(), ["--cpuset-cpus", "0,1,8"]),
        ({"memory": 1 << 30}, engine(), ["--memory", "1073741824"]),
        ({"variables": ["A", "B"]}, engine(), ["--env", "A", "--env", "B"]),
        ({"env_file": "/r/env"}, engine(), ["--env-file", "/r/env"]),
        ({"mounts": [("/a b", "/c", True), ("/d,e", "/f", False)]}, engine(),
         ["--mount", "type=bind,source=/a b,target=/c,readonly", "--mount", 'type=bind,"source=/d,e",target=/f']),
        ({}, engine("podman"), ["--pids-limit", "-1", "--sdnotify", "ignore"]),
    ],
)  # fmt: skip
def test_what_the_node_gives(fields: dict[str, Any], made: Engine, wanted: list[str]) -> None:
    words = argv(job(), place(**fields), made)
    assert any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


def test_a_privileged_container_needs_no_single_rights() -> None:
    words = argv(job(container={"privileged": True}))
    assert "--privileged" in words
    assert "--cap-add" not in words


def test_podman_makes_its_groups_where_it_is_told() -> None:
    assert argv(job(), made=engine("podman"))[:3] == ["/usr/bin/podman", "--cgroup-manager=cgroupfs", "create"]


@pytest.mark.parametrize(
    "container",
    [
        {"image": "--privileged"}, {"image": "a b"}, {"image": None}, {"image": "a\nb"}, {"engine": "lxc"},
        {"user": "-x"}, {"entrypoint": "sh"}, {"shm_size": -1}, {"pull_timeout": True},
        {"registry_auth": {"username": 1}}, {"arguments": ["a\0b"]}, {"working_dir": 5},
    ],
)  # fmt: skip
def test_hostile_values_are_refused(container: dict[str, Any]) -> None:
    with pytest.raises(NodeError) as caught:
        Container({"image": "ok", **container})
    assert caught.value.code == "bad-request"


def test_secrets_are_in_no_argument() -> None:
    made = job(env={"TOKEN": "s3cret"}, container={"registry_auth": {"username": "zoe9", "password": "pa55"}})
    assert made.container is not None
    variables, _ = container_env.split(container_env.environment(made, made.container, gpus=True, image_dir="/work"))
    words = argv(made, place(variables=list(variables)))
    assert variables["TOKEN"] == "s3cret"
    assert not any("s3cret" in word or "pa55" in word or "zoe9" in word for word in words)


def test_variables_of_the_client_itself_go_by_file() -> None:
    passed, file = container_env.split(
        {"PATH": "/x", "DOCKER_HOST": "tcp://evil", "LD_PRELOAD": "x.so", "https_proxy": "http://p", "A": "1\n2"}
    )
    assert passed == {"A": "1\n2"}
    assert file.splitlines() == ["PATH=/x", "DOCKER_HOST=tcp://evil", "LD_PRELOAD=x.so", "https_proxy=http://p"]
    with pytest.raises(NodeError, match="HOME has several lines"):
        container_env.split({"HOME": "a\nb"})


def test_the_environment_is_dstacks_with_the_containers_own_paths() -> None:
    made = job(nodes=2, env={"DSTACK_RUN_NAME": "mine"}, defaults={"NCCL_IB_HCA": "=mlx5_0"}, mpi_network="10.0.0.0/24")
    assert made.container is not None
    found = container_env.environment(made, made.container, gpus=False, image_dir="/workspace")
    assert found["DSTACK_MPI_HOSTFILE"] == "/dstack/mpi/hostfile"
    assert found["DSTACK_WORKING_DIR"] == found["DSTACK_REPO_DIR"] == "/workspace"
    assert found["DSTACK_RUN_NAME"] == "mine"
    assert found["NCCL_IB_HCA"] == "=mlx5_0"
    assert found["OMPI_MCA_btl_tcp_if_include"] == "10.0.0.0/24"
    assert found["OMPI_MCA_plm_rsh_args"] == found["PRTE_MCA_plm_ssh_args"] == "-F /dstack/ssh/config"
    assert found["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert not {"PATH", "HOME", "CUDA_VISIBLE_DEVICES"} & found.keys()


@pytest.mark.parametrize(
    ("made", "cgroup", "parent"),
    [
        (engine(), f"4:memory:/x\n1:name=systemd:{GROUP}\n0::/", GROUP),
        (engine(), f"0::{GROUP}\n", GROUP),
        (engine(CgroupDriver="systemd"), f"0::{GROUP}\n", "lambdactl-3f0f3c5e6a304b8f9a520d6b1c1f7e11.slice"),
        (engine("podman"), f"0::{GROUP}\n", GROUP),
        (engine(), "0::/user.slice/session-1.scope\n", None),
    ],
)  # fmt: skip
def test_where_the_control_group_goes(made: Engine, cgroup: str, parent: str | None) -> None:
    assert container_place.cgroup_parent(made, RUN, cgroup) == parent


def test_volumes_are_made_where_they_are_missing(tmp_path: Path) -> None:
    wanted = [
        {"source": f"{tmp_path}/new/deep", "target": "/data", "optional": False},
        {"source": "/proc/version/x", "target": "/never", "optional": True},
    ]
    assert container_place.volumes(wanted) == [(f"{tmp_path}/new/deep", "/data")]
    assert (tmp_path / "new/deep").stat().st_mode & 0o777 == 0o777
    with pytest.raises(NodeError, match="the volume /proc/version/x cannot be made"):
        container_place.volumes([{**wanted[1], "optional": False}])
    assert container_place.volumes(None) == []


@pytest.mark.parametrize(
    ("image", "registry", "latest"),
    [
        ("busybox", "docker.io", True), ("busybox:1", "docker.io", False), ("a/b:latest", "docker.io", True),
        ("localhost/x:1", "localhost", False), ("reg:5000/x", "reg:5000", True), ("r.io/x@sha256:aa", "r.io", False),
        ("nvcr.io/nvidia/pytorch:25.01-py3", "nvcr.io", False),
    ],
)  # fmt: skip
def test_what_an_images_name_means(image: str, registry: str, latest: bool) -> None:
    assert container_pull.registry(image) == registry
    assert container_pull.is_latest(image) is latest


def test_the_login_is_a_private_file_of_the_run(tmp_path: Path) -> None:
    container = Container({"image": "reg:5000/x:1", "registry_auth": {"username": "ann", "password": "p:w"}})
    variables = container_pull.write_login(container, str(tmp_path / "login"))
    path = tmp_path / "login" / "config.json"
    assert json.loads(path.read_text()) == {"auths": {"reg:5000": {"auth": base64.b64encode(b"ann:p:w").decode()}}}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert variables == {"DOCKER_CONFIG": str(path.parent), "REGISTRY_AUTH_FILE": str(path)}
    assert container_pull.write_login(Container({"image": "x"}), str(tmp_path / "none")) == {}


@pytest.mark.parametrize(
    ("lines", "amounts"),
    [
        ([f"{A}: Downloading [==>    ]  1.5MB/3MB", "bbbbbbbbbbbb: Downloading  1kB/2kB"], (1_501_000, 3_002_000)),
        ([f"{A}: Downloading [=>] 1MB/3MB", f"\x1b[1A\x1b[2K{A}: Download complete"], (3_000_000, 3_000_000)),
        ([f"{A}: Downloading [=>] 1MB/3MB", f"{A}: Extracting [=>] 1MB/3MB"], (3_000_000, 3_000_000)),
        ([f"Copying blob {A} [==>---] 1.0MiB / 2.0MiB | 3 MiB/s"], (1 << 20, 2 << 20)),
        ([f"Copying blob sha256:{A}dd [>-] 1.0MiB / 2.0MiB", f"Copying blob {A} done"], (2 << 20, 2 << 20)),
        (["Status: Downloaded newer image for x:1", "garbage 1MB/2MB"], (0, 0)),
    ],
)  # fmt: skip
def test_progress_is_read_from_what_the_engine_writes(lines: list[str], amounts: tuple[int, int]) -> None:
    progress = container_pull.Progress()
    for line in lines:
        progress.feed(line)
    assert progress.amounts() == {"done": amounts[0], "total": amounts[1]}


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("write /var/lib/docker/tmp/x: no space left on device", "the disk is full"),
        (
            "Error response from daemon: manifest for reg:5000/x:9 not found: manifest unknown",
            "does not exist in reg:5000",
        ),
        ("unexpected status from HEAD request: 401 Unauthorized", "refuses the image"),
        ("no basic auth credentials", "give registry_auth"),
        ("pull access denied for x, repository does not exist or may require 'docker login'", "or needs a login"),
        ("toomanyrequests: You have reached your pull rate limit.", "limits how often"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "no variant for this node's x86_64"),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "docker stopped answering"),
        ('Get "https://reg:5000/v2/": dial tcp: lookup reg: no such host', "cannot be reached"),
        ("something new", "cannot be pulled: something new"),
    ],
)
def test_every_failure_of_a_pull_is_one_sentence(said: str, sentence: str) -> None:
    text = container_pull.explain(said, engine(), Container({"image": "reg:5000/x:9"}))
    assert sentence in text
    assert "\n" not in text


def test_ssh_reaches_every_node_of_the_run_with_the_fleets_key(tmp_path: Path) -> None:
    made = job(nodes=2)
    text = container_ssh.config(made)
    assert "Host 10.0.0.2 n1\n    HostName 10.0.0.2\n    User ubuntu\n    Port 22\n" in text
    assert "StrictHostKeyChecking yes" in text
    assert "SendEnv LC_LAMBDACTL_RUN" in text
    mounts = [target for _, target in container_ssh.prepare(made, str(tmp_path / "ssh"))]
    assert set(mounts) == {
        "/dstack/ssh/config", "/etc/ssh/ssh_config.d/50-lambdactl.conf", "/dstack/ssh/known_hosts", "/dstack/ssh/key",
    }  # fmt: skip
    assert (tmp_path / "ssh").stat().st_mode & 0o777 == 0o700
    assert container_ssh.prepare(job(), str(tmp_path / "one")) == []


YAML_CDI = """cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}
  - containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}
    name: GPU-fa4e0000-0000-4000-8000-000000000000
  - name: all
"""


def test_the_names_in_cdi_files_are_those_of_every_release_of_the_toolkit() -> None:
    uuid = "GPU-fa4e0000-0000-4000-8000-000000000000"
    names = container_engine.cdi_names(YAML_CDI)
    assert names == {"0", uuid, "all"}
    compact = '{"kind":"nvidia.com/gpu","devices":[{"name":"gpu0","containerEdits":{}},{"name": "gpu1"}]}'
    assert container_engine.cdi_names(compact) == {"gpu0", "gpu1"}
    assert container_place._cdi_name(0, uuid, names) == uuid
    assert container_place._cdi_name(0, "GPU-other", names) == "0"
    assert container_place._cdi_name(1, uuid, {"gpu1"}) == "gpu1"
    with pytest.raises(
        NodeError, match=r"has no GPU 1 \(GPU-other\); write it anew with: sudo nvidia-ctk cdi generate"
    ):
        container_place._cdi_name(1, "GPU-other", names)


def test_docker_reads_cdi_files_where_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_engine, "cdi_text", lambda: YAML_CDI)
    monkeypatch.setattr(container_engine.programs, "find", lambda *_: None)
    deaf = Engine("docker", "d", {**DOCKER_INFO, "ServerVersion": "27.5.1", "CDISpecDirs": []})
    reads = Engine("docker", "d", {**DOCKER_INFO, "ServerVersion": "28.3.0", "CDISpecDirs": ["/etc/cdi"]})
    assert (deaf.gpus, reads.gpus, Engine("podman", "p", PODMAN_INFO).gpus) == (None, "cdi", "cdi")
    assert 'put {"features": {"cdi": true}} into /etc/docker/daemon.json' in container_place.missing_toolkit(deaf)


@pytest.mark.parametrize(
    ("wanted", "engines", "sentence"),
    [
        ("auto", [], "neither Docker nor Podman is installed"),
        ("docker", [engine("podman")], "Docker is not installed"),
        ("auto", [Engine("docker", "d", {}, "Docker is installed, but does not answer")], "does not answer"),
    ],
)
def test_a_missing_engine_is_named(wanted: str, engines: list[Engine], sentence: str) -> None:
    with pytest.raises(NodeError) as caught:
        container_engine.choose(wanted, engines)
    assert sentence in caught.value.message


def test_the_first_engine_that_works_is_taken() -> None:
    dead, alive = Engine("docker", "d", {}, "dead"), engine("podman")
    assert container_engine.choose("auto", [dead, alive]) is alive
