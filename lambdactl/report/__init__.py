"""A validation as files: one self-contained HTML page, Markdown, JSON, JUnit and a Prometheus textfile.

    write(validation, folder, formats=FORMATS) -> {format: path}

Each file is written beside its place and moved there, so that a reader never sees half of one.
"""

from __future__ import annotations

from lambdactl.report.write import FORMATS, write

__all__ = ["FORMATS", "write"]
