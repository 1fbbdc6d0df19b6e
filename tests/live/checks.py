"""What must hold on any cluster, with any image that has /bin/sh. A check that does not apply skips with the reason."""

from __future__ import annotations

import json
import time

import pytest

from tests.live.desk import PATIENCE, Desk

REFERENCE = """
nodes: 2
startup_order: workers-first
stop_criteria: master-done
commands:
  - |
    echo "up $DSTACK_NODE_RANK"
    if [ $DSTACK_NODE_RANK -eq 0 ]; then
      cat $DSTACK_MPI_HOSTFILE
    else
      sleep infinity
    fi
"""


def two_nodes(desk: Desk) -> None:
    if desk.nodes < 2:
        pytest.skip("only one node of the cluster takes pods")


def check_the_backend_and_the_fleet(desk: Desk) -> None:
    said = json.loads(desk.run("backend", "check", "--json", rc=None).stdout)
    findings = {finding["check"]: finding for cluster in said["clusters"] for finding in cluster["findings"]}
    assert findings["reachability"]["status"] == "pass", findings
    assert desk.nodes >= 1


def check_the_environment_of_every_rank(desk: Desk) -> None:
    nodes = min(desk.nodes, 2)
    names = (
        "RUN_ID", "JOB_ID", "RUN_NAME", "REPO_ID", "REPO_DIR", "WORKING_DIR", "NODES_IPS", "MASTER_NODE_IP",
        "NODE_IP", "NODE_RANK", "NODES_NUM", "GPUS_PER_NODE", "GPUS_NUM", "MPI_HOSTFILE",
    )  # fmt: skip
    lines = "".join(f'  - echo "{name}=$(printf %s "$DSTACK_{name}" | tr \'\\n\' ,)"\n' for name in names)
    text = f"nodes: {nodes}\nworking_dir: /tmp\nenv: [\"WORDS=a 'b' {{{{ 7*7 }}}}\"]\ncommands:\n{lines}"
    text += '  - echo "WORDS=$WORDS"\n  - echo "HOSTFILE=$(tr "\\n" , < $DSTACK_MPI_HOSTFILE)"\n'
    done = desk.apply("env", text, "--all")
    for rank in range(nodes):
        prefix = f"{rank}: " if nodes > 1 else ""
        found = dict(
            line.removeprefix(prefix).split("=", 1) for line in done.stdout.splitlines() if line.startswith(prefix)
        )
        ips = found["NODES_IPS"].split(",")
        assert len(ips) == nodes
        assert found["NODE_IP"] == ips[rank]
        assert found["MASTER_NODE_IP"] == ips[0]
        assert found["HOSTFILE"] == "".join(f"{ip}," for ip in ips)
        expected = {"NODE_RANK": str(rank), "NODES_NUM": str(nodes), "GPUS_NUM": "0", "WORKING_DIR": "/tmp"}
        assert {name: found[name] for name in expected} == expected
        assert found["RUN_NAME"] == desk.name("env")
        assert found["WORDS"] == "a 'b' {{ 7*7 }}"
    desk.nothing_left("env")


def check_the_shape_of_the_reference_page(desk: Desk) -> None:
    two_nodes(desk)
    done = desk.apply("page", REFERENCE, "--all")
    assert done.stdout.index("1: up 1") < done.stdout.index("0: up 0")
    assert len([line for line in done.stdout.splitlines() if line.startswith("0: ")]) == 3
    desk.nothing_left("page")


def check_the_first_failing_ranks_code(desk: Desk) -> None:
    nodes = min(desk.nodes, 2)
    text = f"nodes: {nodes}\ncommands: ['test $DSTACK_NODE_RANK = {nodes - 1} || sleep 600', 'echo last words; exit 7']"
    done = desk.apply("code", text, "--all", rc=7)
    assert "last words" in done.stdout
    assert f"rank {nodes - 1} on " in done.stderr
    assert "the commands exited with code 7" in done.stderr
    desk.nothing_left("code")


def check_detach_list_log_attach_and_stop(desk: Desk) -> None:
    name = desk.name("long")
    text = "commands: ['trap \"echo got INT; exit 0\" INT', 'echo up; while :; do sleep 0.2; done']"
    desk.apply("long", text, "-d")
    assert "is running" in desk.apply("long", text, rc=3).stderr
    listed = {run["name"]: run["state"] for run in json.loads(desk.run("ps", "--json").stdout)["runs"]}
    assert listed[name] == "running"
    attached = desk.start("attach", name)
    assert attached.stdout is not None
    assert attached.stdout.readline() == "up\n"
    assert desk.run("logs", name).stdout == "up\n"
    assert json.loads(desk.run("run", "get", name, "--json").stdout)["state"] == "running"
    desk.run("stop", name, "-y")
    rest, _ = attached.communicate(timeout=PATIENCE)
    assert attached.returncode == 130
    assert "got INT" in rest
    desk.nothing_left("long")


def check_max_duration(desk: Desk) -> None:
    done = desk.apply("limit", "max_duration: 5s\ncommands: [sleep 600]", rc=124)
    assert "max_duration of 5 s is over" in done.stderr
    desk.nothing_left("limit")


def check_a_run_outlives_its_controller(desk: Desk) -> None:
    name = desk.name("alone")
    path = desk.task("alone", "commands: ['echo begin; sleep 15; echo end; exit 4']")
    controller = desk.start("apply", "-f", path, "-y")
    assert controller.stdout is not None
    assert controller.stdout.readline() == "begin\n"
    controller.kill()
    controller.wait()
    assert desk.run("attach", name, rc=4).stdout == "begin\nend\n"
    desk.nothing_left("alone")


def check_an_image_that_does_not_exist(desk: Desk) -> None:
    if desk.fake:
        pytest.skip("the fake has every image here; test_bad_days.py has its refusals")
    done = desk.apply("image", "image: registry.invalid/none:1\ncommands: [ls]", rc=1)
    assert "the image registry.invalid/none:1 cannot be pulled on " in done.stderr
    desk.nothing_left("image")


def check_what_does_not_fit(desk: Desk) -> None:
    done = desk.apply("fit", f"nodes: {desk.nodes + 1}\ncommands: [ls]", rc=3)
    assert f"asks for {desk.nodes + 1} nodes, but {desk.nodes} of " in done.stderr
    assert desk.left("fit") == []


def check_shared_memory(desk: Desk) -> None:
    done = desk.apply("shm", "resources: {shm_size: 128MB}\ncommands: ['df -k /dev/shm | tail -n 1']")
    if not desk.fake:
        assert "131072" in done.stdout
    desk.nothing_left("shm")


def check_the_end_by_lack_of_memory(desk: Desk) -> None:
    if desk.fake:
        pytest.skip("the fake has no control groups")
    text = "resources: {memory: 0.03GB..0.06GB}\ncommands: ['tail /dev/zero']"
    assert "lack of memory" in desk.apply("oom", text, rc=137).stderr
    desk.nothing_left("oom")


def check_keep_and_delete(desk: Desk) -> None:
    name = desk.name("kept")
    desk.apply("kept", "commands: [echo kept]", "--keep")
    assert desk.run("logs", name).stdout == "kept\n"
    assert json.loads(desk.run("run", "get", name, "--json").stdout)["state"] == "done"
    desk.apply("kept", "commands: [echo again]")
    desk.nothing_left("kept")


def check_ssh_between_ranks(desk: Desk) -> None:
    two_nodes(desk)
    probe = desk.apply(
        "has", "commands: ['command -v sshd || ls /usr/sbin/sshd 2>/dev/null || true; command -v ssh || true']"
    )
    if "sshd" not in probe.stdout or not any(line.endswith("/ssh") for line in probe.stdout.splitlines()):
        done = desk.apply("ssh", "nodes: 2\ncommands: ['ssh $DSTACK_MASTER_NODE_IP true']", rc=1)
        assert "and the commands reach the other ranks by SSH" in done.stderr
        desk.nothing_left("ssh")
        pytest.skip(f"the image {desk.image} has no sshd and ssh (and the run said so)")
    text = REFERENCE.replace(
        "cat $DSTACK_MPI",
        "for ip in $DSTACK_NODES_IPS; do ssh $ip 'echo I am $DSTACK_NODE_RANK'; done; cat $DSTACK_MPI",
    )
    done = desk.apply("ssh", text)
    assert "I am 0\nI am 1\n" in done.stdout
    desk.nothing_left("ssh")


def check_login(desk: Desk) -> None:
    name = desk.name("login")
    desk.apply(
        "login",
        "env: [WORDS=hello]\ncommands: ['command -v sshd || ls /usr/sbin/sshd 2>/dev/null || true', sleep 600]",
        "-d",
    )
    if "sshd" not in desk.run("logs", name).stdout:
        desk.run("stop", name, "-y", "-x")
        pytest.skip(f"the image {desk.image} has no sshd")
    done = desk.run("ssh", name, "echo $WORDS from rank $DSTACK_NODE_RANK")
    assert done.stdout == "hello from rank 0\n"
    desk.run("ssh", name, "exit 9", rc=9)
    desk.run("stop", name, "-y", "-x")
    desk.nothing_left("login")


def check_mpirun(desk: Desk) -> None:
    two_nodes(desk)
    if "mpirun" not in desk.apply("mpi", "commands: ['command -v mpirun || true']").stdout:
        pytest.skip(f"the image {desk.image} has no mpirun")
    mpirun = "mpirun --allow-run-as-root --hostfile $DSTACK_MPI_HOSTFILE -n 2 -N 1 hostname"
    done = desk.apply("mpi", REFERENCE.replace("cat $DSTACK_MPI_HOSTFILE", mpirun))
    assert len({line for line in done.stdout.splitlines() if line.startswith(desk.name("mpi"))}) == 2
    desk.nothing_left("mpi")


def check_that_time_passes_quickly(desk: Desk) -> None:
    """No assertion on the clock: prints what a run costs here, for people."""
    begun = time.monotonic()
    desk.apply("quick", "commands: ['true']")
    print(f"a run of one rank took {time.monotonic() - begun:.1f} s from the command to its exit code")
    desk.nothing_left("quick")


CHECKS = [function for name, function in list(globals().items()) if name.startswith("check_")]
