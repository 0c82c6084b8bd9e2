"""The results of a project side by side: the settings in which they differ, how well they explain
the data, and what they took to make."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ptycho_tasks.builds.asking import ask_project, read_tables
from ptycho_tasks.builds.failures import find_failure
from ptycho_tasks.builds.notes import parse_mapping
from ptycho_tasks.builds.project import project_store
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.state import State, read_built
from ptycho_tasks.builds.store import Entry, Record
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.builds.why import Verdict, judge
from ptycho_tasks.config.fields import canonical_json
from ptycho_tasks.errors import ConfigError, one_line
from ptycho_tasks.layout import CONFIG_NAME, METRICS

R_FACTOR, DEVIANCE = "r_factor", "poisson_deviance"
TRAINING, INFERENCE, MEMORY = "training_seconds", "inference_seconds", "memory_bytes"
MISFIT, COST = (R_FACTOR, DEVIANCE), (TRAINING, INFERENCE, MEMORY)
"""The measures besides scores."""
_LABELS = ("variant", "scan", "stage", "state")
_LARGEST = 1e300


class Made(NamedTuple):
    """A task that a result hangs on, or its own."""

    row: Row
    record: Record | None
    """What the store knows of how it was made; None where it does not have it."""


class ResultFiles(NamedTuple):
    """Where a result lies, and what it hangs on."""

    table: Table
    row: Row
    """Its task."""
    place: Path
    """The folder in `runs/` that it has, or will have."""
    folder: Path
    """Where the files are: in the store, or in its place."""
    training: Path | None
    """The folder of the bundle that it was made with."""
    reasons: Sequence[str]
    """Why it is not fresh."""
    made: Sequence[Made] = ()
    """All that it was made by, from the source on."""


@dataclass(frozen=True)
class Result:
    """A reconstruction, or the place of one that is not built."""

    variant: str
    scan: str
    """Empty where the project has one scan."""
    stage: str
    """`infer` or `refine`."""
    state: str
    """`fresh`; `stale`; `stored`: the next run takes it from the store; `not built`; `ignored`;
    `failed`: its task, or one before it, failed when it last ran."""
    settings: Mapping[str, Any]
    """Dotted config key to value, for all that decides the result."""
    measures: Mapping[str, float]
    """What is known of it: `r_factor`, `poisson_deviance` (a pixel), scores as metrics.json calls
    them, seconds of the training and of the stage itself, the larger peak memory in bytes."""
    differences: Mapping[str, float]
    """Measures less those of the baseline; empty where there is none, and of itself."""
    files: ResultFiles | None = None
    """Where it lies, and what it hangs on; None of one that no project has."""


class Comparison(NamedTuple):
    """Results in the order in which they are shown, and what to show of them."""

    results: Sequence[Result]
    labels: Sequence[str]
    """Those of `variant`, `scan`, `stage` that tell the results apart."""
    settings: Sequence[str]
    """The config keys in which they differ."""
    measures: Sequence[str]
    """What is known of at least one."""


class _Place(NamedTuple):
    """Where a task puts a reconstruction."""

    table: Table
    row: Row
    folder: Path
    variant: str
    scan: str

    @property
    def names(self) -> set[str]:
        """What it may be called by."""
        return {self.variant, *([self.scan, f"{self.variant}/{self.scan}"] if self.scan else [])}


def compare_results(
    names: Sequence[str] = (),
    *,
    sort: str = R_FACTOR,
    is_reversed: bool = False,
    baseline: str | None = None,
) -> Comparison:
    """Compare the results of the project in the current folder; nothing is built or written.

    Args:
        names: the variants, scans or `VARIANT/SCAN` to show; empty for all.
        sort: the column to sort by, smallest first: a label, a config key or its last word, or a
            measure. Where it is missing, the result comes last.
        is_reversed: largest first.
        baseline: the result to which differences are given: of its scan for each result, where it
            has several. It is shown too.

    Raises:
        ConfigError: a name or a column is unknown.
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    places = [*_list_places(read_tables())]
    if not places:
        raise ConfigError(f"{CONFIG_NAME}: there is none, and so nothing to compare")
    base = [] if baseline is None else _find_places(baseline, places)
    chosen = [place for name in names for place in _find_places(name, places)] or places
    results = _read_results([*chosen, *base])
    compared = [results[place.folder] for place in base]
    comparison = _describe([_subtract(result, compared) for result in results.values()])
    return comparison._replace(results=_sort(comparison, sort, is_reversed))


def _list_places(tables: Iterable[Table]) -> Iterator[_Place]:
    for table in tables:
        for row in table.rows:
            metrics = (path for path in map(Path, row.outputs) if path.name == METRICS)
            for folder in (path.parent for path in metrics):
                _, variant, _, *scan = folder.parts
                yield _Place(table, row, folder, variant, "/".join(scan))


def _find_places(name: str, places: Sequence[_Place]) -> list[_Place]:
    found = [place for place in places if name in place.names]
    if not found:
        known = dict.fromkeys(name for place in places for name in sorted(place.names))
        raise ConfigError(f"no variant or scan is called `{name}`; {_suggest(name, known)}")
    return found


def _suggest(name: str, known: Iterable[str]) -> str:
    known = [*known]
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known[:20])}"


def _read_results(places: Iterable[_Place]) -> dict[Path, Result]:
    """The results in some places, by folder."""
    results: dict[Path, Result] = {}
    for table, group in itertools.groupby(places, lambda place: place.table):
        new = {place.folder: place for place in group if place.folder not in results}
        if not new:
            continue
        with ask_project(table.changes) as (control, manager):
            # Variants may share a task, and doit loses what follows one that is named twice.
            control.process([*dict.fromkeys(place.row.name for place in new.values())])
            verdicts = judge(control, manager)
            reader = _Reader(table.rows, manager.backend, {v.task: v for v in verdicts})
            results |= {folder: reader.read(place) for folder, place in new.items()}
    return results


class _Reader:
    """Reads results with what the database and the store know of them."""

    def __init__(self, rows: Sequence[Row], state: State, verdicts: Mapping[str, Verdict]) -> None:
        """Of tasks that were judged.

        Args:
            rows: all tasks.
            state: the database, which knows by now which entry of the store each task has.
            verdicts: name of a task to what `doit why` says of it.
        """
        self.state, self.verdicts, self.store = state, verdicts, project_store()
        self.makers = {path: row for row in rows for path in row.outputs}

    def read(self, place: _Place) -> Result:
        """The result in a place, as far as it is there."""
        row = place.row
        entry, training = self._find_entry(row), self._find_training(row)
        verdict = self.verdicts.get(row.name, Verdict(row.name, "stale", ()))
        status = verdict.status
        is_there = status == "stored" or (place.folder / METRICS).is_file()
        measures, kept = {}, None
        if is_there:
            kept = None if entry is None else read_measures(entry.folder / METRICS)
            measures = kept or read_measures(place.folder / METRICS)
        failure = "" if status in ("up to date", "stored") else self._find_failure(row)
        settings = self._collect_settings(row)
        if not place.scan and row.inputs.get("scan") not in self.makers:
            settings["inference.scan"] = row.inputs.get("scan")
        return Result(
            variant=place.variant,
            scan=place.scan,
            stage=row.stage,
            state="failed" if failure else _describe_state(status) if is_there else "not built",
            settings=settings,
            measures=measures | _measure_cost(training, entry if is_there else None),
            differences={},
            files=ResultFiles(
                place.table,
                row,
                place.folder,
                entry.folder if kept and entry else place.folder,
                self._find_bundle(row, training),
                [*([failure] if failure else []), *(reason.text for reason in verdict.reasons)],
                self._list_made(row),
            ),
        )

    def _find_failure(self, row: Row) -> str:
        """What failed when it last ran: a task, or the first of those before it."""
        before = filter(None, map(self.makers.get, row.inputs.values()))
        for failure in map(self._find_failure, before):
            if failure:
                return failure
        failure = find_failure(self.state, row)
        return f"{row.name} failed: {failure}" if failure else ""

    def _find_bundle(self, row: Row, training: Entry | None) -> Path | None:
        """The folder of the bundle that a result was made with, be it in the store or not."""
        if training is not None:
            return training.folder
        bundle = row.inputs.get("bundle")
        return None if bundle is None else Path(bundle).parent

    def _list_made(self, row: Row) -> list[Made]:
        before = filter(None, map(self.makers.get, row.inputs.values()))
        made = {one.row.name: one for maker in before for one in self._list_made(maker)}
        entry = self._find_entry(row)
        return [*made.values(), Made(row, None if entry is None else entry.record)]

    def _find_entry(self, row: Row | None) -> Entry | None:
        """What the store has of the outputs of a task."""
        built = None if row is None else read_built(self.state.get(row.name, "_values_:"))
        if row is None or built is None or not built.entry:
            return None
        return self.store.read(row.stage, built.entry)

    def _find_training(self, row: Row) -> Entry | None:
        before = (self.makers.get(path) for path in row.inputs.values())
        for maker in filter(None, before):
            if maker.stage == "train":
                return self._find_entry(maker)
            if maker.stage == "infer":
                return self._find_training(maker)
        return None

    def _collect_settings(self, row: Row) -> dict[str, Any]:
        """The settings of a task and of all tasks before it."""
        settings: dict[str, Any] = {}
        for maker in filter(None, map(self.makers.get, row.inputs.values())):
            settings |= self._collect_settings(maker)
        own = parse_mapping(row.settings)
        files = {key: _shorten(path) for key, path in row.inputs.items() if key in own}
        return {**settings, **own, **files}


def _shorten(path: str) -> str:
    """A path as a value to compare: of one outside of the project, what tells it from others."""
    kept = PurePath(path).parts[-3:]
    return PurePath("...", *kept).as_posix() if PurePath(path).is_absolute() else path


def _describe_state(status: str) -> str:
    return {"up to date": "fresh", "depends": "stale"}.get(status, status)


def read_measures(path: Path) -> dict[str, float]:
    """The misfit and the scores that a metrics.json holds; empty where it is missing or damaged."""
    try:
        data = json.loads(path.read_text("utf-8"))
        values = {name: data.get(name) for name in (R_FACTOR, DEVIANCE)}
        values |= data.get("scores") or {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {one_line(name): float(value) for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < _LARGEST


def _measure_cost(training: Entry | None, own: Entry | None) -> dict[str, float]:
    """What is known of the cost; nothing of a result that was found, and not seen made."""
    made = {TRAINING: training, INFERENCE: own}
    records = {n: one.record for n, one in made.items() if one and one.record.memory_bytes}
    costs: dict[str, float] = {name: record.seconds for name, record in records.items()}
    memory = [record.memory_bytes for record in records.values()]
    return costs | ({MEMORY: max(memory)} if memory else {})


def _subtract(result: Result, base: Sequence[Result]) -> Result:
    """A result with differences to that of the baseline which is of the same kind."""
    alike = [other for other in base if other.stage == result.stage]
    same_scan = [other for other in alike if other.scan == result.scan]
    same_variant = [other for other in alike if other.variant == result.variant]
    other = next(iter(same_scan or same_variant or (alike if len(alike) == 1 else [])), None)
    if other is None or other is result:
        return result
    differences = {
        name: value - other.measures[name]
        for name, value in result.measures.items()
        if name in other.measures
    }
    return replace(result, differences=differences)


def _describe(results: Sequence[Result]) -> Comparison:
    known = dict.fromkeys(name for result in results for name in result.measures)
    measures = [*(name for name in known if name not in COST), *(n for n in COST if n in known)]
    keys = sorted({key for result in results for key in result.settings})
    differing = [
        key
        for key in keys
        if len({canonical_json(r.settings[key]) for r in results if key in r.settings}) > 1
    ]
    labels = ["variant"]
    labels += ["scan"] if any(result.scan for result in results) else []
    labels += ["stage"] if len({result.stage for result in results}) > 1 else []
    return Comparison(results, labels, differing, measures)


def _sort(comparison: Comparison, column: str, is_reversed: bool) -> list[Result]:
    """The results by a column; those without a value last."""
    keys = {key for result in comparison.results for key in result.settings}
    known = {name: name for name in (*_LABELS, *keys, *comparison.measures, R_FACTOR)}
    last_words = [key.rpartition(".")[2] for key in comparison.settings]
    for key, word in zip(comparison.settings, last_words, strict=True):
        if last_words.count(word) == 1:
            known.setdefault(word, key)
    if column not in known:
        shown = (*comparison.labels, "state", *comparison.settings, *comparison.measures)
        raise ConfigError(f"--sort: there is no column `{column}`; {_suggest(column, shown)}")
    values = [(find_value(result, known[column]), result) for result in comparison.results]
    present = [pair for pair in values if pair[0] is not None]
    present.sort(key=lambda pair: _rank(pair[0]), reverse=is_reversed)
    return [result for _, result in present] + [r for value, r in values if value is None]


def find_value(result: Result, column: str) -> Any:
    """What stands in a column of a result; None where that is not known."""
    if column in _LABELS:
        return getattr(result, column)
    return result.settings.get(column, result.measures.get(column))


def _rank(value: Any) -> tuple[int, float, str]:
    """Numbers before texts."""
    if _is_number(value):
        return 0, value, ""
    return 1, 0.0, value if isinstance(value, str) else canonical_json(value)


def list_records(comparison: Comparison) -> list[dict[str, Any]]:
    """The comparison for programs: one mapping a result, all with the same keys.

    Settings have their dotted key; what is not known is None; differences to the baseline, if
    there is one, stand behind all else, as `r_factor_difference`.
    """
    has_baseline = any(result.differences for result in comparison.results)
    columns = ["variant", "scan", "stage", "state", *comparison.settings, *comparison.measures]
    records = []
    for result in comparison.results:
        record = {column: find_value(result, column) for column in columns}
        if has_baseline:
            differences = result.differences
            record |= {f"{name}_difference": differences.get(name) for name in comparison.measures}
        records.append(record)
    return records
