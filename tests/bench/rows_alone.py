"""A large inventory, the command line's start, and how many nodes a stock jump host lets through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from tests.bench import baselines
from tests.bench.meter import Meter, Plan, Sample, tool
from tests.bench.place import BedPlace, environment
from tests.bench.results import Group

OURS = "lambdactl"
YAML = "ansible's YAML plugin, same hosts and variables"
YAML_GROUP = "ansible's YAML plugin, variables on the group only"
YAML_BARE = "ansible's YAML plugin, names without variables"
PYTHON = "bare python3"
ASYNCSSH, OPENSSH, PLAIN = "lambdactl, asyncssh", "lambdactl, OpenSSH", "plain `ssh -J` in parallel"
HOSTS = 5000


def inventory(meter: Meter, plan: Plan, folder: Path) -> Group:
    """`ansible-inventory --list` of one fleet file, and of the same hosts as Ansible writes them itself."""
    fleet = folder / "wide.dstack.yml"
    hosts = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(256, 256 + HOSTS)]
    jump = {"hostname": "jump.example.com", "user": "ubuntu", "identity_file": "~/.ssh/key"}
    config = {"user": "ubuntu", "identity_file": "~/.ssh/key", "proxy_jump": jump, "hosts": hosts}
    fleet.write_text(yaml.safe_dump({"type": "fleet", "name": "wide", "ssh_config": config}))
    env = environment({"HOME": str(folder)})
    program = tool("ansible-inventory")
    same, group, bare = folder / "same.yml", folder / "group.yml", folder / "bare.yml"
    meter.run([program, "-i", str(fleet), "--list", "--yaml", "--output", str(same)], env=env)
    names = dict.fromkeys(hosts)
    # By hand, what is the same for all hosts would be written once; but it is not all that our plugin says of a host.
    common = {"ansible_user": "ubuntu", "ansible_port": 22, "ansible_ssh_common_args": "-J ubuntu@jump.example.com"}
    group.write_text(yaml.safe_dump({"wide": {"hosts": names, "vars": common}}))
    bare.write_text(yaml.safe_dump({"wide": {"hosts": names}}))
    plain = {**env, "ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.yaml"}

    def listed(path: Path, used: dict[str, str]) -> Sample:
        sample = meter.run([program, "-i", str(path), "--list"], env=used)
        if sample.out.count('"10.') < HOSTS:
            raise RuntimeError(f"{path.name} has not {HOSTS} hosts")
        return replace(sample, out="")

    series = [
        plan.series(OURS, lambda: listed(fleet, env)),
        plan.series(YAML, lambda: listed(same, plain)),
        plan.series(YAML_GROUP, lambda: listed(group, plain)),
        plan.series(YAML_BARE, lambda: listed(bare, plain)),
    ]
    return Group("inventory", f"{HOSTS} hosts", HOSTS, series)


def start(meter: Meter, plan: Plan, folder: Path) -> Group:
    """`lambdactl --help` and an interpreter that does nothing."""
    env = environment({"HOME": str(folder)})
    once = [tool("lambdactl"), "--help"]
    series = [
        plan.series(OURS, lambda: meter.run(once, env=env), warm_up=True),
        plan.series(PYTHON, lambda: meter.run([tool("python"), "-c", "pass"], env=env), warm_up=True),
    ]
    return Group("help", "this machine", 0, series)


def reach(meter: Meter, place: BedPlace, plan: Plan, folder: Path) -> Group:
    """One command on each node through a jump host with sshd's stock limits; `answered` counts the nodes."""

    def ours(kind: str) -> Sample:
        sample = meter.run(baselines.module("reach", [str(place.fleet_file), kind]), env=place.env)
        return replace(sample, values={**sample.values, "answered": float(sample.out)})

    series = [
        plan.series(ASYNCSSH, lambda: ours("asyncssh")),
        plan.series(OPENSSH, lambda: ours("openssh")),
        plan.series(PLAIN, lambda: baselines.plain_jump(meter, place, folder)),
    ]
    return Group("reach", place.label, len(place.bed.addresses), series, delayed=place.round_trip > 0)
