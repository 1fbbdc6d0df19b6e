"""The files of a report, written atomically."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lambdactl.report import html, junit, markdown, prometheus
from lambdactl.validate.record import Validation

# Format -> (ending of the file's name, what makes its text).
_MAKERS: dict[str, tuple[str, Callable[[Validation], str]]] = {
    "html": ("html", html.page),
    "markdown": ("md", markdown.page),
    "json": ("json", lambda found: json.dumps(found.as_json(), indent=2) + "\n"),
    "junit": ("xml", junit.document),
    "prometheus": ("prom", prometheus.textfile),
}
FORMATS = tuple(_MAKERS)


def write(found: Validation, folder: Path, formats: Sequence[str] = FORMATS) -> dict[str, Path]:
    """Write `FLEET-ID.ENDING` for each format; the paths by format. OSError when the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in formats:
        ending, make = _MAKERS[name]
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '-', found.fleet)}-{found.id}.{ending}"
        write_atomically(path, make(found))
        written[name] = path
    return written


def write_atomically(path: Path, text: str) -> None:
    """The whole file or the one from before: node_exporter and CI may read at any moment."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
