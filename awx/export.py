# Copyright: lambdactl contributors. Apache-2.0.
"""The objects of awx/data in the form that `awx import` reads, for those who do not use awx/configure.yml.

    python awx/export.py -e awx_project_url=https://git.example.org/me/cluster.git | awx import
    python awx/export.py --write        makes awx/export.json again, after a change of awx/data

Secrets are in none of it: fill in the credentials' keys (or the kubeconfig) in AWX after the import. Needs PyYAML.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "filter_plugins"))

from awx_objects import Entry, identifiers, survey_spec  # noqa: E402 - the folder is Ansible's, not a package

ASKS = ("job_type", "diff_mode", "variables")


class _Loader(yaml.SafeLoader):
    """YAML with Ansible's `!unsafe`, which marks the templates of AWX's own."""


_Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


def load(overrides: dict[str, str] | None = None) -> Entry:
    """All variables of awx/data; ``overrides`` replace those of settings.yml."""
    found: Entry = {}
    for path in sorted((HERE / "data").glob("*.yml")):
        found.update(yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader))  # noqa: S506 - it is a SafeLoader
    unknown = set(overrides or ()) - set(found)
    if unknown:
        raise SystemExit(f"-e: there is no setting {', '.join(sorted(unknown))}; see awx/data/settings.yml.")
    return {**found, **(overrides or {})}


def assets(data: Entry) -> dict[str, list[Entry]]:
    """What `awx import` reads: objects by kind, which refer to each other by natural keys."""
    keys = Keys(data)
    return {
        "execution_environments": _execution_environment(data, keys),
        "credential_types": [_credential_type(entry, keys) for entry in data["awx_credential_types"]],
        "credentials": _credentials(data, keys),
        "projects": [_project(data, keys)],
        "inventory": [_inventory(data, keys)],
        "inventory_sources": [_inventory_source(data, keys)],
        "job_templates": [_job_template(entry, data, keys) for entry in templates(data)],
        "workflow_job_templates": []
        if keys.kubernetes
        else [_workflow(entry, keys) for entry in data["awx_workflows"]],
    }


def templates(data: Entry) -> list[Entry]:
    """The job templates for the kind of fleet that the settings name."""
    if data["awx_backend"] not in ("ssh", "kubernetes"):
        raise SystemExit(f"-e: awx_backend is {data['awx_backend']}; it is ssh or kubernetes.")
    on_kubernetes = data["awx_backend"] == "kubernetes"
    return [entry for entry in data["awx_job_templates"] if not on_kubernetes or entry.get("kubernetes")]


class Keys:
    """The natural keys of the objects, as awxkit forms them."""

    def __init__(self, data: Entry) -> None:
        self.organization: Entry = {"name": data["awx_organization"], "type": "organization"}
        self.environment = {"name": data["awx_execution_environment"], "type": "execution_environment"}
        self.project = self.owned("project", data["awx_project"])
        self.inventory = self.owned("inventory", data["awx_inventory"])
        self.source = {**self.owned("inventory_source", data["awx_inventory_source"]), "inventory": self.inventory}
        self.machine = self.credential(data["awx_machine_credential"], "Machine", "ssh")
        self.kubernetes = data["awx_backend"] == "kubernetes"
        self.suffix = data["awx_template_suffix"]
        kind = data["awx_credential_types"][1 if self.kubernetes else 0]
        name = data["awx_kubeconfig_credential" if self.kubernetes else "awx_keys_credential"]
        self.cluster = self.credential(name, kind["name"], kind["kind"])
        self.of_jobs = [self.cluster] if self.kubernetes else [self.machine, self.cluster]

    def owned(self, kind: str, name: str) -> Entry:
        """The key of an object that belongs to the organization."""
        return {"organization": self.organization, "name": name, "type": kind}

    def credential_type(self, name: str, kind: str) -> Entry:
        """The key of a credential type."""
        return {"name": name, "kind": kind, "type": "credential_type"}

    def credential(self, name: str, type_name: str, kind: str) -> Entry:
        """The key of a credential."""
        return {**self.owned("credential", name), "credential_type": self.credential_type(type_name, kind)}


def _execution_environment(data: Entry, keys: Keys) -> list[Entry]:
    if not data["awx_execution_environment_image"]:
        return []
    image = data["awx_execution_environment_image"]
    name = data["awx_execution_environment"]
    fields = {"name": name, "image": image, "pull": "missing", "organization": keys.organization}
    return [{**fields, "natural_key": keys.environment}]


def _credential_type(entry: Entry, keys: Keys) -> Entry:
    return {**entry, "natural_key": keys.credential_type(entry["name"], entry["kind"])}


def _credentials(data: Entry, keys: Keys) -> list[Entry]:
    inputs = {"username": data["awx_machine_username"]}
    machine = [] if keys.kubernetes else [_credential(keys.machine, inputs)]
    return [*machine, _credential(keys.cluster, {})]


def _credential(key: Entry, inputs: Entry) -> Entry:
    fields = {name: key[name] for name in ("name", "organization", "credential_type")}
    return {**fields, "inputs": inputs, "natural_key": key}


def _project(data: Entry, keys: Keys) -> Entry:
    project: Entry = {
        "name": data["awx_project"],
        "organization": keys.organization,
        "scm_type": "git",
        "scm_url": data["awx_project_url"],
        "scm_branch": data["awx_project_branch"],
        "scm_clean": True,
        "scm_update_on_launch": True,
        "natural_key": keys.project,
    }
    if data["awx_project_credential"]:
        project["credential"] = keys.credential(data["awx_project_credential"], "Source Control", "scm")
    if data["awx_execution_environment_image"]:
        project["default_environment"] = keys.environment
    return project


def _inventory(data: Entry, keys: Keys) -> Entry:
    description = "The hosts of a fleet file"
    fields = {"name": data["awx_inventory"], "description": description, "organization": keys.organization, "kind": ""}
    return {**fields, "natural_key": keys.inventory}


def _inventory_source(data: Entry, keys: Keys) -> Entry:
    return {
        "name": data["awx_inventory_source"],
        "inventory": keys.inventory,
        "source": "scm",
        "source_project": keys.project,
        "source_path": data["awx_fleet_file"],
        "credential": keys.cluster,
        "overwrite": True,
        "overwrite_vars": True,
        "update_on_launch": True,
        "natural_key": keys.source,
    }


def _job_template(entry: Entry, data: Entry, keys: Keys) -> Entry:
    survey = survey_spec(entry)
    related: Entry = {"credentials": keys.of_jobs}
    name = entry["name"] + keys.suffix
    return {
        "name": name,
        "description": entry["description"],
        "job_type": "run",
        "project": keys.project,
        "playbook": entry["playbook"],
        "inventory": keys.inventory,
        "ask_limit_on_launch": True,
        "ask_verbosity_on_launch": True,
        **{f"ask_{name}_on_launch": name in entry.get("ask", ()) for name in ASKS},
        "allow_simultaneous": entry.get("simultaneous", False),
        "survey_enabled": bool(survey),
        "related": {**related, "survey_spec": survey} if survey else related,
        "natural_key": keys.owned("job_template", name),
    }


def _workflow(entry: Entry, keys: Keys) -> Entry:
    key = keys.owned("workflow_job_template", entry["name"] + keys.suffix)
    names = identifiers(entry["steps"])
    nodes = [{"workflow_job_template": key, "identifier": name, "type": "workflow_job_template_node"} for name in names]
    survey = survey_spec(entry)
    related: Entry = {
        "workflow_nodes": [
            {
                "identifier": node["identifier"],
                "workflow_job_template": key,
                "unified_job_template": keys.owned("job_template", step + keys.suffix),
                "related": {"success_nodes": nodes[index + 1 : index + 2]},
                "natural_key": node,
            }
            for index, (node, step) in enumerate(zip(nodes, entry["steps"], strict=True))
        ]
    }
    return {
        "name": entry["name"] + keys.suffix,
        "description": entry["description"],
        "organization": keys.organization,
        "inventory": keys.inventory,
        "survey_enabled": bool(survey),
        "related": {**related, "survey_spec": survey} if survey else related,
        "natural_key": key,
    }


def text(data: Entry) -> str:
    """The export file's content."""
    return json.dumps(assets(data), indent=2) + "\n"


def _setting(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{item}' is not NAME=VALUE")
    return name, value


def main() -> None:
    """Print the export, or write awx/export.json."""
    parser = argparse.ArgumentParser(description="The objects of awx/data, for `awx import`.")
    parser.add_argument("-e", "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--write", action="store_true", help="write awx/export.json, with the settings of the file")
    options = parser.parse_args()
    content = text(load(dict(options.set)))
    if options.write:
        (HERE / "export.json").write_text(content, encoding="utf-8")
    else:
        sys.stdout.write(content)


if __name__ == "__main__":
    main()
