"""Every file of tests/data/spec: invalid ones with their whole message, valid ones against the JSON Schema too."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from lambdactl import spec
from lambdactl.errors import EXIT_USAGE, SpecError

DATA = Path(__file__).parents[1] / "data" / "spec"
EXAMPLES = Path(__file__).parents[2] / "examples"
INVALID = sorted((DATA / "invalid").glob("*.yml"))
VALID = [*sorted((DATA / "valid").glob("*.yml")), *sorted(EXAMPLES.glob("*.dstack.yml"))]


def test_the_corpus_is_there() -> None:
    assert len(INVALID) >= 60
    assert len(VALID) >= 40


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line of the file, a comment, is the message."""
    expected = path.read_text().partition("\n")[0].removeprefix("# ")
    monkeypatch.chdir(path.parent)
    with pytest.raises(SpecError) as caught:
        spec.load(path.name)
    assert str(caught.value) == expected
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in expected


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid(path: Path) -> None:
    loaded = spec.load(path)
    data = yaml.safe_load(path.read_text())
    assert loaded.type == data["type"]
    assert loaded.source.text == path.read_text()
    jsonschema.validate(data, spec.json_schema(data["type"]), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid_without_libyaml(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lambdactl.spec import nodes

    class Slow(yaml.SafeLoader):
        depth = 0
        descend_resolver = nodes._Loader.descend_resolver
        ascend_resolver = nodes._Loader.ascend_resolver

    expected = spec.load(path)
    monkeypatch.setattr(nodes, "_Loader", Slow)
    assert spec.load(path) == expected


@pytest.mark.parametrize("kind", spec.KINDS)
def test_schema_is_a_schema(kind: str) -> None:
    schema = spec.json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert all("description" in field for field in schema["properties"].values())


@pytest.mark.parametrize("data", [{"type": "fleet", "nmae": 1}, {"type": "fleet", "placement": "x"}, {"nodes": 1}])
def test_schema_rejects(data: dict[str, object]) -> None:
    assert not jsonschema.Draft202012Validator(spec.json_schema("fleet")).is_valid(data)


def test_reference_page_is_up_to_date() -> None:
    """When it fails: python -c 'from lambdactl import spec; print(spec.reference_markdown(), end="")' > docs/yaml.md"""
    page = Path(__file__).parents[2] / "docs" / "yaml.md"
    assert page.read_text() == spec.reference_markdown()


def test_every_dataclass_field_is_a_key_or_filled_in() -> None:
    """A field that no key fills would silently keep its default."""
    import dataclasses

    from lambdactl.spec.load import FILES
    from lambdactl.spec.schema import _nested

    for root in FILES.values():
        for struct in (root, *_nested(root)):
            rest = {field.name for field in dataclasses.fields(struct.cls)} - set(struct.keys)
            assert rest <= {"line", "explicit", "source"}, struct.title
