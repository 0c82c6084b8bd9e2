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
        place = _place(row, partial(_mark_names, variant=row.variant, scan=row.scan))
        kind = {name: getattr(row, name) for name in _KIND}
        k, common = kinds.setdefault(json.dumps([kind, len(parts)]), (len(kinds), parts))
        p = places.setdefault(json.dumps(place), len(places))
        own = [(n, part) for n, part in enumerate(parts) if part != common[n]]
        packed.append([k, p, row.variant, row.scan, *itertools.chain(*own)])
    return {
        "kinds": [[json.loads(kind)[0], common] for kind, (_, common) in kinds.items()],
        "places": [json.loads(place) for place in places],
        "rows": packed,
    }


def unpack_rows(packed: Mapping[str, Any]) -> list[Row]:
    """The rows that `pack_rows` was given."""
    kinds = [(kind, common, _COMMA.join(common)) for kind, common in packed["kinds"]]
    places, rows = packed["places"], []
    for k, p, variant, scan, *own in packed["rows"]:
        kind, common, settings = kinds[k]
        name, doc, inputs, outputs, after, aliases = places[p]
        fill = partial(_fill_names, variant=variant, scan=scan)
        if own:
            parts = common.copy()
            for n, part in zip(own[::2], own[1::2], strict=True):
                parts[n] = part
            settings = _COMMA.join(parts)
        rows.append(
            Row(
                fill(name),
                kind["stage"],
                variant,
                scan,
                fill(doc),
                {role: fill(path) for role, path in inputs.items()},
                [*map(fill, outputs)],
                fill(after),
                settings,
                kind["at_default"],
                kind["versions"],
                kind["sources"],
                aliases,
            )
        )
    return rows


_VARIANT, _SCAN = "\0", "\1"
"""Stand for the names of variant and scan, in texts that cannot hold them themselves."""


def _mark_names(text: str, variant: str, scan: str) -> str:
    """A text with marks for the names of variant and scan."""
    if text.endswith(f":{variant}"):
        text = f"{text.removesuffix(variant)}{_VARIANT}"
    else:
        for before, after in (("/", "/"), (":", "/")):
            text = text.replace(f"{before}{variant}{after}", f"{before}{_VARIANT}{after}")
    return text.replace(scan, _SCAN) if scan else text


def _fill_names(text: str, variant: str, scan: str) -> str:
    """The text of which `_mark_names` made another."""
    return text.replace(_SCAN, scan).replace(_VARIANT, variant)


def _place(row: Row, change: Callable[[str], str]) -> tuple[Any, ...]:
    """What of a row says where in the graph it is."""
    inputs = {role: change(path) for role, path in row.inputs.items()}
    outputs = [*map(change, row.outputs)]
    return change(row.name), change(row.doc), inputs, outputs, change(row.after), [*row.aliases]
