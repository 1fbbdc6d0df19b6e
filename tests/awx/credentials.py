"""Credential types as AWX 24.6.1 checks and injects them (awx/main/fields.py, awx/main/models/credential)."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

# awx/main/constants.py
ENV_BLOCKLIST = {
    "VIRTUAL_ENV", "PATH", "PYTHONPATH", "JOB_ID", "INVENTORY_ID", "INVENTORY_SOURCE_ID", "INVENTORY_UPDATE_ID",
    "AD_HOC_COMMAND_ID", "REST_API_URL", "REST_API_TOKEN", "MAX_EVENT_RES", "CALLBACK_QUEUE", "CALLBACK_CONNECTION",
    "CACHE", "JOB_CALLBACK_DEBUG", "INVENTORY_HOSTVARS", "AWX_HOST", "PROJECT_REVISION", "SUPERVISOR_CONFIG_PATH",
}  # fmt: skip
FIELD_KEYS = {
    "type",
    "format",
    "choices",
    "id",
    "label",
    "help_text",
    "multiline",
    "secret",
    "ask_at_runtime",
    "default",
}
FILE_NAME = re.compile(r"template(\.[a-zA-Z_]+[a-zA-Z0-9_]*)?")


class _Namespace:
    """`tower`, whose `filename` has one attribute for each file, or is the one file's path."""


def faults(kind: dict[str, Any]) -> list[str]:
    """What AWX would refuse about a custom credential type."""
    found = [] if kind["kind"] in ("cloud", "net") else ["kind has to be cloud or net"]
    fields = {field["id"]: field for field in kind["inputs"]["fields"]}
    for name, field in fields.items():
        found += [f"field {name}: unknown key {key}" for key in field.keys() - FIELD_KEYS]
        if field.get("type", "string") not in ("string", "boolean") or "label" not in field:
            found.append(f"field {name}: type or label")
    found += [f"required {name} is no field" for name in kind["inputs"].get("required", []) if name not in fields]
    injectors = kind["injectors"]
    found += [f"unknown injector {name}" for name in injectors.keys() - {"file", "env", "extra_vars"}]
    found += [f"file label {name}" for name in injectors.get("file", {}) if not FILE_NAME.fullmatch(name)]
    found += [f"variable {name}" for name in injectors.get("env", {}) if name.startswith("ANSIBLE_")]
    found += [f"variable {name}" for name in injectors.get("env", {}) if name in ENV_BLOCKLIST]
    _render(injectors, dict.fromkeys(fields, "EXAMPLE"), lambda label, content: f"/example/{label}", strict=True)
    return found


def inject(kind: dict[str, Any], inputs: dict[str, str], private_data_dir: Path) -> dict[str, str]:
    """Write the files of a credential below ``private_data_dir/env`` and give its environment variables."""
    values = {name: value for name, value in inputs.items() if value}
    for field in kind["inputs"]["fields"]:
        if field.get("format") == "ssh_private_key" and field["id"] in values:
            values[field["id"]] = values[field["id"]].rstrip("\n") + "\n"

    def write(label: str, content: str) -> str:
        handle, path = tempfile.mkstemp(dir=private_data_dir / "env")
        with open(handle, "w") as file:
            file.write(content)
        return path

    return _render(kind["injectors"], values, write)


def _render(injectors: dict[str, Any], values: dict[str, str], write: Any, *, strict: bool = False) -> dict[str, str]:
    sandbox = ImmutableSandboxedEnvironment(**({"undefined": StrictUndefined} if strict else {}))
    tower = _Namespace()
    namespace = {"tower": tower, **values}
    for label, template in injectors.get("file", {}).items():
        path = write(label, sandbox.from_string(template).render(**namespace))
        if "." not in label:
            tower.filename = path  # type: ignore[attr-defined]  # an attribute of AWX's own namespace
            continue
        if not hasattr(tower, "filename"):
            tower.filename = _Namespace()  # type: ignore[attr-defined]  # an attribute of AWX's own namespace
        setattr(tower.filename, label.split(".")[1], path)  # type: ignore[attr-defined]  # an attribute of AWX's own namespace
    return {name: sandbox.from_string(text).render(**namespace) for name, text in injectors.get("env", {}).items()}
