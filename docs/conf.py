"""Sphinx's configuration: the pages as they are (Markdown), read strictly by scripts/docs."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lambdactl

project = "lambdactl"
author = "lambdactl contributors"
version = release = lambdactl.__version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"lambdactl {release}"
exclude_patterns = ["_build"]


def _link_roles(_app, _page, text):
    """The roles' own READMEs lie outside of these pages, which have the same in the role reference."""
    text[0] = re.sub(r"\]\(\.\./roles/(\w+)/README\.md\)", r"](reference-roles.md#\1)", text[0])


def setup(app):
    """Sphinx's hook for configuration in code."""
    app.connect("source-read", _link_roles)
