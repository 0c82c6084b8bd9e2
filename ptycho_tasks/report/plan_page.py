"""A plan's rows as a page: states, logs, counts, attempts, and pictures of what they rest on."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ptycho_tasks.report.filling import fill_template
from ptycho_tasks.report.ownership import PLAN_GENERATOR, refuse_other_file
from ptycho_tasks.system.files import find_file_problem, real_path, write_atomic

_ROOM = 6_000_000
"""Bytes of all pictures together, which take a third more as text."""
Json = dict[str, Any]


def write_plan_page(path: Path, root: Path, plan: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of a plan; equal evidence gives equal bytes.

    Args:
        path: the HTML file.
        root: the project's folder.
        plan: what the plan is called.
        rows: of the plan, as `evidence.row_records` gives them.

    Raises:
        ConfigError: another file is at the path.
        FileWriteError: the file cannot be written; an earlier one is unchanged.
    """
    refuse_other_file(path, PLAN_GENERATOR)
    album = _Album(root)
    shown = [{**row, "pictures": album.list_pictures(row)} for row in rows]
    text = fill_template(
        "plan.html.j2",
        {"evidence": shown},
        generator=PLAN_GENERATOR,
        title=plan,
        version=version("ptycho-tasks"),
        summary=_sum_up(rows),
        evidence=shown,
        opens=len(rows) <= 30,
        pictures=album.styles,
    )
    write_atomic(real_path(path), text.encode("utf-8", "replace"))


def _sum_up(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many rows are in which state, and what their evidence is."""
    states = Counter(row["state"] for row in rows if not row["problem"])
    evidence = Counter(row["evidence"] for row in rows if not row["problem"])
    texts = [
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        for counts in (states, evidence)
    ]
    return [text for text in (texts[0], texts[1] and f"evidence: {texts[1]}") if text]


class _Album:
    """Pictures, each of which stands once in a page, as long as there is room."""

    def __init__(self, root: Path) -> None:
        self.root, self.room = root, _ROOM
        self.styles: list[str] = []
        """CSS, that of the picture with number N for the class `picture-N`."""
        self._numbers: dict[str, int] = {}

    def list_pictures(self, row: Mapping[str, Any]) -> list[Json]:
        """The pictures that the items of a row were about, as they are now."""
        inputs = {
            path: sha256 for run in row.get("runs", ()) for path, sha256 in run["inputs"].items()
        }
        return [
            self._add(path, sha256)
            for path, sha256 in sorted(inputs.items())
            if path.endswith(".png")
        ]

    def _add(self, path: str, sha256: str | None) -> Json:
        place = self.root / path
        problem = find_file_problem(place)
        try:
            data = b"" if problem else place.read_bytes()
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            return {"path": path, "number": None, "note": f"it cannot be shown: {problem}"}
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._numbers:
            if len(data) > self.room:
                return {"path": path, "number": None, "note": "left out, to keep the page small"}
            self.room -= len(data)
            self._numbers[digest] = len(self.styles)
            self.styles.append(f"url(data:image/png;base64,{base64.b64encode(data).decode()})")
        note = "" if digest == sha256 else "changed since the item ran"
        return {"path": path, "number": self._numbers[digest], "note": note}
