# Copyright: the lambdactl contributors
# Apache License 2.0 (see https://www.apache.org/licenses/LICENSE-2.0)
# ruff: noqa: E402 - Ansible wants the documentation before the imports.
"""The plain_yaml inventory: Ansible's own YAML sources, without a second opinion on fleet files."""

from __future__ import annotations

DOCUMENTATION = r"""
name: plain_yaml
short_description: Ansible's own YAML inventories, for every YAML file that is not a fleet file
author:
  - lambdactl contributors
description:
  - Hands a YAML file to P(ansible.builtin.auto#inventory) when it has a C(plugin) key, and to
    P(ansible.builtin.yaml#inventory) otherwise. It stands for the two in C(enable_plugins).
  - Files of P(lambda_fleet#inventory) are left alone. Ansible asks every enabled plugin in turn - a mistake in a fleet
    file would be followed by the complaints of the two, and a task file would pass as an inventory without hosts.
options: {}
"""

EXAMPLES = r"""
# hosts.yml: an ordinary YAML inventory, beside the fleets.
all:
  hosts:
    build.example.com:
"""

import importlib.util
import sys
import typing as t
from pathlib import Path

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.plugins.loader import inventory_loader

if importlib.util.find_spec("lambdactl") is None:
    # From a checkout, as AWX has it: the package lies beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lambdactl.fleet.source import is_ours


class InventoryModule(BaseInventoryPlugin):
    """Delegates to Ansible's `auto` or `yaml`."""

    NAME = "plain_yaml"

    def verify_file(self, path: str) -> bool:
        """Whether the source is a YAML (or JSON) file, and not one of lambda_fleet's."""
        return super().verify_file(path) and not is_ours(path) and inventory_loader.get("yaml").verify_file(path)

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Let the plugin whose file this is read it."""
        super().parse(inventory, loader, path, cache)
        data = loader.load_from_file(path, cache="none")
        if not isinstance(data, dict):
            raise AnsibleParserError(f"{path} is not a YAML inventory; it should be a mapping of groups.")
        delegate = inventory_loader.get("auto" if data.get("plugin") else "yaml")
        delegate.parse(inventory, loader, path, cache=cache)
