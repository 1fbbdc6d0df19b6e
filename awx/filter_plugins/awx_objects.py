# Copyright: lambdactl contributors. Apache-2.0.
"""AWX's nested structures, made from the short form of awx/data; for configure.yml and for export.py."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]


def survey_spec(entry: Entry) -> Entry:
    """The survey of a job template or workflow as AWX's `survey_spec`; empty where it asks nothing."""
    if not entry.get("survey"):
        return {}
    return {"name": entry["name"], "description": entry["description"], "spec": entry["survey"]}


def identifiers(steps: list[str]) -> list[str]:
    """A name for each step of a workflow that stays the same from one import to the next."""
    return [step.replace(" ", "-") for step in steps]


def workflow_nodes(steps: list[str], organization: str, suffix: str = "") -> list[Entry]:
    """Job templates one after another, as `workflow_nodes` of the module workflow_job_template."""
    names = identifiers(steps)
    return [
        {
            "identifier": name,
            "unified_job_template": {
                "name": step + suffix,
                "type": "job_template",
                "organization": {"name": organization},
            },
            "related": {"success_nodes": [{"identifier": following} for following in names[index + 1 : index + 2]]},
        }
        for index, (name, step) in enumerate(zip(names, steps, strict=True))
    ]


class FilterModule:
    """Ansible's entry to the functions above."""

    def filters(self) -> dict[str, Any]:
        """Names of the filters."""
        return {"awx_survey_spec": survey_spec, "awx_workflow_nodes": workflow_nodes}
