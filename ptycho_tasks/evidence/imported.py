"""An evidence.yaml as an import writes it: each part is signed, so that a later import knows what
a person changed, and keeps that."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptycho_tasks.config.document import parse_config
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.memo import Memo
from ptycho_tasks.layout import EVIDENCE_NAME

_SIGNATURE = re.compile(r"[ \t]+# imported ([0-9a-f]{8})$", re.MULTILINE)
_ITEMS = re.compile(r"items:(?:[ \t]+# imported (?P<names>.*))?[ \t]*")
"""The line above the items, with the names of those that imports wrote."""
_KEYS = ("initiative", "phase", "plan", "ledger", "reports")


@dataclass(frozen=True)
class ImportedItem:
    """An item, as text of an evidence.yaml."""

    text: str
    """Lines without the last line's end."""
    ids: tuple[str, ...]
    name: str
    """Of its log; empty of one by hand."""
    work: str
    """What is to be run or done."""

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return self.name or "+".join(self.ids)

    @property
    def key(self) -> str:
        """What it goes by among those that imports wrote: its log may be that of other rows too."""
        return f"{self.name}({'+'.join(self.ids)})" if self.name and self.ids else self.label

    def shares_rows(self, other: ImportedItem) -> bool:
        """Whether both prove a row, or neither does."""
        return bool({*self.ids} & {*other.ids}) or not (self.ids or other.ids)

    def resembles(self, other: ImportedItem) -> bool:
        """Whether both are about the same: rows and their log, or the same rows and work."""
        is_same_log = bool(self.name) and self.name == other.name and self.shares_rows(other)
        is_by_hand = not (self.name or other.name)
        return is_same_log or (self.ids == other.ids and (is_by_hand or self.work == other.work))

    def call(self, number: int) -> ImportedItem:
        """The same with a number in its log's name."""
        text = re.sub(
            r'(?m)^(    log: ".*?)((?:_red|_green)?(?:\.\w+)?"$)', rf"\g<1>_{number}\2", self.text
        )
        log = re.search(r'(?m)^    log: "(.*)"$', text)
        return replace(self, text=text, name=name_of(log[1])) if log else self


def format_file(title: str, values: Mapping[str, str], items: Sequence[ImportedItem]) -> str:
    """The evidence.yaml that an import writes.

    Args:
        title: of the memo.
        values: the keys above the items, in YAML; those that are missing are left out.
        items: in their order.
    """
    head = [_sign(f"{key}: {values[key]}") for key in _KEYS if values.get(key)]
    blocks = [_sign(item.text) for item in items]
    return "\n".join([f"# {title}", *head, _list_names(item.key for item in items), *blocks, ""])


def _list_names(names: Iterable[str]) -> str:
    return f"items:  # imported {' '.join(dict.fromkeys(names))}"


def update_file(
    old: str, title: str, values: Mapping[str, str], items: Sequence[ImportedItem], memo: Memo
) -> str:
    """An evidence.yaml of an earlier import with what a newer memo says; what a person changed
    stays.

    Args:
        old: its text.
        title: of the memo.
        values: as for `format_file`.
        items: of the newer memo.
        memo: gets the findings.

    Raises:
        ConfigError: no import wrote it, or its items cannot be told apart.
    """
    if not _SIGNATURE.search(old):
        raise ConfigError(f"{EVIDENCE_NAME}: is already there; nothing was written")
    given = items
    head, names, blocks, tail = _split(old)
    lines = [f"# {title}" if line.startswith("# From ") else line for line in head]
    lines = [*_update_head(lines, values, memo)]
    present = [*zip(blocks, _read_items(old, blocks), strict=True)]
    changed = [item for block, item in present if not _is_untouched(block)]
    untouched = [item for block, item in present if _is_untouched(block)]
    removed = [name for name in names if not any(name in (i.key, i.name) for _, i in present)]
    staying = _list_staying(untouched, items)
    items = _name_apart(items, [*changed, *staying], removed)
    new = _leave_out(items, removed, changed, memo)
    staying = _list_staying(untouched, new)
    new = _name_apart(new, [*changed, *staying], removed)
    for item in new:
        if item.name and item.name not in {other.name for other in given}:
            memo.take(0, f"{', '.join(item.ids) or 'no row'}: log {item.name}, as others have that")
    kept: list[str] = []
    written: list[str] = []
    is_placed = False
    for block, item in present:
        if _is_untouched(block) and _is_replaced(item, new):
            if not is_placed:
                written += [_sign(other.text) for other in new]
            is_placed = True
            _tell_of_replaced(item, new, memo)
            continue
        if _is_untouched(block):
            block, item = _narrow(block, item, new, memo)
        written.append(block)
        is_known = item.key in names or item.name in names or _is_untouched(block)
        kept += [item.key] if is_known else []
    if not is_placed:
        written += [_sign(other.text) for other in new]
    title_of_items = _list_names([*kept, *(item.key for item in new), *removed])
    return "\n".join([*lines, title_of_items, *written, *tail, ""])


def _list_staying(
    untouched: Iterable[ImportedItem], new: Sequence[ImportedItem]
) -> list[ImportedItem]:
    """The older items that newer ones leave, for the rows that are left to them."""
    staying = (item for item in untouched if not _is_replaced(item, new))
    return [replace(item, ids=_leave_rows(item, new)) for item in staying]


def _leave_rows(old: ImportedItem, new: Iterable[ImportedItem]) -> tuple[str, ...]:
    """The rows of an older item that no newer one has."""
    gone = {id for item in new for id in item.ids}
    return tuple(id for id in old.ids if id not in gone)


def _is_replaced(old: ImportedItem, new: Iterable[ImportedItem]) -> bool:
    """Whether newer items have all the rows of an older one, or its work where it has none."""
    if old.ids:
        return not _leave_rows(old, new)
    return any(item.resembles(old) or item.work == old.work for item in new)


def _tell_of_replaced(old: ImportedItem, new: Iterable[ImportedItem], memo: Memo) -> None:
    heirs = [item for item in new if item.shares_rows(old) or item.work == old.work]
    if not any(item.work == old.work and item.name == old.name for item in heirs):
        names = ", ".join(dict.fromkeys(item.label for item in heirs))
        rows = ", ".join(old.ids) or "no row"
        memo.leave(0, f"{old.label}: `{old.work}` of {rows} gives way to {names} of this memo")


def _narrow(
    block: str, item: ImportedItem, new: Iterable[ImportedItem], memo: Memo
) -> tuple[str, ImportedItem]:
    """An older item that stays, for the rows that a newer memo does not name."""
    ids = _leave_rows(item, new)
    if ids == item.ids:
        memo.leave(0, f"{item.label}: stays, though this memo does not name it")
        return block, item
    gone = ", ".join(id for id in item.ids if id not in ids)
    memo.leave(0, f"{item.label}: stays for {', '.join(ids)}; {gone}: as this memo says")
    text = f"  - ids: {json.dumps(ids, ensure_ascii=False)}\n{block.partition(chr(10))[2]}"
    return _sign(text), replace(item, ids=ids)


def _name_apart(
    items: Sequence[ImportedItem], others: Iterable[ImportedItem], removed: Sequence[str]
) -> list[ImportedItem]:
    """The items of a newer memo, none with the log of other rows' items: of those that are there
    and of those that a person removed."""
    taken = [*others]
    for key in removed:
        match = re.fullmatch(r"(?P<name>.+)\((?P<ids>.+)\)", key)
        if match:
            taken.append(ImportedItem("", tuple(match["ids"].split("+")), match["name"], ""))
    apart: list[ImportedItem] = []
    for item in items:
        named, number = item, 2
        while named.name and (
            any(other.name == named.name and not other.shares_rows(item) for other in taken)
            or any(other.name == named.name for other in apart)
        ):
            named, number = item.call(number), number + 1
        apart.append(named)
    return apart


def _leave_out(
    items: Sequence[ImportedItem],
    removed: Sequence[str],
    changed: Sequence[ImportedItem],
    memo: Memo,
) -> list[ImportedItem]:
    """The items of a newer memo without those that a person removed or changed."""
    new: list[ImportedItem] = []
    for item in items:
        if any(item.resembles(other) for other in changed):
            memo.leave(0, f"{item.label}: stays, as it was changed by hand")
        elif item.key in removed or item.name in removed:
            memo.leave(
                0,
                f"{item.label}: was removed by hand, and stays out; remove its name in the line "
                "`items:` to have it back",
            )
        else:
            new.append(item)
    return new


def _update_head(lines: list[str], values: Mapping[str, str], memo: Memo) -> Iterator[str]:
    present = set()
    for line in lines:
        key = line.partition(":")[0]
        if key not in _KEYS:
            yield line
            continue
        present.add(key)
        value = values.get(key)
        new = f"{key}: {value}" if value else line
        if value and _is_untouched(line):
            yield _sign(new)
        else:
            if _SIGNATURE.sub("", line) != new and value:
                memo.leave(0, f"{key}: stays, as it was changed by hand")
            yield line
    yield from (
        _sign(f"{key}: {values[key]}") for key in _KEYS if values.get(key) and key not in present
    )


def _sign(block: str) -> str:
    first, *others = block.split("\n")
    digest = hashlib.sha256(block.encode()).hexdigest()[:8]
    return "\n".join([f"{first}  # imported {digest}", *others])


def _is_untouched(block: str) -> bool:
    """Whether a part is as an import wrote it."""
    match = _SIGNATURE.search(block.split("\n")[0])
    return bool(match) and _sign(_SIGNATURE.sub("", block, count=1)) == block


def _split(text: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """The lines above the items, the names of those that were imported, each item's text, and the
    lines below them."""
    lines = text.rstrip("\n").split("\n")
    at, title = next(
        ((n, match) for n, line in enumerate(lines) if (match := _ITEMS.fullmatch(line))), (0, None)
    )
    if title is None:
        raise ConfigError(f"{EVIDENCE_NAME}: has no line `items:`; nothing was written")
    blocks: list[list[str]] = []
    tail: list[str] = []
    for line in lines[at + 1 :]:
        if tail or (line[:1] not in ("", " ", "-", "#")):
            tail.append(line)
        elif re.match(r" {0,2}- ", line) or not blocks:
            blocks.append([line])
        else:
            blocks[-1].append(line)
    names = (title["names"] or "").split()
    return lines[:at], names, ["\n".join(block) for block in blocks], tail


def _read_items(text: str, blocks: Sequence[str]) -> list[ImportedItem]:
    """What the items of a file are about."""
    data: Any = parse_config(Path(EVIDENCE_NAME), text.encode()).data.get("items")
    if not isinstance(data, list) or len(data) != len(blocks):
        raise ConfigError(f"{EVIDENCE_NAME}: its items cannot be told apart; nothing was written")
    return [_read_item(block, item) for block, item in zip(blocks, data, strict=True)]


def _read_item(block: str, data: Any) -> ImportedItem:
    values = data if isinstance(data, dict) else {}
    ids = values.get("ids") or ([values["id"]] if values.get("id") else [])
    work = (
        values.get("command")
        or values.get("pytest")
        or values.get("stage")
        or values.get("by_hand")
        or ""
    )
    return ImportedItem(
        block, tuple(map(str, ids)), name_of(str(values.get("log") or "")), str(work)
    )


def name_of(log: str) -> str:
    """What a log is called where it is green; one that is to be red keeps that."""
    return re.sub(r"(_green)?(\.log)?$", "", log, count=1).casefold()
