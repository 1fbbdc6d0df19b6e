"""`lambdactl schema KIND`."""

from __future__ import annotations

from lambdactl import spec
from lambdactl.cli.console import print_json
from lambdactl.errors import SpecError


def run(kind: str) -> int:
    """Print the JSON Schema of one kind of file."""
    if kind not in spec.KINDS:
        raise SpecError(f"there is no schema for {kind!r}; the kinds are {', '.join(spec.KINDS)}.")
    print_json(spec.json_schema(kind))
    return 0
