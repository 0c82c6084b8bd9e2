"""Records: what one run of an item came to, as it lies in `.ptycho/evidence/` and in manifests.

The files may be damaged, edited or of another version: what is no record counts as not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ptycho_tasks.evidence.item import GREEN, RED, RED_AS_EXPECTED, Evidence, Item
from ptycho_tasks.evidence.provenance import Provenance
from ptycho_tasks.layout import EVIDENCE, project_path
from ptycho_tasks.system.clock import is_stamp

_LONGEST_S = 10**10
# An `int` of a file stays one, so that a record that is published again keeps its bytes.
_Seconds = (
    Annotated[int, msgspec.Meta(ge=0, lt=_LONGEST_S)]
    | Annotated[float, msgspec.Meta(ge=0, lt=_LONGEST_S)]
)


class Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many tests ended how; one whose fixture fails counts as failed."""

    passed: int
    failed: int
    skipped: int

    def __str__(self) -> str:
        """As logs and ledgers say it."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class Record(Provenance, frozen=True, kw_only=True):
    """What is known of one run of an item."""

    item: str
    """The item's name."""
    ids: list[str]
    """The rows that it proves."""
    command: str
    env: dict[str, str]
    settings: dict[str, Any]
    """What decided the outcome besides files: see `Item.settings`."""
    inputs: dict[str, str | None]
    """Path to sha256 of the files that it depended on; None where there was no such file."""
    started: str
    """When: UTC, as `Clock.stamp` writes it."""
    duration_s: _Seconds
    ended: str
    """How: `exit status 0`."""
    exit_status: int | msgspec.UnsetType | None = msgspec.UNSET
    counts: Counts | None
    """Of the tests; None where no test was counted."""
    outcome: Literal["green", "red"]
    problem: str
    """Of a red one: the first failing test or error line."""
    mistake: str
    """What is wrong with the configuration, so that the run counts for nothing; empty if nothing
    is."""
    log: str
    """The log's path."""
    sha256: str
    """Of the log."""

    @property
    def label(self) -> str:
        """What it is about, as it is shown."""
        return ", ".join(self.ids) or self.item

    @property
    def shown_outcome(self) -> str:
        """As people read it: a test that was to fail, and did, is not called green."""
        is_red = self.outcome == GREEN and self.settings.get("expect") == RED
        return RED_AS_EXPECTED if is_red else self.outcome

    def __post_init__(self) -> None:
        """Refuse what the types cannot say.

        Raises:
            ValueError: the time is none, or no file can have the log's name.
        """
        if not is_stamp(self.started):
            raise ValueError("`started` is no time")
        if "\0" in self.log:
            raise ValueError("`log` is no path")


# ---------------------------------------------------------------------------------------------
# JSON


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping that a JSON file holds; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
        # Halves of characters are no text, those aside that stand for the bytes of a file's name.
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def format_json(content: object) -> str:
    """Records, and what holds some, as the text of a file; a file with equal content has equal
    bytes."""
    # Not msgspec's own writer, which refuses the bytes of a file's name that are no UTF-8.
    return json.dumps(msgspec.to_builtins(content), indent=1, sort_keys=True) + "\n"


def _parse_records(values: Iterable[Any]) -> Iterator[Record]:
    """The records among the values of a file."""
    for value in values:
        try:
            yield msgspec.convert(value, Record)
        except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
            continue


# ---------------------------------------------------------------------------------------------
# Finding records


def find_unpublished(evidence: Evidence, item: Item) -> Record | None:
    """The result of an item that is not published yet."""
    return next(_parse_records([read_json(evidence.result_file(item))]), None)


def find_published(evidence: Evidence, item: Item) -> Record | None:
    """The last published result of an item."""
    records = [record for id in item.subjects for record in read_records(evidence, id)]
    own = [record for record in records if record.item == item.name]
    return max(own, key=lambda record: record.started, default=None)


def find_record(evidence: Evidence, item: Item) -> Record | None:
    """The last result of an item, published or not."""
    return find_unpublished(evidence, item) or find_published(evidence, item)


def read_records(evidence: Evidence, id: str) -> list[Record]:
    """The published results that a row stands on."""
    return [*_parse_records(_list_items(read_json(evidence.manifest_file(id))))]


def find_manifest_problem(evidence: Evidence, id: str) -> str:
    """What is wrong with a row's manifest; empty where nothing is, or where there is none."""
    path = evidence.manifest_file(id)
    if not os.path.lexists(path):
        return ""
    manifest = read_json(path)
    items = _list_items(manifest)
    is_of_row = manifest is not None and manifest.get("id") == id
    if items and is_of_row and len(items) == len([*_parse_records(items)]):
        return ""
    return (
        f"{project_path(evidence.root, path)} is damaged; restore it, or remove it and run "
        f"`doit {EVIDENCE}`"
    )


def _list_items(manifest: dict[str, Any] | None) -> list[Any]:
    items = (manifest or {}).get("items")
    return items if isinstance(items, list) else []
