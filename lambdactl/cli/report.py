"""`lambdactl report [VALIDATION]`: a validation as HTML, Markdown, JSON, JUnit and a Prometheus textfile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lambdactl.errors import EXIT_OK, SpecError
from lambdactl.report import FORMATS, write
from lambdactl.state import State
from lambdactl.validate.record import Validation


def run(key: str | None, fleet: str | None, folder: Path, formats: Sequence[str]) -> int:
    """Write the files and print their paths."""
    for name in formats:
        if name not in FORMATS:
            raise SpecError(f"--format {name} is not known; choose from {', '.join(FORMATS)}.")
    found = _find(key, fleet)
    for path in write(found, folder, formats or FORMATS).values():
        print(path)
    return EXIT_OK


def _find(key: str | None, fleet: str | None) -> Validation:
    """The validation of this id, or the last one (of a fleet)."""
    from lambdactl.cli.validate import named_fleet

    fleet_id = named_fleet(fleet).id if fleet is not None else None
    with State() as state:
        if key is not None:
            document = state.validation(key)
            if document is None:
                raise SpecError(f"no validation {key} was made from here; `lambdactl history` lists a fleet's.")
            return Validation.from_json(document)
        documents = state.validations(fleet_id, limit=1)
    if not documents:
        raise SpecError("no validation was made from here; `lambdactl validate -f FILE` makes one.")
    return Validation.from_json(documents[0])
