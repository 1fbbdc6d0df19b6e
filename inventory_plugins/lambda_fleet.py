# Copyright: the lambdactl contributors
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
# ruff: noqa: E402 - Ansible wants the documentation before the imports.
"""The lambda_fleet inventory: a dstack SSH fleet file as an Ansible inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lambda_fleet
short_description: Hosts of a fleet file (dstack's format), with the way through their jump host
author:
  - lambdactl contributors
description:
  - Reads a fleet file, as it is written for dstack, and makes every host under C(ssh_config.hosts) an inventory host,
    in the order of the file, in one group named after the fleet (C(-) becomes C(_)).
  - Each host gets all that Ansible needs to reach it - address, user, port, key, and a ProxyCommand through the jump
    host with the jump host's own user, port, key and host-key policy. These variables name no generated file, so they
    work frozen, in another container, as AWX jobs use them.
  - Every fleet has its own known_hosts file and its own folder of control sockets. Two clusters that use the same
    private addresses never share a connection or a host key.
  - The fleet file of a Kubernetes backend (C(nodes) and C(backends=[kubernetes])) gives the cluster's nodes that the
    fleet means, with their facts in C(lambdactl_facts), and a group C(run_NAME) for each run with its running ranks.
  - Nothing is added to the inventory unless the whole file is valid. A mistake is one error with file and line.
  - There are two forms of inventory source. The fleet file itself needs nothing else. A configuration file, with
    C(plugin) and C(fleet), adds C(compose), C(groups), C(keyed_groups) and other keys; a fleet file may not
    hold them, because dstack refuses keys that it does not know.
extends_documentation_fragment:
  - constructed
  - inventory_cache
notes:
  - A source is accepted when its name ends in C(.dstack.yml), C(.fleet.yml) or C(lambda_fleet.yml) (or C(.yaml)), or
    when it is another YAML file with one of dstack's types at its top level, such as C(type=fleet).
  - Reads the environment variables E(LAMBDACTL_SSH_KEY), E(LAMBDACTL_JUMP_KEY) and E(LAMBDACTL_HOST_KEY_POLICY), also
    for a bare fleet file. A key variable is written into the host's variables by its name and looked up when a
    connection is made, because AWX puts a credential at another path for each job.
  - The cache is of use for very large fleets only. It is never used for a fleet file whose content has changed.
requirements:
  - PyYAML, which ansible-core brings
  - for Kubernetes fleets the Python package kubernetes, version 37 or newer
options:
  plugin:
    description: Marks a configuration file as one for this plugin.
    type: str
    required: true
    choices: [lambda_fleet, lambdactl.lambdactl.lambda_fleet]
  fleet:
    description:
      - Path of the fleet file, relative to the configuration file.
      - Required in a configuration file.
    type: str
  identity_file:
    description:
      - Private key for the nodes, in place of the fleet file's. A path, C($NAME) for an environment variable that holds
        the path when a connection is made, or C(none) for no key file (the agent decides; in AWX this is the machine
        credential).
    type: str
  jump_identity_file:
    description: Private key for the jump hosts, in place of the fleet file's; the same forms as O(identity_file).
    type: str
  host_key_policy:
    description:
      - OpenSSH's C(StrictHostKeyChecking) for the nodes and the jump hosts.
      - V(accept-new) learns the key of a new host and refuses a changed one. V(yes) accepts known hosts only. V(no)
        checks nothing.
    type: str
    choices: [accept-new, 'yes', 'no']
"""

EXAMPLES = r"""
# lambda-fleet.dstack.yml: a fleet file is an inventory source as it is.
# ansible-inventory -i lambda-fleet.dstack.yml --graph
type: fleet
name: lambda-fleet
ssh_config:
  user: ubuntu
  identity_file: ~/.ssh/id_rsa
  hosts:
    - worker-gpu-8x-b200-rplfm-ll9nr
    - worker-gpu-8x-b200-rplfm-qrcs9
  proxy_jump:
    hostname: 192.222.55.54
    user: ubuntu
    identity_file: ~/.ssh/id_rsa
placement: cluster

---
# site.lambda_fleet.yml: the same fleet, through a configuration file beside it.
plugin: lambda_fleet
fleet: lambda-fleet.dstack.yml

---
# Variables and groups made from what is known of each host: the first host as "rank0", one group for each jump host.
plugin: lambda_fleet
fleet: lambda-fleet.dstack.yml
strict: true
compose:
  is_master: lambdactl_rank_order == 0
groups:
  rank0: lambdactl_rank_order == 0
keyed_groups:
  - key: lambdactl_route.hops[0].hostname
    prefix: behind

---
# AWX: the machine credential (an agent) opens the nodes, and a custom credential puts the jump host's key into a file
# whose path is in LAMBDACTL_JUMP_KEY, another one for each job.
plugin: lambda_fleet
fleet: lambda-fleet.dstack.yml
identity_file: none
jump_identity_file: $LAMBDACTL_JUMP_KEY

---
# Host keys are known beforehand (known_hosts was filled from the console), so an unknown host is refused too.
plugin: lambda_fleet
fleet: lambda-fleet.dstack.yml
host_key_policy: "yes"
"""

import difflib
import hashlib
import importlib.util
import os
import sys
import typing as t
from pathlib import Path

import yaml
from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

if importlib.util.find_spec("lambdactl") is None:
    # From a checkout, as AWX has it: the package lies beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lambdactl import spec
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.fleet.model import Fleet, Overrides
from lambdactl.fleet.source import is_config, is_ours
from lambdactl.fleet.ssh import host_vars

_HOME = "{{ lookup('ansible.builtin.env', 'HOME') }}/"


class FleetData(t.TypedDict):
    """A fleet as plain data, ready to be added to an inventory, and to be cached."""

    group: str
    hosts: dict[str, dict[str, t.Any]]
    groups: t.NotRequired[dict[str, dict[str, dict[str, t.Any]]]]


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Adds a fleet's hosts to the inventory, after the whole of it has been read and checked."""

    NAME = "lambda_fleet"

    # The variables come from a local file that the operator owns, and from nothing else. Look-ups in the environment (a
    # key's path, HOME) are the only templates among them: the fleet's own strings cannot hold one (fleet/checks.py).
    trusted_by_default = True

    def verify_file(self, path: str) -> bool:
        """Whether the source is a fleet file or a configuration file of this plugin, by its name or its first lines."""
        return bool(super().verify_file(path)) and is_ours(path)

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Read the source, and add what it describes. Raises AnsibleParserError for every mistake in it."""
        super().parse(inventory, loader, path, cache)
        try:
            data = self._fleet_data(str(path), cache)
        except LambdactlError as error:
            raise AnsibleParserError(str(error)) from error
        self._populate(data)

    def _fleet_data(self, path: str, cache: bool) -> FleetData:
        """The fleet of the source, from the cache when that is wanted and the fleet file has not changed."""
        fleet_path = self._configure(path)
        overrides = self._overrides()
        if not self.get_option("cache"):
            return _read(fleet_path, overrides)
        self.load_cache_plugin()
        key = self.get_cache_key(path)
        digest = _digest(fleet_path, overrides)
        cached = self._cache.get(key) if cache else None
        if cached and cached["digest"] == digest:
            return t.cast(FleetData, cached["data"])
        data = _read(fleet_path, overrides)
        self._cache[key] = {"digest": digest, "data": data}
        return data

    def _configure(self, path: str) -> str:
        """Set the options, from the configuration file or to their defaults; the fleet file's path."""
        if not is_config(path):
            self.set_options(direct={"plugin": self.NAME})
            return path
        self._check_config(path)
        self._read_config_data(path)
        return str(Path(path).parent / Path(self.get_option("fleet")).expanduser())

    def _check_config(self, path: str) -> None:
        """Ansible ignores unknown keys and fails on anything but a mapping; here both are errors with a line."""
        try:
            root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"The file cannot be read ({error}).", filename=path) from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or "it is not valid"
            raise SpecError(f"This is not YAML: {problem}.", filename=path, line=mark and mark.line + 1) from None
        if not isinstance(root, yaml.MappingNode):
            raise SpecError("The configuration must be a mapping of options.", filename=path, line=1)
        known = list(self._options_known())
        for key, _ in root.value:
            if key.value not in known:
                near = difflib.get_close_matches(str(key.value), known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"allowed are {', '.join(sorted(known))}."
                line = key.start_mark.line + 1
                raise SpecError(f"Unknown option '{key.value}'; {hint}", filename=path, line=line)
        missing = {"plugin", "fleet"} - {key.value for key, _ in root.value}
        if missing:
            raise SpecError(f"The option '{max(missing)}' is missing.", filename=path, line=1)

    def _options_known(self) -> t.Iterable[str]:
        self.set_options(direct={"plugin": self.NAME})
        return self._options

    def _overrides(self) -> Overrides:
        """The options, and the environment for what they leave open."""
        environment = Overrides.from_environment()
        return Overrides(
            identity_file=self.get_option("identity_file") or environment.identity_file,
            jump_identity_file=self.get_option("jump_identity_file") or environment.jump_identity_file,
            host_key_policy=self.get_option("host_key_policy") or environment.host_key_policy,
        )

    def _populate(self, data: FleetData) -> None:
        everything: dict[str, dict[str, t.Any]] = {}
        for name, hosts in {data["group"]: data["hosts"], **data.get("groups", {})}.items():
            group = self.inventory.add_group(name)
            everything |= hosts
            for host, variables in hosts.items():
                self.inventory.add_host(host, group=group)
                for variable, value in variables.items():
                    self.inventory.set_variable(host, variable, value)
        compose, groups, keyed_groups = (self.get_option(name) for name in ("compose", "groups", "keyed_groups"))
        if not (compose or groups or keyed_groups):
            return
        strict = self.get_option("strict")
        for host, variables in everything.items():
            # Composed variables come first, so that groups can use them.
            self._set_composite_vars(compose, variables, host, strict=strict)
            self._add_host_to_composed_groups(groups, variables, host, strict=strict)
            self._add_host_to_keyed_groups(keyed_groups, variables, host, strict=strict)


def _read(path: str, overrides: Overrides) -> FleetData:
    if spec.load(path, kind="fleet").ssh_config is None:
        return _read_kubernetes(path)
    fleet = Fleet.load(path, overrides=overrides)
    return {"group": fleet.group, "hosts": {host.name: _portable(host_vars(fleet, host)) for host in fleet.hosts}}


def _read_kubernetes(path: str) -> FleetData:
    """Nodes, and the ranks that run on them, as the cluster has them now."""
    missing = [name for name in ("kubernetes", "aiohttp") if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(
            "This is a Kubernetes fleet, whose nodes are asked of the cluster, and the Python package "
            f"'{missing[0]}' is not installed for Ansible; install 'kubernetes>=37'.",
            filename=path,
        )
    from lambdactl.backends.kubernetes.inventory import inventory

    return t.cast(FleetData, _without_templates(inventory(path)))


def _without_templates(value: t.Any) -> t.Any:
    """What a cluster says must never be a template, because variables of this plugin are trusted."""
    if isinstance(value, dict):
        return {name: _without_templates(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_templates(item) for item in value]
    return "" if isinstance(value, str) and any(mark in value for mark in ("{{", "{%", "{#")) else value


def _portable(variables: dict[str, t.Any]) -> dict[str, t.Any]:
    """Look $HOME up when a connection is made, where it had to be written out: AWX's jobs may have another one."""
    home = str(Path("~").expanduser())
    arguments = str(variables["ansible_ssh_common_args"])
    if f"UserKnownHostsFile={home}/" in arguments:
        variables["ansible_ssh_common_args"] = arguments.replace(f"{home}/", _HOME)
    return variables


def _digest(path: str, overrides: Overrides) -> str:
    """What the cached fleet was made from; a fleet file that cannot be read is reported by reading it."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        content = b""
    return hashlib.sha256(repr((overrides, os.environ.get("HOME"))).encode() + content).hexdigest()
