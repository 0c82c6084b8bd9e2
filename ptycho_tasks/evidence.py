"""Which logs prove which rows of a plan, what each was made from, and whether that still holds.

What was found out lies in two places: `.ptycho/evidence/` has the result of an item until it is
published, and `reports/manifests/` has the last published one, by row. Whether an item is stale
is told from these and the files alone, so that a fresh clone of a project knows it too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.clock import is_stamp
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.files import real, sha256_file
from ptycho_tasks.freshness import Reason, changed
from ptycho_tasks.lock import STATE_DIR
from ptycho_tasks.state import spelled
from ptycho_tasks.table import (
    CONFIG_NAME,
    EVIDENCE,
    EVIDENCE_NAME,
    asks_for_evidence,
    has_evidence_file,
    opened,
    read_bytes,
    sealed,
)

if TYPE_CHECKING:
    from ptycho_tasks.state import State

GREEN, RED = "green", "red"
PENDING = f"{STATE_DIR}/evidence"
"""Holds results that are not published yet."""
MANIFESTS = "manifests"
STAMPED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}Z")
"""The name of the folder of a run."""
_FORMAT = 1
_NOTE = "evidence"

Record = dict[str, Any]
"""What is known of one run of an item: `item`, `ids`, `outcome`, `command`, `env`, `settings`,
`inputs` (path to sha256), `started`, `duration_s`, `ended` (how), `exit_status`, `counts`,
`problem` (the first failing test or error line), `mistake` (of the user, so that it counts for
nothing), `log` (path), `sha256` (of the log), and what it ran on."""
Digest = Callable[[str], "str | None"]
"""sha256 of a file by its path as `spelled`; None where there is none."""
Outputs = Callable[[str], "list[str]"]
"""The files that a stage makes."""
Standing = Callable[[str], str]
"""Why a stage is not up to date; empty where it is."""


@dataclass(frozen=True, eq=False)
class Item:
    """One command, whose log proves one or several rows."""

    name: str
    """Of its log, without outcome and ending."""
    ids: tuple[str, ...]
    command: str
    """As it is shown, and as a shell reads it."""
    arguments: tuple[str, ...] = ()
    """For pytest, where it is not a command of the user's own wording."""
    counted: bool = False
    """Whether it is pytest, which must say how many tests it ran."""
    countable: bool = False
    """Whether pytest is somewhere in it, and may say so."""
    env: Mapping[str, str] = field(default_factory=dict)
    time_limit_s: float | None = None
    tests: tuple[str, ...] = ()
    """Test files and folders that it names."""
    scripts: tuple[str, ...] = ()
    """Files that its command may run."""
    stages: tuple[str, ...] = ()
    """Stages, or tasks of them, whose results it is about."""
    depends: tuple[str, ...] = ()
    """Files, folders and globs that it is about."""

    @property
    def settings(self) -> dict[str, Any]:
        """What of it decides the outcome, besides files."""
        env = {f"env.{name}": value for name, value in self.env.items()}
        return {"command": self.command, "ids": list(self.ids), **env}


@dataclass(frozen=True)
class Evidence:
    """What a project wants to prove, and where that is written."""

    root: Path
    file: str
    """The name of the file that says so."""
    initiative: str
    phase: str
    plan: str
    ledger: str
    reports: str
    items: tuple[Item, ...]
    by_hand: Mapping[str, str] = field(default_factory=dict)
    """Row to what a person does for it."""

    @property
    def ids(self) -> list[str]:
        """Every row that an item or a person proves."""
        return list(dict.fromkeys([id for item in self.items for id in item.ids] + [*self.by_hand]))

    @property
    def plan_file(self) -> Path:
        """The plan, where it really lies."""
        return real(self.root / self.plan)

    @property
    def ledger_file(self) -> Path:
        """The ledger, where it really lies."""
        return real(self.root / self.ledger)

    @property
    def reports_dir(self) -> Path:
        """The folder of the reports."""
        return self.root / self.reports

    def item(self, name: str) -> Item:
        """The item of a name."""
        return next(item for item in self.items if item.name == name)

    def items_of(self, id: str) -> list[Item]:
        """The items that a row needs."""
        return [item for item in self.items if id in item.ids]

    def manifest_file(self, id: str) -> Path:
        """The stable place of what is known of a row."""
        return self.reports_dir / MANIFESTS / f"{id}.json"

    def pending_file(self, item: Item) -> Path:
        """Where the result of an item lies until it is published."""
        return self.root / PENDING / f"{item.name}.json"

    def pending_log(self, item: Item) -> Path:
        """Likewise, its log."""
        return self.root / PENDING / f"{item.name}.log"


# ---------------------------------------------------------------------------------------------
# Reading


def load_evidence(root: Path, state: State | None = None) -> Evidence | None:
    """The evidence that the project at `root` asks for; None where it asks for none.

    Args:
        root: the project's folder.
        state: the database, which may hold what the files came to.

    Raises:
        ConfigError: something in ptycho.yaml or evidence.yaml is wrong.
    """
    if not asks_for_evidence(root):
        return None
    own, config = (
        read_bytes(root / name) if os.path.lexists(root / name) else None
        for name in (EVIDENCE_NAME, CONFIG_NAME)
    )
    said = (_FORMAT, [*Item.__dataclass_fields__], str(root), config, own)
    key = hashlib.sha256(repr(said).encode()).hexdigest()
    kept = opened(state.note(_NOTE)) if state is not None else {}
    if kept.get("key") == key:
        return kept["evidence"] and _from_plain(kept["evidence"])
    from ptycho_tasks.evidence_options import parse_files

    evidence = parse_files(root, config, own)
    if state is not None and Path(state.name).exists():
        kept = {"key": key, "evidence": evidence and _plain(evidence)}
        state.keep_note(_NOTE, sealed(kept))
    return evidence


def require_evidence(root: Path) -> Evidence:
    """The evidence that the project at `root` asks for.

    Raises:
        ConfigError: it asks for none, or something in its files is wrong.
    """
    if not has_evidence_file(root) and not os.path.lexists(root / CONFIG_NAME):
        raise ConfigError(
            f"{root}: has neither {CONFIG_NAME} nor {EVIDENCE_NAME}; go to a project, or write "
            f"one with `ptycho-tasks plan import`"
        )
    evidence = load_evidence(root)
    if evidence is None:
        raise ConfigError(
            f"{CONFIG_NAME}: has no section `{EVIDENCE}`, nor is there {EVIDENCE_NAME}; write it"
        )
    return evidence


def _plain(evidence: Evidence) -> dict[str, Any]:
    return {**asdict(evidence), "root": str(evidence.root)}


def _from_plain(plain: dict[str, Any]) -> Evidence:
    def item(given: dict[str, Any]) -> Item:
        fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in given.items()}
        return Item(**fields)

    items = tuple(map(item, plain["items"]))
    return Evidence(**{**plain, "root": Path(plain["root"]), "items": items})


# ---------------------------------------------------------------------------------------------
# What an item is about


def input_paths(evidence: Evidence, item: Item, outputs: Outputs) -> list[str]:
    """Every file that an item's outcome may hang on, as `spelled`; some may not be there.

    Args:
        evidence: the project's.
        item: one of its items.
        outputs: gives the files that a stage makes.
    """
    root = evidence.root
    found: set[str] = set()
    for stage in item.stages:
        found.update(outputs(stage))
    for text in item.scripts:
        found.update(filter(lambda path: (root / path).is_file(), [spelled(root, root / text)]))
    for text in item.depends:
        found.update(spelled(root, path) for path in _files(evidence, text))
    for text in item.tests:
        found.update(spelled(root, path) for path in _files(evidence, text, "*.py"))
        found.update(spelled(root, path) for path in _conftests(root, root / text))
    return sorted(found)


def _files(evidence: Evidence, text: str, of_folder: str = "*") -> Iterator[Path]:
    root = evidence.root
    path = root / text
    if path.is_dir():
        yield from (p for p in path.rglob(of_folder) if _counts(evidence, p, path))
    elif any(character in text for character in "*?[") and not path.exists():
        first = Path(path.anchor) if Path(text).is_absolute() else root
        pattern = str(path.relative_to(first))
        for match in first.glob(pattern):
            inside = match.rglob("*") if match.is_dir() else [match]
            yield from (p for p in inside if _counts(evidence, p, first))
    else:
        yield path


def is_there(evidence: Evidence, text: str) -> bool:
    """Whether a path that an item depends on exists, or a glob matches a file."""
    return any(path.exists() for path in (evidence.root / text, *_files(evidence, text)))


def _counts(evidence: Evidence, path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return not hidden and path.is_file() and not _is_reported(evidence, path)


def _is_reported(evidence: Evidence, path: Path) -> bool:
    """Whether a file is of a report: what a run writes must not make the next one stale."""
    if not path.is_relative_to(evidence.reports_dir):
        return False
    first = path.relative_to(evidence.reports_dir).parts[0]
    return first == MANIFESTS or STAMPED.fullmatch(first) is not None


def _conftests(root: Path, path: Path) -> Iterator[Path]:
    """The conftest.py files that pytest reads for a test, down from the project."""
    for folder in (path, *path.parents):
        if (folder / "conftest.py").is_file():
            yield folder / "conftest.py"
        if folder == root or not folder.is_relative_to(root):
            return


def digest_at(root: Path) -> Digest:
    """Reads files of the project at `root` anew, for who has no database."""

    def digest(path: str) -> str | None:
        try:
            return sha256_file(root / path)
        except OSError:
            return None

    return digest


def outputs_at(root: Path) -> Outputs:
    """Looks the stages' files up in the ptycho.yaml at `root`."""

    @functools.cache
    def outputs(stage: str) -> list[str]:
        from ptycho_tasks.table import table_of

        rows = table_of(root, None).rows if os.path.lexists(root / CONFIG_NAME) else []
        return outputs_in(rows, stage)

    return outputs


def outputs_in(rows: list[dict[str, Any]], stage: str) -> list[str]:
    """The files that a stage, or one task of it, makes.

    Raises:
        ConfigError: there is no such task.
    """
    found = [row for row in rows if stage in (row["name"], row["stage"])]
    if not found:
        known = ", ".join(dict.fromkeys(row["stage"] for row in rows)) or "none"
        raise ConfigError(f"evidence: depends: there is no stage `{stage}`; stages: {known}")
    return [path for row in found for path in row["outputs"]]


# ---------------------------------------------------------------------------------------------
# What was found out


def read_record(path: Path) -> Record | None:
    """A result or manifest; None where there is none that can be read."""
    try:
        record = json.loads(path.read_text("utf-8"))
        # Halves of characters are no text, those aside that stand for the bytes of a file's name.
        json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def pending(evidence: Evidence, item: Item) -> Record | None:
    """The result of an item that is not published yet."""
    return next(_whole([read_record(evidence.pending_file(item))]), None)


def published(evidence: Evidence, item: Item) -> Record | None:
    """The last published result of an item."""
    found = [record for id in item.ids for record in records_of(evidence, id)]
    mine = [record for record in found if record["item"] == item.name]
    return max(mine, key=lambda record: str(record["started"]), default=None)


def records_of(evidence: Evidence, id: str) -> list[Record]:
    """The published results that a row stands on."""
    return [*_whole(_items(read_record(evidence.manifest_file(id))))]


def manifest_problem(evidence: Evidence, id: str) -> str:
    """What is wrong with a row's manifest; empty where nothing is, or where there is none."""
    path = evidence.manifest_file(id)
    if not os.path.lexists(path):
        return ""
    manifest = read_record(path)
    items = _items(manifest)
    if manifest and items and manifest.get("id") == id and len(items) == len([*_whole(items)]):
        return ""
    return (
        f"{spelled(evidence.root, path)} is damaged; restore it, or remove it and run "
        f"`doit {EVIDENCE}`"
    )


def _items(manifest: Record | None) -> list[Any]:
    items = (manifest or {}).get("items")
    return items if isinstance(items, list) else []


_TYPES: dict[str, Any] = {"item": str, "ids": list, "outcome": str, "problem": str, "started": str,
          "log": str, "sha256": str, "settings": dict, "inputs": dict, "command": str,
          "env": dict, "ended": str, "mistake": str, "packages": dict, "python": str,
          "commit": (str, type(None)), "dirty": (bool, type(None))}  # fmt: skip
_LONGEST_S = 1e10


def _whole(records: Iterable[Any]) -> Iterator[Record]:
    """Those that are results, whatever else a file may say."""
    return (
        record
        for record in records
        if isinstance(record, dict)
        and all(isinstance(record.get(key, ...), kind) for key, kind in _TYPES.items())
        and record["outcome"] in (GREEN, RED)
        and is_stamp(record["started"])
        and "\0" not in record["log"]
        and all(isinstance(id, str) for id in record["ids"])
        and all(type(digest) in (str, type(None)) for digest in record["inputs"].values())
        and _are_counts(record.get("counts"))
        and type(record.get("duration_s")) in (int, float)
        and 0 <= record["duration_s"] < _LONGEST_S
    )


def _are_counts(counts: Any) -> bool:
    """Whether a value is what `counts` of a record may be."""
    if counts is None:
        return True
    names = ("passed", "failed", "skipped")
    return (
        isinstance(counts, dict)
        and counts.keys() == {*names}
        and all(type(number) is int for number in counts.values())
    )


def latest(evidence: Evidence, item: Item) -> Record | None:
    """The last result of an item, published or not."""
    return pending(evidence, item) or published(evidence, item)


def log_problem(evidence: Evidence, record: Record) -> str:
    """What is wrong with the log of a result; empty where nothing is."""
    log = str(record.get("log"))
    path = evidence.root / log
    if not log.startswith(f"{PENDING}/") and not is_in_report(evidence, path):
        return f"{log} lies outside the report folders of {evidence.reports}"
    found = digest_at(evidence.root)(log)
    if found is None:
        return f"{log} is missing"
    if found != record.get("sha256"):
        return f"{log} was altered: sha256 {str(record.get('sha256'))[:12]} -> {found[:12]}"
    return ""


def is_in_report(evidence: Evidence, path: Path) -> bool:
    """Whether a file lies in a report folder, as reports/2025-10-20T050500Z/phase, by whatever
    name it is reached."""
    reports, log = real(evidence.reports_dir), real(path)
    if not log.is_relative_to(reports):
        return False
    parts = log.relative_to(reports).parts
    return len(parts) == 3 and STAMPED.fullmatch(parts[0]) is not None


def setting_reasons(item: Item, record: Record) -> Iterator[Reason]:
    """What of an item is not as it was when it was run, besides files."""
    old, new = record.get("settings") or {}, item.settings
    for key in sorted({*old, *new}):
        if key not in old or key not in new or old[key] != new[key]:
            text = " -> ".join(_shown(v[key]) if key in v else "not there" for v in (old, new))
            yield Reason("setting", key, f"{key} {text}", old.get(key), new.get(key))


def reasons_of(
    evidence: Evidence, item: Item, record: Record | None, digest: Digest, outputs: Outputs
) -> Iterator[Reason]:
    """Why an item must run, if its last result was this one.

    Args:
        evidence: the project's.
        item: one of its items.
        record: the result; None where there is none.
        digest: tells the content of files.
        outputs: gives the files that a stage makes.
    """
    if record is None:
        yield Reason("new", item.name, f"{item.name} was not run yet")
        return
    yield from setting_reasons(item, record)
    seen = record.get("inputs") or {}
    now = {path: digest(path) for path in input_paths(evidence, item, outputs)}
    for path in sorted({*seen, *now}):
        if path not in now:
            yield Reason("input", path, f"{path} is no longer an input", seen[path], None)
        elif path not in seen or seen[path] != now[path]:
            before, after = seen.get(path), now[path]
            text = changed(path, before, after, "is new as an input")
            yield Reason("input", path, text, before, after)
    if record.get("outcome") != GREEN:
        said = f": {record['problem']}" if record.get("problem") else ""
        yield Reason("output", item.name, f"{item.name} was red{said}")
    else:
        problem = log_problem(evidence, record)
        if problem:
            yield Reason("output", str(record.get("log")), problem)


def _shown(value: Any) -> str:
    # As it was written, so that it can be compared: JSON would double backslashes.
    plain = isinstance(value, str) and value.isprintable()
    return f'"{value}"' if plain else json.dumps(value)
