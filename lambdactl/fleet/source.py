"""Which inventory sources are the lambda_fleet plugin's: told by name, else by the first lines, without parsing."""

from __future__ import annotations

import re
from pathlib import Path

FLEET_SUFFIXES = (".dstack.yml", ".dstack.yaml", ".fleet.yml", ".fleet.yaml")
CONFIG_SUFFIXES = ("lambda_fleet.yml", "lambda_fleet.yaml")

_DSTACK_TYPE = re.compile(rb"^type\s*:\s*['\"]?(fleet|task|service|dev-environment|gateway|volume)\b", re.MULTILINE)
_PLUGIN = re.compile(rb"^plugin\s*:\s*['\"]?(lambdactl\.lambdactl\.)?lambda_fleet\b", re.MULTILINE)
_HEAD = 65536


def is_ours(path: str) -> bool:
    """Whether the file is a fleet file, another of dstack's files given by mistake, or the plugin's configuration."""
    if not path.endswith((".yml", ".yaml")):
        return False
    if path.endswith(FLEET_SUFFIXES + CONFIG_SUFFIXES):
        return True
    head = _head(path)
    return bool(_DSTACK_TYPE.search(head) or _PLUGIN.search(head))


def is_config(path: str) -> bool:
    """Whether the file is a configuration of the plugin, which names the fleet file."""
    return path.endswith(CONFIG_SUFFIXES) or bool(_PLUGIN.search(_head(path)))


def _head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""
