"""Fleets from fleet files and from frozen host variables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lambdactl.errors import SpecError
from lambdactl.fleet.model import Fleet, Hop, Overrides
from lambdactl.fleet.ssh import host_vars
from lambdactl.spec import loads

REFERENCE = Path(__file__).parents[1] / "data/fleet/lambda-fleet.dstack.yml"
NOTHING = Overrides()


def fleet_of(ssh_config: str, *, name: str = "name: cc\n", overrides: Overrides = NOTHING) -> Fleet:
    """A fleet whose ssh_config is the given YAML (flow style, one line for each host where lines matter)."""
    spec = loads(f"type: fleet\n{name}ssh_config:\n{ssh_config}", filename="c.dstack.yml", kind="fleet")
    return Fleet.from_spec(spec, path="c.dstack.yml", overrides=overrides)


def hosts_of(hosts: str, extra: str = "  user: u\n") -> Fleet:
    return fleet_of(f"{extra}  hosts:\n" + "".join(f"    - {host}\n" for host in hosts.split("\n")))


def test_reference_page() -> None:
    fleet = Fleet.load(REFERENCE)
    jump = Hop("192.222.55.54", 22, "ubuntu", "~/.ssh/id_rsa")
    assert [host.name for host in fleet.hosts] == ["worker-gpu-8x-b200-rplfm-ll9nr", "worker-gpu-8x-b200-rplfm-qrcs9"]
    assert [host.index for host in fleet.hosts] == [0, 1]
    assert {host.route.hops for host in fleet.hosts} == {(jump,)}
    assert fleet.hosts[0].route.target == Hop("worker-gpu-8x-b200-rplfm-ll9nr", 22, "ubuntu", "~/.ssh/id_rsa")
    assert (fleet.name, fleet.group, fleet.placement) == ("lambda-fleet", "lambda_fleet", "cluster")
    assert fleet.control_dir == f"~/.ansible/cp/{fleet.id}"
    assert fleet.known_hosts == f"~/.ssh/known_hosts.lambdactl-{fleet.id}"


def test_host_values_win_and_gaps_are_filled() -> None:
    fleet = fleet_of(
        "  user: u\n  port: 2200\n  identity_file: /k\n  proxy_jump: {hostname: j}\n  hosts:\n"
        "    - a\n"
        "    - {hostname: b, user: v, port: 22, identity_file: ~/o, proxy_jump: []}\n"
        "    - {hostname: c, proxy_jump: [{hostname: p, user: x, port: 1}, {hostname: q, identity_file: /q}]}\n"
    )
    a, b, c = (host.route for host in fleet.hosts)
    assert (a.hops, a.target) == ((Hop("j", 22, "u"),), Hop("a", 2200, "u", "/k"))
    assert (b.hops, b.target) == ((), Hop("b", 22, "v", "~/o"))
    assert c.hops == (Hop("p", 1, "x"), Hop("q", 22, "u", "/q"))


def test_relative_keys_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hosts_of("{hostname: a, identity_file: keys/k}").hosts[0].route.target.identity_file == f"{tmp_path}/keys/k"


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("lambda-fleet.dstack.yml", "lambda-fleet"),
        ("/x/My_Cluster.fleet.yaml", "my-cluster"),
        (".dstack.yml", "fleet"),
        ("-", "fleet"),
        ("2-nodes.yml", "nodes"),
    ],
)
def test_a_fleet_without_name_is_named_after_its_file(filename: str, name: str) -> None:
    spec = loads("type: fleet\nssh_config: {user: u, hosts: [a]}", filename=filename, kind="fleet")
    assert Fleet.from_spec(spec, path=filename).name == name


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        ("a\nb", ["a", "b"]),
        ("{hostname: a, port: 22}\n{hostname: a, port: 2222}", ["a-22", "a-2222"]),
        ("{hostname: a, proxy_jump: {hostname: x}}\n{hostname: a, proxy_jump: {hostname: y}}\nb", ["a-x", "a-y", "b"]),
        ("a\n{hostname: a, proxy_jump: {hostname: y}}", ["a-direct", "a-y"]),
    ],
)
def test_inventory_names(hosts: str, names: list[str]) -> None:
    assert [host.name for host in hosts_of(hosts).hosts] == names


def test_same_address_behind_two_jump_hosts_shares_nothing() -> None:
    fleet = hosts_of("{hostname: a, proxy_jump: {hostname: x}}\n{hostname: a, proxy_jump: {hostname: y}}\nb")
    first, second, other = (host_vars(fleet, host) for host in fleet.hosts)
    assert first["ansible_control_path_dir"] != second["ansible_control_path_dir"]
    assert "HostKeyAlias=a-x" in first["ansible_ssh_common_args"]
    assert "HostKeyAlias=a-y" in second["ansible_ssh_common_args"]
    assert other["ansible_control_path_dir"] == fleet.control_dir
    assert "HostKeyAlias" not in other["ansible_ssh_common_args"]


ONE_SENTENCE = [
    ("a\nb\na", "c.dstack.yml:8: The host 'a' port 22 is listed twice, in line 6 and in line 8; remove one of them."),
    ("{hostname: a, port: 22}\n{hostname: a, port: 2222}\na-22", "c.dstack.yml:8: The hosts in line 6 and in line 8"),
    ("fe80::1%eth0", "has a zone"),
    ('{hostname: a, identity_file: "/k\'; rm -rf"}', "c.dstack.yml:6: The identity_file"),
    ("{hostname: a, identity_file: \"{{ lookup('pipe', 'id') }}\"}", "is not a plain path"),
    ("{hostname: a, identity_file: '%d/key'}", "is not a plain path"),
    ("{hostname: a, identity_file: $KEY}", "is not a plain path"),
    ("{hostname: a, identity_file: ~root/key}", "names another user's home"),
    ("{hostname: a, identity_file: -oProxyCommand=id}", "is not a plain path"),
    ("-oProxyCommand=id", "c.dstack.yml:6: "),
    ('"a b"', "c.dstack.yml:6: "),
    ('"a;id"', "c.dstack.yml:6: "),
    ('"a\\n"', "c.dstack.yml:6: "),
    ("{hostname: a, user: -l}", "c.dstack.yml:6: "),
    ("{hostname: a, user: 'x y'}", "c.dstack.yml:6: "),
    ("{hostname: a, proxy_jump: {hostname: '$(id)'}}", "c.dstack.yml:6: "),
    ("{hostname: a, internal_ip: 10.0.0.1}\nb", "c.dstack.yml:7: "),
]


@pytest.mark.parametrize(("hosts", "message"), ONE_SENTENCE, ids=[hosts for hosts, _ in ONE_SENTENCE])
def test_mistakes(hosts: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        hosts_of(hosts)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_user() -> None:
    with pytest.raises(SpecError, match=r"c\.dstack\.yml:5: .*user.*'a'"):
        hosts_of("a", extra="")


def test_internal_ip_and_network_exclude_each_other() -> None:
    with pytest.raises(SpecError, match="internal_ip"):
        hosts_of("{hostname: a, internal_ip: 10.0.0.1}", extra="  user: u\n  network: 10.0.0.0/24\n")


def test_backend_fleet() -> None:
    spec = loads("type: fleet\nname: k8s\nnodes: 0..\n", filename="k.dstack.yml", kind="fleet")
    with pytest.raises(SpecError, match=r"k\.dstack\.yml: This is the fleet of a backend \(Kubernetes\)"):
        Fleet.from_spec(spec, path="k.dstack.yml")


def test_id_tells_fleets_apart_that_reuse_addresses() -> None:
    def fleet_id(jump: str, name: str = "name: cc\n") -> str:
        text = f"  user: u\n  hosts: [10.0.0.1, 10.0.0.2]\n  proxy_jump: {{hostname: {jump}}}\n"
        return fleet_of(text, name=name).id

    assert fleet_id("x") == fleet_id("x")
    assert len({fleet_id("x"), fleet_id("y"), fleet_id("x", "name: other\n")}) == 3
    assert hosts_of("a\nb").id == hosts_of("b\na\nc").id


@pytest.mark.parametrize(
    ("environ", "node_key", "jump_key", "policy"),
    [
        ({}, "/k", "/j", "accept-new"),
        ({"LAMBDACTL_JUMP_KEY": "/run/1/key"}, "/k", "$LAMBDACTL_JUMP_KEY", "accept-new"),
        ({"LAMBDACTL_SSH_KEY": "/run/1/key"}, "$LAMBDACTL_SSH_KEY", "/j", "accept-new"),
        ({"LAMBDACTL_SSH_KEY": "none", "LAMBDACTL_HOST_KEY_POLICY": "yes"}, None, "/j", "yes"),
        ({"LAMBDACTL_SSH_KEY": "", "LAMBDACTL_JUMP_KEY": ""}, "/k", "/j", "accept-new"),
    ],
)
def test_overrides(environ: dict[str, str], node_key: str | None, jump_key: str, policy: str) -> None:
    text = "  {user: u, identity_file: /k, hosts: [a], proxy_jump: {hostname: j, identity_file: /j}}\n"
    fleet = fleet_of(text, overrides=Overrides.from_environment(environ))
    route = fleet.hosts[0].route
    assert (route.target.identity_file, route.hops[0].identity_file, fleet.host_key_policy) == (
        node_key,
        jump_key,
        policy,
    )


def test_unknown_host_key_policy() -> None:
    with pytest.raises(SpecError, match="policy 'maybe' is unknown"):
        fleet_of("  {user: u, hosts: [a]}\n", overrides=Overrides(host_key_policy="maybe"))


def test_key_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("KEY", "~/k")
    assert Hop("a", identity_file="~/x").key_path() == "/h/x"
    assert Hop("a", identity_file="$KEY").key_path() == "/h/k"
    assert Hop("a").key_path() is None
    with pytest.raises(SpecError, match="variable ABSENT, which holds the path of a's key, is not set"):
        Hop("a", identity_file="$ABSENT").key_path()


def frozen(fleet: Fleet) -> dict[str, dict[str, object]]:
    """The variables as AWX keeps them: through JSON."""
    variables = {host.name: host_vars(fleet, host) for host in fleet.hosts}
    restored: dict[str, dict[str, object]] = json.loads(json.dumps(variables))
    return restored


MANY = "{hostname: a, internal_ip: 10.0.0.1}\n{hostname: b, port: 2, internal_ip: 10.0.0.2, proxy_jump: {hostname: x}}"


def test_from_hostvars_rebuilds_routes_in_file_order() -> None:
    fleet = hosts_of(MANY)
    rebuilt = Fleet.from_hostvars(frozen(fleet), ["b", "a"])
    assert (rebuilt.name, rebuilt.id, rebuilt.host_key_policy) == (fleet.name, fleet.id, fleet.host_key_policy)
    assert [(h.name, h.index, h.route, h.internal_ip) for h in rebuilt.hosts] == [
        (h.name, h.index, h.route, h.internal_ip) for h in fleet.hosts
    ]
    assert [host.index for host in Fleet.from_hostvars(frozen(fleet), ["b"]).hosts] == [1]
    assert (
        Fleet.from_hostvars(frozen(hosts_of("a", "  user: u\n  network: 10.1.2.3/8\n")), ["a"]).network == "10.0.0.0/8"
    )


def test_ansible_variables_win_over_the_route() -> None:
    variables = frozen(hosts_of("a"))
    variables["a"] |= {"ansible_user": "root", "ansible_port": "2022", "ansible_ssh_private_key_file": "/z"}
    assert Fleet.from_hostvars(variables, ["a"]).hosts[0].route.target == Hop("a", 2022, "root", "/z")


def test_from_hostvars_mistakes() -> None:
    variables = (
        frozen(hosts_of("a")) | {"z": {}} | {"b": frozen(fleet_of("  {user: u, hosts: [b]}\n", name="name: dd\n"))["b"]}
    )
    with pytest.raises(SpecError, match="'z' does not come from a fleet file"):
        Fleet.from_hostvars(variables, ["a", "z"])
    with pytest.raises(SpecError, match="'a' and 'b' belong to two fleets"):
        Fleet.from_hostvars(variables, ["a", "b"])
    with pytest.raises(SpecError, match="no hosts"):
        Fleet.from_hostvars(variables, [])
