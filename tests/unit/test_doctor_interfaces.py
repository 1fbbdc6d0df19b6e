"""Which devices a run is to use, from captured facts; and that every setting of the user's own beats that."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import Any

import pytest

from lambdactl.fleet import Fleet
from lambdactl.fleet.facts import NodeFacts
from lambdactl.fleet.interfaces import infiniband_devices, interface_of, nccl_ib_hca, run_defaults
from lambdactl.node import env
from lambdactl.node.spec import Job
from lambdactl.run.plan import NodeView, job_specs, make_plan
from lambdactl.spec import loads
from tests.bed.gang import task


def port(device: str, layer: str = "InfiniBand", state: str = "ACTIVE", number: int = 1) -> dict[str, Any]:
    return {"device": device, "port": number, "state": state, "link_layer": layer, "rate_gbps": 400.0}


ONE_CLICK = [port("mlx5_0", "Ethernet"), *(port(f"mlx5_{number}") for number in range(1, 9))]


def facts(ports: list[dict[str, Any]], address: str = "10.19.0.1") -> NodeFacts:
    addresses = [
        {"interface": "docker0", "address": "172.17.0.1", "prefix": 16},
        {"interface": "eno1", "address": address, "prefix": 20},
    ]
    return NodeFacts.from_probe({"infiniband": ports, "addresses": addresses, "runner": "x"})


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (ONE_CLICK, "=mlx5_1,mlx5_2,mlx5_3,mlx5_4,mlx5_5,mlx5_6,mlx5_7,mlx5_8"),
        ([port("mlx5_10"), port("mlx5_2")], "=mlx5_2,mlx5_10"),
        ([port("mlx5_1"), port("mlx5_2", state="DOWN")], "=mlx5_1"),
        ([port("mlx5_1", number=1), port("mlx5_1", number=2, state="DOWN"), port("mlx5_2")], "=mlx5_1:1,mlx5_2"),
        ([port("mlx5_1", number=1), port("mlx5_1", number=2)], "=mlx5_1"),
        ([port("ibp24s0"), port("ibp41s0")], "=ibp24s0,ibp41s0"),
        ([port("mlx5_0", "Ethernet"), port("mlx5_1", "Ethernet")], None),
        ([], None),
    ],
)
def test_the_active_infiniband_devices_exactly(ports: list[dict[str, Any]], expected: str | None) -> None:
    assert nccl_ib_hca(facts(ports)) == expected


def test_a_node_says_whatever_it_likes() -> None:
    odd = facts([port(""), {"device": 7}, port("mlx5_1")])
    assert "mlx5_1" in infiniband_devices(odd)
    assert interface_of(odd, "10.19.0.1") == "eno1"
    assert interface_of(odd, "10.0.0.9") is None


def test_defaults_of_a_gang_and_of_one_node() -> None:
    two = {"a": facts(ONE_CLICK), "b": facts(ONE_CLICK, "10.19.0.2")}
    addresses = {"a": "10.19.0.1", "b": "10.19.0.2"}
    hca = "=" + ",".join(f"mlx5_{number}" for number in range(1, 9))
    expected = {"NCCL_IB_HCA": hca, "NCCL_SOCKET_IFNAME": "=eno1"}
    assert run_defaults(two, addresses) == {"a": expected, "b": expected}
    assert run_defaults({"a": two["a"]}, {"a": "10.19.0.1"}) == {"a": {"NCCL_IB_HCA": hca}}
    assert run_defaults({"a": facts([])}, addresses) == {"a": {}}


FLEET = """
type: fleet
name: two
ssh_config: {user: ubuntu, network: 10.19.0.0/20, hosts: [a, b]}
"""


def test_a_plan_carries_each_nodes_own_defaults(tmp_path: Path) -> None:
    fleet = Fleet.from_spec(loads(FLEET, filename="two.dstack.yml"), path=None)  # type: ignore[arg-type]  # the file is an SSH fleet's
    views = {
        "a": NodeView("a", facts=facts(ONE_CLICK)),
        "b": NodeView("b", facts=facts([port("mlx5_7")], "10.19.0.2")),
    }
    plan = make_plan(task("true", nodes=2), fleet, views)
    jobs = job_specs(plan)
    assert jobs["a"]["defaults"]["NCCL_IB_HCA"].startswith("=mlx5_1,")
    assert jobs["b"]["defaults"] == {"NCCL_IB_HCA": "=mlx5_7", "NCCL_SOCKET_IFNAME": "=eno1"}
    without = make_plan(task("true"), fleet, {**views, "a": NodeView("a", facts=facts([]))})
    assert job_specs(without)["a"]["defaults"] == {}


@dataclasses.dataclass
class Person:
    name: str
    home: str
    shell: str = "/bin/sh"


def job(defaults: dict[str, str], own: dict[str, str]) -> Job:
    node = {"name": "a", "ip": "10.19.0.1", "gpus": 0}
    return Job(
        {"run_id": str(uuid.uuid4()), "run_name": "r", "rank": 0, "nodes": [node], "script": "true", "env": own,
         "defaults": defaults}
    )  # fmt: skip


class TestOnTheNode:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.person: Any = Person("ubuntu", str(tmp_path))
        self.conf = tmp_path / "nccl.conf"
        monkeypatch.setattr(env, "NCCL_CONF", str(self.conf))
        monkeypatch.setattr(env, "login_environment", lambda: {"PATH": "/bin", "NCCL_FROM_LOGIN": "login"})

    def both(self, defaults: dict[str, str], own: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        wanted = job(defaults, own)
        variables = env.environment(wanted, self.person)
        return variables, env.for_logins(wanted, self.person, variables)

    def test_a_default_reaches_the_job_and_its_remote_ranks(self) -> None:
        variables, logins = self.both({"NCCL_IB_HCA": "=mlx5_1"}, {})
        assert variables["NCCL_IB_HCA"] == logins["NCCL_IB_HCA"] == "=mlx5_1"

    def test_the_users_own_wins_and_is_left_to_the_user(self) -> None:
        variables, logins = self.both({"NCCL_IB_HCA": "=mlx5_1"}, {"NCCL_IB_HCA": "^mlx5_0"})
        assert variables["NCCL_IB_HCA"] == "^mlx5_0"
        assert "NCCL_IB_HCA" not in logins

    def test_the_nodes_login_environment_wins(self) -> None:
        variables, logins = self.both({"NCCL_FROM_LOGIN": "default"}, {})
        assert variables["NCCL_FROM_LOGIN"] == logins["NCCL_FROM_LOGIN"] == "login"

    @pytest.mark.parametrize("place", ["nccl.conf", ".nccl.conf"])
    def test_nccls_own_files_win(self, place: str, tmp_path: Path) -> None:
        (tmp_path / place).write_text("# comment\nNCCL_IB_HCA = mlx5_3\n")
        variables, logins = self.both({"NCCL_IB_HCA": "=mlx5_1", "NCCL_SOCKET_IFNAME": "=eno1"}, {})
        assert "NCCL_IB_HCA" not in {**variables, **logins}
        assert variables["NCCL_SOCKET_IFNAME"] == "=eno1"
