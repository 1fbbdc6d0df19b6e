"""A fake of the collection awx.awx: real argument specifications (argspecs.json), and no server.

Each module checks its arguments as AnsibleModule does, and appends them to a file of JSON lines. argspecs.json was
read from the collection's sources (its `source`, `version` and `commit` say which); it holds names, types, choices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ARGSPECS: dict[str, Any] = json.loads((Path(__file__).parent / "argspecs.json").read_text())

_MODULE = """#!/usr/bin/python
import json
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec=json.loads({spec!r}), supports_check_mode=True)
given = {{name: value for name, value in module.params.items() if value is not None}}
with open({record!r}, "a") as file:
    file.write(json.dumps({{"module": {name!r}, "given": given}}) + "\\n")
module.exit_json(changed=False)
"""


def write(folder: Path) -> Path:
    """Make the collection below ``folder``, a path for ANSIBLE_COLLECTIONS_PATH; the file of calls."""
    record = folder / "calls.jsonl"
    modules = folder / "ansible_collections" / "awx" / "awx" / "plugins" / "modules"
    modules.mkdir(parents=True)
    for name, spec in ARGSPECS["modules"].items():
        source = _MODULE.format(spec=json.dumps(spec), record=str(record), name=name)
        (modules / f"{name}.py").write_text(source)
    return record


def calls(record: Path) -> dict[str, list[dict[str, Any]]]:
    """The arguments of each call, by module, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in record.read_text().splitlines():
        call = json.loads(line)
        found.setdefault(call["module"], []).append(call["given"])
    return found
