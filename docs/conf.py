"""Settings of the site: `sphinx-build -W docs site`."""

from __future__ import annotations

from dataclasses import fields
from importlib import metadata
from typing import Any

import msgspec

from ptycho_tasks import backend
from ptycho_tasks.options import Section, description_of

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


COLON = "\ue000"
"""Stands for a colon while napoleon, which would take what is before it for a type, is at work."""


def adapt_docstring(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Read the docstrings of this house, which are nearly Markdown, as reStructuredText."""
    # Else the name in `|probe|^2` is a substitution.
    lines[:] = [line.replace("|", r"\|") for line in lines]
    for index, line in enumerate(lines):
        before = lines[index - 1].strip() if index else ""
        if before == "Returns:" or (index == 0 and what in ("attribute", "property")):
            lines[index] = line.replace(":", COLON)
        after = lines[index + 1 : index + 3]
        is_code = len(after) == 2 and not after[0] and after[1].startswith("    ")
        if what == "module" and line.endswith(":") and is_code:
            lines[index] += ":"
    if what == "class" and issubclass(thing, Section):
        lines += [f"- `{f.name}`: {description_of(f.type)}" for f in msgspec.structs.fields(thing)]


def restore_colons(app: Any, what: str, name: str, thing: Any, options: Any, lines: Any) -> None:
    """Put back what `adapt_docstring` hid."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def show_functions_as_values(app: Any) -> None:
    """Show a field whose default is a function as a value, not as a method of the class."""
    for kind in (backend.TrainRequest, backend.InferRequest, backend.RefineRequest):
        for field in fields(kind):
            if callable(field.default):
                delattr(kind, field.name)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", show_functions_as_values)
    # Before and after napoleon.
    app.connect("autodoc-process-docstring", adapt_docstring, priority=400)
    app.connect("autodoc-process-docstring", restore_colons, priority=600)
    app.connect("autodoc-skip-member", skip_plumbing)
