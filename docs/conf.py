"""Settings of the site: `sphinx-build -W docs site`."""

from __future__ import annotations

from importlib import metadata
from typing import Any

project = "ptycho-tasks"
copyright = "The ptycho-tasks developers"
release = metadata.version("ptycho-tasks")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["site"]
html_theme = "furo"
html_static_path = ["_static"]
html_title = f"ptycho-tasks {release}"

# Headings can be linked to, as on GitHub.
myst_heading_anchors = 3
# Docstrings write code between single backticks, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
add_module_names = False


def skip_plumbing(
    app: Any, what: str, name: str, member: object, skip: bool, options: Any
) -> bool | None:
    """Leave out what msgspec and `Protocol` add to a class: no part of what is promised."""
    return True if name in {"__post_init__", "affects", "exit_code"} else None


def escape_bars(app: Any, what: str, name: str, thing: object, options: Any, lines: Any) -> None:
    """Keep `|probe|^2` as it is: reStructuredText would take the name for a substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-skip-member", skip_plumbing)
