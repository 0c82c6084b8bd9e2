"""Templates of pages, with all that they need inside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "assets"


def fill_template(
    name: str, data: Mapping[str, Any], *, scripts: Sequence[str] = (), **values: Any
) -> str:
    """A page's HTML, in which every text is escaped.

    Args:
        name: of the template.
        data: what the page holds as JSON.
        scripts: names of those that it runs.
        values: what the template names.
    """
    script = "\n".join(map(_read, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = _environment().get_template(name)
    page: str = template.render(
        style=_read("page.css"),
        script=script,
        script_source=f"'sha256-{digest}'" if script else "'none'",
        data=_dump(data),
        **values,
    )
    return page


@cache
def _environment() -> Any:
    """What keeps compiled templates, for a process that writes its page again and again."""
    import jinja2

    loader = jinja2.FileSystemLoader(_FOLDER)
    # Undefined names are mistakes of ours, and must not become empty cells.
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


@cache
def _read(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")


def _dump(value: Mapping[str, Any]) -> str:
    """JSON that no text in it can end: it stands in a script element."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
