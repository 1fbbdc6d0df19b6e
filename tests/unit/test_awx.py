"""awx/: what AWX's modules, its import and its API would accept, without an AWX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.awx import credentials, fake_collection

ROOT = Path(__file__).resolve().parents[2]
AWX = ROOT / "awx"
sys.path.insert(0, str(AWX))

import export  # noqa: E402 - a script beside the playbook

DATA = export.load()
PLAYBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "playbooks").glob("*.yml"))
SURVEY_DEFAULTS = {
    "text": str, "textarea": str, "password": str, "multiplechoice": str, "multiselect": str, "integer": int,
    "float": (int, float),
}  # fmt: skip


def configure(collections: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run configure.yml with a fake collection."""
    program = Path(sys.executable).with_name("ansible-playbook")
    return subprocess.run(
        [program, "-i", "localhost,", "awx/configure.yml", "-e", json.dumps(settings)],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_PYTHON_INTERPRETER": sys.executable},
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """configure.yml, run with modules that have the real argument specifications: their calls."""
    folder = tmp_path_factory.mktemp("awx")
    record = fake_collection.write(folder)
    (folder / "key").write_text("CANARY\n")
    settings = {
        "awx_project_url": "https://git.example.org/me/cluster.git",
        "awx_execution_environment_image": "registry.example.org/ee:1",
        "awx_node_key_file": str(folder / "key"),
        "awx_jump_key_file": str(folder / "key"),
    }
    done = configure(folder, settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CANARY" not in done.stdout
    return fake_collection.calls(record)


def test_every_module_takes_its_arguments(applied: dict[str, list[dict[str, Any]]]) -> None:
    assert set(applied) == set(fake_collection.ARGSPECS["modules"])
    names = [call["name"] for call in applied["job_template"]]
    assert names == [entry["name"] for entry in DATA["awx_job_templates"]]
    surveys = {call["name"]: call.get("survey_spec") for call in applied["job_template"]}
    assert surveys == {entry["name"]: export.survey_spec(entry) for entry in DATA["awx_job_templates"]}
    assert [call["injectors"] for call in applied["credential_type"]] == [
        kind["injectors"] for kind in DATA["awx_credential_types"]
    ]
    assert [call["inputs"].get("jump_key", call["inputs"].get("ssh_key_data")) for call in applied["credential"]] == [
        "CANARY", "CANARY",
    ]  # fmt: skip


def test_a_cluster_has_the_templates_that_work_there(tmp_path: Path) -> None:
    """awx_backend=kubernetes, by configure.yml and by the export: the kubeconfig in the place of the two keys."""
    record = fake_collection.write(tmp_path)
    (tmp_path / "kubeconfig").write_text("CANARY\n")
    settings = {
        "awx_project_url": "https://git.example.org/me/cluster.git",
        "awx_backend": "kubernetes",
        "awx_template_suffix": " on mk8s",
    }
    done = configure(tmp_path, {**settings, "awx_kubeconfig_file": str(tmp_path / "kubeconfig")})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CANARY" not in done.stdout
    calls = fake_collection.calls(record)
    (credential,) = calls["credential"]
    assert (credential["credential_type"], credential["inputs"]) == ("lambdactl kubeconfig", {"kubeconfig": "CANARY"})
    assert [call["credential"] for call in calls["inventory_source"]] == ["lambdactl cluster"]
    names = [f"lambdactl {what} on mk8s" for what in ("run task", "run service", "stop run")]
    assert [(call["name"], call["credentials"]) for call in calls["job_template"]] == [
        (name, ["lambdactl cluster"]) for name in names
    ]
    assert "workflow_job_template" not in calls
    assets = export.assets(export.load(settings))
    assert [asset["name"] for asset in assets["job_templates"]] == names
    assert [asset["name"] for asset in assets["credentials"]] == ["lambdactl cluster"]
    held = [asset["natural_key"] for kind in assets.values() for asset in kind]
    assert [key for key in _keys(assets) if key not in held] == [{"name": "Default", "type": "organization"}] * len(
        [key for key in _keys(assets) if key not in held]
    )
    with pytest.raises(SystemExit, match="awx_backend is k8s; it is ssh or kubernetes"):
        export.assets(export.load({"awx_backend": "k8s"}))


def test_the_workflow_goes_through_its_steps(applied: dict[str, list[dict[str, Any]]]) -> None:
    (workflow,) = applied["workflow_job_template"]
    nodes = {node["identifier"]: node for node in workflow["workflow_nodes"]}
    step, walked = nodes[workflow["workflow_nodes"][0]["identifier"]], []
    while step:
        walked.append(step["unified_job_template"]["name"])
        following = step["related"]["success_nodes"]
        step = nodes[following[0]["identifier"]] if following else None
    assert walked == DATA["awx_workflows"][0]["steps"]
    assert set(walked) <= {entry["name"] for entry in DATA["awx_job_templates"]}


def test_configure_refuses_the_example_repository(tmp_path: Path) -> None:
    fake_collection.write(tmp_path)
    done = configure(tmp_path, {})
    assert done.returncode != 0
    assert "awx_project_url is still the example's" in done.stdout + done.stderr


def test_every_playbook_has_a_job_template() -> None:
    assert sorted(entry["playbook"] for entry in DATA["awx_job_templates"]) == PLAYBOOKS


def survey_questions() -> list[Any]:
    entries = [*DATA["awx_job_templates"], *DATA["awx_workflows"]]
    return [
        pytest.param(question, id=f"{entry['name']}-{question['variable']}".replace(" ", "_"))
        for entry in entries
        for question in entry.get("survey", [])
    ]


@pytest.mark.parametrize("question", survey_questions())
def test_surveys_are_what_the_api_takes(question: dict[str, Any]) -> None:
    """The checks of AWX's JobTemplateSurveySpec._validate_spec_data."""
    assert isinstance(question["required"], bool)
    assert all(isinstance(question[key], str) for key in ("type", "question_name", "variable"))
    assert isinstance(question.get("default", ""), SURVEY_DEFAULTS[question["type"]])
    assert all(isinstance(question.get(key, 0), int) for key in ("min", "max"))
    if question["type"] in ("multiplechoice", "multiselect"):
        assert all(isinstance(choice, str) for choice in question["choices"])
        assert set(question.get("default", "").splitlines()) <= set(question["choices"])
    readers = (*(ROOT / "playbooks").glob("*.yml"), *(ROOT / "roles").glob("*/defaults/main.yml"))
    assert any(question["variable"] in path.read_text() for path in readers), "no playbook reads it"


@pytest.mark.parametrize("kind", DATA["awx_credential_types"], ids=lambda kind: kind["name"].replace(" ", "_"))
def test_credential_types_are_what_the_api_takes(kind: dict[str, Any]) -> None:
    assert credentials.faults(kind) == []


def test_keys_are_given_as_files_or_left_to_the_agent(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    kind = DATA["awx_credential_types"][0]
    both = credentials.inject(kind, {"jump_key": "J", "ssh_key": "S\n"}, tmp_path)
    assert [Path(both[name]).read_text() for name in ("LAMBDACTL_JUMP_KEY", "LAMBDACTL_SSH_KEY")] == ["J\n", "S\n"]
    assert credentials.inject(kind, {"jump_key": "J"}, tmp_path)["LAMBDACTL_SSH_KEY"] == "none"


def test_the_export_is_up_to_date() -> None:
    assert (AWX / "export.json").read_text() == export.text(DATA), "run: python awx/export.py --write"


def test_the_export_refers_to_what_it_holds() -> None:
    """`awx import` finds objects by natural key: each one referred to is in the export, or AWX has it."""
    assets = export.assets(export.load({"awx_execution_environment_image": "registry.example.org/ee:1"}))
    held = [asset["natural_key"] for kind in assets.values() for asset in kind]
    held += [
        node["natural_key"] for flow in assets["workflow_job_templates"] for node in flow["related"]["workflow_nodes"]
    ]
    given = [{"name": "Default", "type": "organization"}, {"name": "Machine", "kind": "ssh", "type": "credential_type"}]
    for key in _keys(assets):
        assert key in held + given


def _keys(value: Any) -> list[Any]:
    """All natural keys in a structure: mappings with a `type` of AWX's objects beside a name or an identifier."""
    if isinstance(value, list):
        return [key for item in value for key in _keys(item)]
    if not isinstance(value, dict):
        return []
    inner = [key for item in value.values() for key in _keys(item)]
    named = "name" in value or "identifier" in value
    return [value, *inner] if named and "type" in value and "unified_job_template" not in value else inner


def test_the_export_takes_settings_and_refuses_unknown_ones() -> None:
    assert '"scm_url": "https://git.example.org/x"' in export.text(
        export.load({"awx_project_url": "https://git.example.org/x"})
    )
    with pytest.raises(SystemExit, match="there is no setting awx_projekt"):
        export.load({"awx_projekt": "x"})


def test_the_execution_environment_is_valid() -> None:
    from ansiblelint.schemas import __file__ as schemas

    schema = json.loads(Path(schemas).with_name("execution-environment.json").read_text())
    jsonschema.validate(yaml.safe_load((AWX / "execution-environment.yml").read_text()), schema)
