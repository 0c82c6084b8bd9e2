"""The results of a project side by side: the settings in which they differ, how well they explain
the data, and what they took to make."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeGuard

from ptycho_tasks.builds.asking import ask_project, read_tables
from ptycho_tasks.builds.identity import Identity, are_metrics_whole, read_identity
from ptycho_tasks.builds.notes import parse_mapping
from ptycho_tasks.builds.orphans import describe_orphans
from ptycho_tasks.builds.project import project_store
from ptycho_tasks.builds.results import digest_of_input
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.state import State, read_built
from ptycho_tasks.builds.store import Entry, Record
from ptycho_tasks.builds.task_table import Table
from ptycho_tasks.builds.why import Verdict, judge
from ptycho_tasks.config.fields import canonical_json
from ptycho_tasks.errors import ConfigError, one_line
from ptycho_tasks.layout import CONFIG_NAME, METRICS, RECONSTRUCTION
from ptycho_tasks.physics.deviance import compare_deviances
from ptycho_tasks.physics.truth import doubt_scores
from ptycho_tasks.report.verdicts import Verdicts
from ptycho_tasks.report.wording import natural_key

R_FACTOR, DEVIANCE, NOISE_RATIO = "r_factor", "poisson_deviance", "noise_ratio"
TRAINING, INFERENCE, MEMORY = "training_seconds", "inference_seconds", "memory_bytes"
MISFIT, COST = (R_FACTOR, DEVIANCE, NOISE_RATIO), (TRAINING, INFERENCE, MEMORY)
"""The measures besides scores."""
_LABELS = ("variant", "scan", "stage", "state")
_LARGEST = 1e300
_MOST_LISTED = 20
"""Names of what there is, where one is unknown."""


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
    product: Path | None = None
    """The whole file that the numbers are of: in its place, or where that one is damaged or of
    another result, in the store; None where there is none."""
    scan_key: str = ""
    """What tells the scan, read as it was, from others."""
    is_scan_there: bool = True
    """Whether the scan is there as it was when the result was made, and would be read alike."""
    bundle_sha256: str | None = None
    """Of the bundle that it was made with; None where that is not known."""


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
    """What is known of it: `r_factor`, `poisson_deviance` (a pixel), `noise_ratio` (the deviance
    over that of photon noise alone), scores as metrics.json calls them, seconds of the training and
    of the stage itself, the larger peak memory in bytes."""
    differences: Mapping[str, float]
    """Measures less those of the baseline; empty where there is none, and of itself."""
    guess: str = ""
    """Why its scores are not against a truth, a sentence; empty where they are, or it has none."""
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
    notes: Sequence[str] = ()
    """What is there and not compared, a line each: results of no variant or scan, and files that
    cannot be scans."""


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
    tables = read_tables(skips_strays=True)
    places = _find_all_places(tables)
    base = [] if baseline is None else _find_places(baseline, places)
    chosen = [place for name in names for place in _find_places(name, places)] or places
    results = _read_results([*chosen, *base])
    compared = [results[place.folder] for place in base]
    comparison = _describe([_subtract(result, compared) for result in results.values()])
    ordered = _sort(comparison, sort, is_reversed)
    return comparison._replace(results=ordered, notes=_list_notes(tables))


def _list_notes(tables: Sequence[Table]) -> list[str]:
    problems = dict.fromkeys(stray.problem for table in tables for stray in table.strays)
    orphans = describe_orphans(tables)
    return [*(f"left out: {one_line(text)}" for text in problems), *([orphans] if orphans else [])]


def refuse_unknown(names: Iterable[str]) -> None:
    """Refuse what is called like no variant or scan of the project in the current folder.

    Raises:
        ConfigError: one line that lists what there is.
        SystemExit: something in ptycho.yaml is wrong, and the user was told.
    """
    places = _find_all_places(read_tables(skips_strays=True))
    for name in names:
        _find_places(name, places)


def _find_all_places(tables: Iterable[Table]) -> list[_Place]:
    places = [*_list_places(tables)]
    if not places:
        raise ConfigError(f"{CONFIG_NAME}: there is none, and so nothing to compare")
    return places


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
        scans = sorted({place.scan for place in places if place.scan}, key=natural_key)
        both = [f"{place.variant}/{place.scan}" for place in places if place.scan]
        known = dict.fromkeys([*(place.variant for place in places), *scans, *both])
        raise ConfigError(f"no variant or scan is called `{name}`; {_suggest(name, known)}")
    return found


def _suggest(name: str, known: Iterable[str]) -> str:
    known = [*known]
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    more = f" and {len(known) - _MOST_LISTED} more" if len(known) > _MOST_LISTED else ""
    return f"there are {', '.join(known[:_MOST_LISTED])}{more}"


def _read_results(places: Iterable[_Place]) -> dict[Path, Result]:
    """The results in some places, by folder."""
    results: dict[Path, Result] = {}
    for table, group in itertools.groupby(places, lambda place: place.table):
        new = {place.folder: place for place in group if place.folder not in results}
        if not new:
            continue
        with ask_project(table.changes, skips_strays=True) as (control, manager):
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
        self.state, self.store = state, project_store()
        self.makers = {path: row for row in rows for path in row.outputs}
        self.verdicts = Verdicts(verdicts, state, rows)

    def read(self, place: _Place) -> Result:
        """The result in a place, as far as it is there."""
        row = place.row
        entry, in_place = self._find_entry(row), place.folder / METRICS
        is_there = self.verdicts.find_status(row) == "stored" or in_place.is_file()
        kept = read_metrics(entry.folder / METRICS) if entry and is_there else {}
        chain = self._trace(row, entry if is_there else None)
        training = next((one.entry for one in chain if one.row.stage == "train"), None)
        metrics = kept or (read_metrics(in_place) if is_there else {})
        now = self._collect_settings(row)
        settings = now if not is_there or self._is_settled(row) else _recall_settings(chain, now)
        if not place.scan and row.inputs.get("scan") not in self.makers:
            settings = {**settings, "inference.scan": row.inputs.get("scan")}
        folder = entry.folder if kept and entry else place.folder
        described = self.verdicts.describe(row, is_there=is_there)
        # Of what there is no result of, a training that was done says nothing.
        cost = _measure_cost(training, entry) if is_there else {}
        return Result(
            variant=place.variant,
            scan=place.scan,
            stage=row.stage,
            state=described.state,
            settings=settings,
            measures=list_measures(metrics) | cost,
            differences={},
            guess="" if is_simulated(settings) else doubt_scores(metrics),
            files=ResultFiles(
                place.table,
                row,
                place.folder,
                folder,
                self._find_bundle(row, chain),
                described.reasons,
                [Made(one.row, one.entry and one.entry.record) for one in chain],
                self._find_product(place, entry if kept else None),
                *self._describe_scan(row, chain[-1].identity),
                _find_bundle_sha256(chain),
            ),
        )

    def _is_settled(self, row: Row) -> bool:
        return self.verdicts.find_status(row) in ("up to date", "stored")

    def _find_product(self, place: _Place, entry: Entry | None) -> Path | None:
        path = place.folder / RECONSTRUCTION
        if entry is not None and self.state.sha256(str(path)) != entry.record.files[RECONSTRUCTION]:
            path = entry.folder / RECONSTRUCTION
        return path if path.is_file() else None

    def _describe_scan(self, row: Row, identity: Identity | None) -> tuple[str, bool]:
        """See `ResultFiles.scan_key` and `is_scan_there`."""
        path = row.inputs["scan"]
        now = _list_reading(row.settings), digest_of_input(row, self.state, path)
        read = now
        if identity is not None and not self._is_settled(row):
            known = {**_list_defaults(row), **parse_mapping(identity.settings)}
            read = _list_reading(canonical_json(known)), identity.inputs.get("scan")
        return canonical_json([path, *read]), read == now

    def _find_bundle(self, row: Row, chain: Sequence[_Link]) -> Path | None:
        """The folder of the bundle that a result was made with, be it in the store or not."""
        training = next((one for one in chain if one.row.stage == "train"), None)
        if training is not None and training.entry is not None:
            return training.entry.folder
        bundle = row.inputs.get("bundle")
        own = chain[-1].identity
        if bundle is None or (own and own.inputs.get("bundle") != self.state.sha256(bundle)):
            return None
        return Path(bundle).parent

    def _trace(self, row: Row, entry: Entry | None) -> list[_Link]:
        """All that a result was made by, from the source on, itself last: what it was made from
        then, which the tasks before may have made anew since."""
        identity = self._read_identity(row) if entry is None else entry.record.identity
        links: dict[str, _Link] = {}
        for role, path in row.inputs.items():
            maker = self.makers.get(path)
            if maker is not None:
                found = self._find_entry(maker)
                if identity is not None:
                    found = self._find_made(maker, found, identity.inputs.get(role))
                links |= {link.row.name: link for link in self._trace(maker, found)}
        return [*links.values(), _Link(row, entry, identity)]

    def _read_identity(self, row: Row) -> Identity | None:
        """What a reconstruction that the store does not have says of itself."""
        metrics = next((path for path in row.outputs if path.endswith(METRICS)), None)
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            if metrics is not None:
                return read_identity(json.loads(Path(metrics).read_text("utf-8"))["made_from"])
        return None

    def _find_made(self, maker: Row, now: Entry | None, digest: str | None) -> Entry | None:
        """What the store has that holds a file which a task made: of today, or an earlier one."""
        if digest is None or (now is not None and digest in now.record.files.values()):
            return now if digest else None
        return self._entries_by_file.get((maker.stage, digest))

    @cached_property
    def _entries_by_file(self) -> dict[tuple[str, str], Entry]:
        entries = (entry for entry in self.store.entries())
        return {(e.stage, digest): e for e in entries for digest in e.record.files.values()}

    def _find_entry(self, row: Row) -> Entry | None:
        """What the store has of the outputs of a task."""
        built = read_built(self.state.get(row.name, "_values_:"))
        if built is None or not built.entry:
            return None
        return self.store.read(row.stage, built.entry)

    def _collect_settings(self, row: Row) -> dict[str, Any]:
        """The settings of a task and of all tasks before it, as they are now."""
        settings: dict[str, Any] = {}
        for maker in filter(None, map(self.makers.get, row.inputs.values())):
            settings |= self._collect_settings(maker)
        own = parse_mapping(row.settings)
        files = {key: _shorten(path) for key, path in row.inputs.items() if key in own}
        return {**settings, **own, **files}


class _Link(NamedTuple):
    """A task that a result hangs on, with what it made then."""

    row: Row
    entry: Entry | None
    """What the store has of it."""
    identity: Identity | None
    """What it was made from, where that is known."""


def _find_bundle_sha256(chain: Sequence[_Link]) -> str | None:
    """sha256 of the bundle that a result was made with, of all that it was made by."""
    known = (link.identity.inputs.get("bundle") for link in chain if link.identity is not None)
    return next(filter(None, known), None)


def _recall_settings(chain: Sequence[_Link], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a result was made with; of a task of which that is not known, none.

    Args:
        chain: all that it was made by.
        now: the settings of today, which stand for what is no older than they are.
    """
    settings: dict[str, Any] = {}
    for row, _, identity in chain:
        if identity is not None:
            old, new = parse_mapping(identity.settings), parse_mapping(row.settings)
            defaults = _list_defaults(row)
            # A setting that names a file has its path, see `_collect_settings`.
            same = {key: now[key] for key in old if key in now and old[key] == new.get(key)}
            settings |= {**defaults, **old, **same}
    return settings


def _list_defaults(row: Row) -> dict[str, Any]:
    """The settings of a task that have their default, which older records need not know."""
    settings = parse_mapping(row.settings)
    return {key: settings[key] for key in row.at_default if key in settings}


def _list_reading(settings: str) -> dict[str, Any]:
    """Those settings, of a mapping as JSON, that say how a scan is read."""
    return {k: v for k, v in parse_mapping(settings).items() if k.startswith("source.")}


def _shorten(path: str) -> str:
    """A path as a value to compare: of one outside of the project, what tells it from others."""
    kept = PurePath(path).parts[-3:]
    return PurePath("...", *kept).as_posix() if PurePath(path).is_absolute() else path


def read_metrics(path: Path) -> dict[str, Any]:
    """What a metrics.json holds; empty where it is missing, damaged, or changed by hand."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    is_right = isinstance(data, dict) and isinstance(data.get("scores") or {}, dict)
    return data if is_right and are_metrics_whole(data) else {}


def list_measures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The misfit and the scores that a metrics.json holds."""
    values = {name: metrics.get(name) for name in (R_FACTOR, DEVIANCE)}
    values[NOISE_RATIO] = read_noise_ratio(metrics)
    values |= metrics.get("scores") or {}
    return {one_line(name): float(value) for name, value in values.items() if is_number(value)}


def read_noise_ratio(metrics: Mapping[str, Any]) -> float | None:
    """The deviance over that of photon noise alone; None where metrics.json does not hold both."""
    parts = metrics, metrics.get("noise")
    found, least = (part.get(DEVIANCE) if isinstance(part, dict) else None for part in parts)
    return compare_deviances(found, least) if is_number(found) and is_number(least) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a JSON is a number that can be shown and sorted by."""
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
    present.sort(key=lambda pair: natural_key(pair[1].scan))  # where values are equal
    present.sort(key=lambda pair: _rank(pair[0]), reverse=is_reversed)
    return [result for _, result in present] + [r for value, r in values if value is None]


def find_value(result: Result, column: str) -> Any:
    """What stands in a column of a result; None where that is not known."""
    if column in _LABELS:
        return getattr(result, column)
    return result.settings.get(column, result.measures.get(column))


def _rank(value: Any) -> tuple[int, float, Any]:
    """Numbers before texts."""
    if is_number(value):
        return 0, value, ()
    return 1, 0.0, natural_key(value if isinstance(value, str) else canonical_json(value))


def is_simulated(settings: Mapping[str, Any]) -> bool:
    """Whether a result with some settings is of the scan that the project simulates."""
    is_source = settings.get("inference.scan") == "source"
    return is_source and any(key.startswith("source.simulate.") for key in settings)


def list_guesses(comparison: Comparison) -> list[str]:
    """Of each scan whose scores are not against a truth, why not, a line each."""
    doubted = [one for one in comparison.results if one.guess and one.files]
    guesses = {one.files.row.inputs["scan"]: one.guess for one in doubted if one.files}
    return [f"{path}: {guesses[path]}" for path in sorted(guesses, key=natural_key)]


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
