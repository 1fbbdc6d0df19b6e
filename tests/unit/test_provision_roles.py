"""What a node needs, and why in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambdactl import content
from lambdactl.fleet import Fleet
from lambdactl.provision import ROLES, needed, peers, role_digests, survey
from lambdactl.transport.api import Completed, Failure

FLEET = """\
type: fleet
name: fleet-f
ssh_config:
  user: ubuntu
  hosts: [a, b, c]
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    file = tmp_path / "f.dstack.yml"
    file.write_text(FLEET)
    return Fleet.load(file)


def facts(number: int, **more: Any) -> dict[str, Any]:
    return {
        "hostname": f"n{number}", "python": "3.10.12", "systemd": True, "sudo": True, "gpus": [],
        "disk": {"path": "/", "total": 10**12, "free": 10**11},
        "openmpi": {"version": "4.1.4", "path": "/usr/bin/mpirun"},
        "addresses": [{"interface": "eth0", "address": f"10.0.0.{number}", "prefix": 24}],
        "ssh_host_keys": [f"ssh-ed25519 HOST{number} root@n{number}"], "node_ssh_key": f"ssh-ed25519 KEY{number} x",
        "runner": content.runner_sha256(), "provisioned": {}, "leases": [], **more,
    }  # fmt: skip


ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}


def converged(fleet: Fleet, seen: Mapping[str, dict[str, Any]], **variables: Any) -> dict[str, dict[str, Any]]:
    """The same nodes after every role has run on them."""
    nodes = peers(fleet, seen, ADDRESSES)
    return {
        name: {**known, "provisioned": {
            role: {"digest": digest, "drift": []}
            for role, digest in role_digests(known, variables, fleet_id=fleet.id, nodes=nodes).items()
        }}
        for name, known in seen.items()
    }  # fmt: skip


@pytest.fixture
def ready(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return converged(fleet, {"a": facts(1), "b": facts(2), "c": facts(3)})


def why(fleet: Fleet, seen: Mapping[str, Any], host: str = "a", **variables: Any) -> dict[str, str]:
    found = needed(fleet, seen, {host: variables}, ADDRESSES)
    return {change.role: change.why for change in found[host]}


def test_a_converged_fleet_needs_nothing(fleet: Fleet, ready: dict[str, Any]) -> None:
    assert needed(fleet, ready, {}, ADDRESSES) == {"a": [], "b": [], "c": []}


def test_force_names_every_role_in_order(fleet: Fleet, ready: dict[str, Any]) -> None:
    found = needed(fleet, ready, {}, ADDRESSES, force=True)["a"]
    assert [change.role for change in found] == list(ROLES)
    assert {change.why for change in found} == {"asked for"}


def test_a_new_host(fleet: Fleet) -> None:
    wanted = [role for role in ROLES if role != "container_engine"]
    assert why(fleet, {"a": facts(1, runner=None, node_ssh_key=None)}) == dict.fromkeys(wanted, "new host")


def test_a_container_engine_only_where_it_is_asked_for(fleet: Fleet, ready: dict[str, Any]) -> None:
    del ready["a"]["provisioned"]["container_engine"]
    assert why(fleet, ready) == {}
    asked = {"container_engine": "a container engine is asked for"}
    assert why(fleet, ready, container_engine_state="present") == asked
    asking = replace(fleet, container_engine="auto")
    assert asking.role_variables == {"container_engine_state": "present", "container_engine_name": "auto"}
    assert fleet.role_variables == {}


def test_a_role_that_never_ran(fleet: Fleet, ready: dict[str, Any]) -> None:
    del ready["a"]["provisioned"]["mpi_bench"]
    assert why(fleet, ready) == {"mpi_bench": "the CPU benchmark is missing"}


def test_an_interrupted_role(fleet: Fleet, ready: dict[str, Any]) -> None:
    ready["a"]["provisioned"]["openmpi"] = {"digest": "", "drift": ["the manifest cannot be read"]}
    assert why(fleet, ready) == {"openmpi": "an earlier run was interrupted"}


def test_drift_names_what_changed(fleet: Fleet, ready: dict[str, Any]) -> None:
    ready["a"]["provisioned"]["openmpi"]["drift"] = ["/usr/bin/mpirun: No such file or directory"]
    assert why(fleet, ready) == {"openmpi": "changed on the node: /usr/bin/mpirun: No such file or directory"}


def test_another_runner(fleet: Fleet, ready: dict[str, Any]) -> None:
    ready["a"]["runner"] = "0" * 64
    assert why(fleet, ready) == {"runner": "the runner is another version"}


def test_a_setting_counts_only_where_it_differs_from_the_default(fleet: Fleet, ready: dict[str, Any]) -> None:
    assert why(fleet, ready, openmpi_packages=["openmpi-bin", "libopenmpi-dev"], openmpi_lock_timeout=5) == {}
    assert list(why(fleet, ready, openmpi_packages=["mine"])) == ["openmpi"]


def test_gpus_decide_about_the_tests(fleet: Fleet, ready: dict[str, Any]) -> None:
    ready["a"]["gpus"] = [{"index": 0, "name": "NVIDIA B200", "compute_capability": "10.0"}]
    assert sorted(why(fleet, ready)) == ["container_engine", "mpi_bench", "nccl_tests"]


def test_a_role_that_is_not_wanted(fleet: Fleet, ready: dict[str, Any]) -> None:
    assert why(fleet, ready, mpi_bench_state="absent") == {"mpi_bench": "mpi_bench is to be removed"}
    del ready["a"]["provisioned"]["mpi_bench"]
    assert why(fleet, ready, mpi_bench_state="absent") == {}


class TestHostsChanged:
    def test_a_node_that_is_down_does_not_count_as_removed(self, fleet: Fleet, ready: dict[str, Any]) -> None:
        del ready["c"]
        assert needed(fleet, ready, {}, ADDRESSES) == {"a": [], "b": []}

    def test_a_node_that_comes_new(self, fleet: Fleet) -> None:
        two = converged(fleet, {"a": facts(1), "b": facts(2)})
        three = {**two, "c": facts(3, runner=None, node_ssh_key=None)}
        assert why(fleet, three) == {"node_ssh": "hosts changed: c was added"}
        assert why(fleet, three, "b") == {"node_ssh": "hosts changed: c was added"}

    def test_a_node_whose_key_is_known_but_not_installed_here(self, fleet: Fleet, ready: dict[str, Any]) -> None:
        two = converged(fleet, {"a": facts(1), "b": facts(2)})
        assert why(fleet, {**two, "c": ready["c"]}) == {"node_ssh": "hosts changed: c was added"}

    def test_a_node_with_a_new_host_key(self, fleet: Fleet, ready: dict[str, Any]) -> None:
        ready["b"]["ssh_host_keys"] = ["ssh-ed25519 OTHER"]
        assert why(fleet, ready) == {"node_ssh": "hosts changed: b has another address or key"}

    def test_a_node_that_left_the_file(self, tmp_path: Path, ready: dict[str, Any]) -> None:
        file = tmp_path / "f.dstack.yml"
        file.write_text(FLEET.replace(", c]", "]"))
        smaller = Fleet.load(file)
        del ready["c"]
        assert why(smaller, ready) == {"node_ssh": "hosts changed: 1 removed"}

    def test_the_comment_of_a_host_key_and_a_bridge_do_not_count(self, fleet: Fleet, ready: dict[str, Any]) -> None:
        ready["b"]["ssh_host_keys"] = ["ssh-ed25519 HOST2 somebody@else"]
        ready["b"]["addresses"].append({"interface": "docker0", "address": "172.17.0.1", "prefix": 16})
        assert needed(fleet, ready, {}, ADDRESSES)["a"] == []


class Nodes:
    """Answers a survey's commands as nodes would (a fake of SSH; the sandbox's tests use the real one)."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.sent: list[dict[str, tuple[str, bytes]]] = []

    async def fan_out(self, commands: Any, *, on_result: Any = None, **_: Any) -> None:
        self.sent.append(dict(commands))
        for name, (command, _) in commands.items():
            answer = self.answers[name]
            if isinstance(answer, dict):
                if "memfd_create" not in command and answer["runner"] != content.runner_sha256():
                    answer = Completed(name, 98, b"", b"")
                else:
                    answer = Completed(
                        name, 0, b"Welcome!\n" + json.dumps({"id": 1, "ok": True, "result": answer}).encode(), b""
                    )
            on_result(name, answer)


def look(fleet: Fleet, answers: Mapping[str, Any]) -> tuple[Any, Nodes]:
    nodes = Nodes(answers)
    return asyncio.run(survey(fleet, nodes)), nodes  # type: ignore[arg-type]  # a stand-in with what is asked of it


class TestSurvey:
    def test_a_converged_fleet_costs_one_small_exec_a_node(self, fleet: Fleet, ready: dict[str, Any]) -> None:
        seen, nodes = look(fleet, ready)
        assert seen.changed == []
        assert not seen.problems
        assert len(nodes.sent) == 1
        assert all(len(command) + len(data) <= 1024 for command, data in nodes.sent[0].values())

    def test_only_nodes_without_this_runner_get_it(self, fleet: Fleet, ready: dict[str, Any]) -> None:
        ready["b"]["runner"] = None
        _, nodes = look(fleet, ready)
        assert [sorted(sent) for sent in nodes.sent] == [["a", "b", "c"], ["b"]]
        assert nodes.sent[1]["b"][1].startswith(content.runner_zipapp())

    @pytest.mark.parametrize(
        ("answer", "kind", "said"),
        [
            (Failure("b", "unreachable", "b does not answer.", "Look."), "unreachable", "b does not answer."),
            (Completed("b", 95, b"", b""), "no-python", "Python 3 is missing"),
            (Completed("b", 94, b"", b""), "no-sudo", "sudo is not installed"),
            (Completed("b", 1, b"", b"sudo: a password is required\n"), "no-sudo", "no sudo without a password"),
            (Completed("b", 1, b"hello\n{not json\n", b""), "failed", "ended with 1"),
            (facts(2, python="3.6.9"), "old-python", "Python 3.6.9 on the node is too old"),
            (facts(2, systemd=False), "no-systemd", "does not run systemd"),
            (facts(2, openmpi=None, disk={"free": 10**8}), "no-space", "Only 100 MB are free"),
        ],
    )
    def test_a_host_with_a_problem_does_not_hide_the_others(
        self, fleet: Fleet, ready: dict[str, Any], answer: Any, kind: str, said: str
    ) -> None:
        seen, _ = look(fleet, {**ready, "b": answer})
        assert list(seen.problems) == ["b"]
        assert seen.problems["b"].kind == kind
        assert said in seen.problems["b"].sentence
        assert " Remedy: " in seen.problems["b"].sentence
        assert list(seen.needed) == ["a", "c"]
