"""Rows as data for the database, in which what many of them have in common stands once.

A project may have ten thousand variants that differ in their name and in one or two settings.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ptycho_tasks.builds.rows import Row

_KIND = ("stage", "at_default", "versions", "sources")
"""The fields of a row that the rows of a stage have in common."""
_COMMA = ',"'
"""Where the settings of a row are parted, whatever stands there: they are joined at it again."""


def pack_rows(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows as values that JSON can hold."""
    kinds: dict[str, tuple[int, list[str]]] = {}
    places: dict[str, int] = {}
    packed = []
    for row in rows:
        parts = row.settings.split(_COMMA)
        place = _place(row, partial(_mark_variant, variant=row.variant))
        kind = {name: getattr(row, name) for name in _KIND}
        k, common = kinds.setdefault(json.dumps([kind, len(parts)]), (len(kinds), parts))
        p = places.setdefault(json.dumps(place), len(places))
        own = [(n, part) for n, part in enumerate(parts) if part != common[n]]
        packed.append([k, p, row.variant, *itertools.chain(*own)])
    return {
        "kinds": [[json.loads(kind)[0], common] for kind, (_, common) in kinds.items()],
        "places": [json.loads(place) for place in places],
        "rows": packed,
    }


def unpack_rows(packed: Mapping[str, Any]) -> list[Row]:
    """The rows that `pack_rows` was given."""
    kinds = [(kind, common, _COMMA.join(common)) for kind, common in packed["kinds"]]
    places, rows = packed["places"], []
    for k, p, variant, *own in packed["rows"]:
        kind, common, settings = kinds[k]
        name, doc, inputs, outputs, after, aliases = places[p]
        if own:
            parts = common.copy()
            for n, part in zip(own[::2], own[1::2], strict=True):
                parts[n] = part
            settings = _COMMA.join(parts)
        rows.append(
            Row(
                name.replace(_MARK, variant),
                kind["stage"],
                variant,
                doc,
                {role: path.replace(_MARK, variant) for role, path in inputs.items()},
                [path.replace(_MARK, variant) for path in outputs],
                after,
                settings,
                kind["at_default"],
                kind["versions"],
                kind["sources"],
                aliases,
            )
        )
    return rows


_MARK = "\0"
"""Stands for the variant's name, in texts that cannot hold it themselves."""


def _mark_variant(text: str, variant: str) -> str:
    """A path or a task's name with a mark for the variant's name."""
    if text.endswith(f":{variant}"):
        return f"{text.removesuffix(variant)}{_MARK}"
    return text.replace(f"/{variant}/", f"/{_MARK}/")


def _place(row: Row, change: Callable[[str], str]) -> tuple[Any, ...]:
    """What of a row says where in the graph it is."""
    inputs = {role: change(path) for role, path in row.inputs.items()}
    return change(row.name), row.doc, inputs, [*map(change, row.outputs)], row.after, [*row.aliases]
