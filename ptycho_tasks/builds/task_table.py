"""A ptycho.yaml as a table of tasks: plain data, which the database keeps for the next run.

As long as nothing changed that decides the table, the configuration is neither parsed nor
checked again and no backend is imported.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.builds.notes import opened, sealed
from ptycho_tasks.errors import one_line
from ptycho_tasks.layout import CONFIG_NAME, read_bytes
from ptycho_tasks.system.cache import cached

if TYPE_CHECKING:
    from ptycho_tasks.builds.state import State
    from ptycho_tasks.config.document import ConfigFile
    from ptycho_tasks.config.layers import Variant
    from ptycho_tasks.config.payload import (
        InferencePayload,
        Payload,
        RefinementPayload,
        TrainingPayload,
    )

_FORMAT = 3
_NOTE = "tasks"

Row = dict[str, Any]
"""One task: `name`, `stage`, `variant`, `doc`, `inputs`, `outputs` (paths, relative to the project
where they lie in it), `after` (tasks), `settings`, `at_default`, `versions` and `sources` (name to
path)."""
Files = tuple[str, list[str], list[str]]
"""What a task does, what it reads, and what it makes."""


@dataclass(frozen=True)
class Table:
    """A project's tasks, and the ptycho.yaml that they are of."""

    rows: list[Row]
    """In the order of the stages."""
    path: Path
    config: bytes
    """The file as it was read: a change while tasks run is a matter of the next run."""

    def row(self, name: str) -> Row:
        """The task of a name."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        return {row["name"]: row for row in self.rows}

    def payload(self, row: Row) -> TrainingPayload | InferencePayload:
        """All that the stage of a task needs."""
        from ptycho_tasks.config import factories

        file, variants = self._parsed
        create: Any = {
            "infer": factories.create_inference_payload,
            "refine": factories.create_refinement_payload,
        }.get(row["stage"], factories.create_training_payload)
        return create(file, variant=variants[row["variant"]])  # type: ignore[no-any-return]

    @cached_property
    def _parsed(self) -> tuple[ConfigFile, dict[str, Variant]]:
        from ptycho_tasks.config.document import parse_config
        from ptycho_tasks.config.variants import variants_of

        file = parse_config(self.path, self.config)
        return file, {variant.name: variant for variant in variants_of(file)}


def table_of(root: Path, state: State | None) -> Table:
    """The tasks of the project at `root`.

    Args:
        root: the project's folder.
        state: the database, which may hold the table.

    Raises:
        ConfigError: something in ptycho.yaml is wrong.
    """
    path = root / CONFIG_NAME
    config = read_bytes(path)
    kept = opened(state.note(_NOTE)) if state is not None else {}
    key = _key(root, config)
    if kept and kept["key"] == key and kept["watched"] == _stamps(kept["watched"]):
        return Table(_unpacked(kept), path, config)
    rows, watched = make_table(path, config)
    if state is not None:
        kept = {"key": key, "watched": _stamps(watched), **_packed(rows)}
        state.keep_note(_NOTE, sealed(kept))
    return Table(rows, path, config)


_COMMA = ',"'
"""What parts the settings of a row at, however it stands in them: they are joined again."""


_FILES = ("name", "doc", "inputs", "outputs", "after")
"""What of a row is of its place in the graph."""


def _packed(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows with what many of them have in common, but for their variant's name and a few of their
    settings, written once."""
    kinds: dict[str, tuple[int, list[str]]] = {}
    places: dict[str, int] = {}
    packed = []
    for row in rows:
        variant, parts = row["variant"], row["settings"].split(_COMMA)
        place = _with_paths({key: row[key] for key in _FILES}, partial(_general, variant=variant))
        kind = {key: row[key] for key in row if key not in _FILES and key != "variant"}
        text = json.dumps({**kind, "settings": len(parts)})
        k, common = kinds.setdefault(text, (len(kinds), parts))
        p = places.setdefault(json.dumps(place), len(places))
        own = [(n, part) for n, part in enumerate(parts) if part != common[n]]
        packed.append([k, p, variant, *itertools.chain(*own)])
    return {
        "kinds": [[json.loads(kind), common] for kind, (_, common) in kinds.items()],
        "places": [json.loads(place) for place in places],
        "rows": packed,
    }


def _unpacked(note: Mapping[str, Any]) -> list[Row]:
    kinds = [(kind, common, _COMMA.join(common)) for kind, common in note["kinds"]]
    places, rows = note["places"], []
    for k, p, variant, *own in note["rows"]:
        kind, common, settings = kinds[k]
        place = _with_paths(places[p], partial(_special, variant=variant))
        if own:
            parts = common.copy()
            for n, part in zip(own[::2], own[1::2], strict=True):
                parts[n] = part
            settings = _COMMA.join(parts)
        rows.append({**kind, **place, "variant": variant, "settings": settings})
    return rows


def _with_paths(row: Row, change: Callable[[str], str]) -> Row:
    return {
        **row,
        "name": change(row["name"]),
        "inputs": [change(path) for path in row["inputs"]],
        "outputs": [change(path) for path in row["outputs"]],
    }


def _general(text: str, variant: str) -> str:
    """A path or a task's name, with a mark, which none of them holds, for the variant's name."""
    if text.endswith(f":{variant}"):
        return f"{text.removesuffix(variant)}\0"
    return text.replace(f"/{variant}/", "/\0/")


def _special(text: str, variant: str) -> str:
    return text.replace("\0", variant)


def make_table(path: Path, config: bytes) -> tuple[list[Row], list[str]]:
    """The tasks, and the files and folders besides ptycho.yaml that decide them.

    Raises:
        ConfigError: something in ptycho.yaml is wrong.
    """
    from ptycho_tasks.config.document import parse_config
    from ptycho_tasks.config.factories import create_payloads
    from ptycho_tasks.config.variants import variants_of
    from ptycho_tasks.errors import ConfigError
    from ptycho_tasks.options import STAGES

    file = parse_config(path, config)
    variants = variants_of(file)
    rows: dict[str, dict[str, Row]] = {stage: {} for stage in STAGES}
    backends: set[tuple[Any, Path | None]] = set()
    for variant in variants:
        training, inference, refinement = create_payloads(file, variant)
        several = len(variants) > 1 or bool(variant.overrides)
        for row in _rows(training, inference, refinement, several=several, known=rows):
            if set(row["inputs"]) & set(row["outputs"]):
                raise ConfigError(
                    f"{training.origins.get('source.file', file.path.name)}: source.file: "
                    f"{row['inputs'][0]} would be overwritten by the fixture; set another `name`, "
                    "or move the scan"
                )
            other = rows[row["stage"]].setdefault(row["name"], row)
            if other["settings"] != row["settings"]:
                raise ConfigError(
                    f"{file.path.name}: the variants `{other['variant']}` and `{row['variant']}` "
                    f"would both write {row['outputs'][0]}; rename one or write its values "
                    "otherwise"
                )
        backends.add((training.backend, training.backend_source))
        if refinement is not None:
            backends.add((refinement.refiner, refinement.refiner_source))
    for stage in ("source", "fixture"):
        # One that all variants share needs no name of its own.
        if len(rows[stage]) == 1:
            next(iter(rows[stage].values()))["name"] = stage
    if len(rows["source"]) == 1:
        for row in rows["fixture"].values():
            row["after"] = "source"
    watched = {file for backend in backends for file in _modules(path.absolute().parent, *backend)}
    return [row for stage in rows.values() for row in stage.values()], sorted(watched)


def _rows(
    training: TrainingPayload,
    inference: InferencePayload,
    refinement: RefinementPayload | None,
    *,
    several: bool,
    known: Mapping[str, Mapping[str, Row]],
) -> Iterator[Row]:
    """The tasks of a variant, but for those that are known from another."""
    from ptycho_tasks.builds.stage_code import versions
    from ptycho_tasks.config.fields import canonical_json
    from ptycho_tasks.layout import BUNDLE_NAME, RESULTS, spelled

    root = training.root
    at = partial(spelled, root)
    backends: dict[str, Any] = dict.fromkeys(
        ("train", "infer"), (training.backend, training.backend_source)
    )
    if refinement is not None:
        backends["refine"] = (refinement.refiner, refinement.refiner_source)
    source_name = training.changed("source") or "default"
    scan = [at(path) for path in inference.scan_files.values()]
    bundle = f"{training.results('training')}/{BUNDLE_NAME}"
    fixture = at(training.fixture_file)

    def row(
        payload: Payload, stage: str, name: str, files: Callable[[], Files], after: str = ""
    ) -> Iterator[Row]:
        # To infer is to refine as well, where that is asked for: `infer` is both then.
        split = refinement is not None and stage in ("infer", "refine")
        task = f"{stage}:{name}" if several or split else stage
        settings = payload.settings(stage)
        text = canonical_json(settings)
        if task in known[stage] and known[stage][task]["settings"] == text:
            return
        doc, inputs, outputs = files()
        backend, local = backends.get(stage, (None, None))
        code = dict(_sources(root, stage))
        if backend is not None:
            code |= _sources(root, backend, local)
        yield {
            "name": task,
            "stage": stage,
            "variant": payload.variant.name,
            "doc": one_line(doc),
            "inputs": inputs,
            "outputs": outputs,
            "settings": text,
            "at_default": payload.at_default(settings),
            "versions": versions(stage, backend),
            "after": after,
            "sources": code,
        }

    def read() -> list[str]:
        return [at(path) for path in training.source_files.values()]

    def made(stage: str) -> list[str]:
        return [f"{training.results(stage)}/{name}" for name in RESULTS]

    def check_source() -> Files:
        scan = at(training.source_file)
        if training.source.simulate is not None:
            return f"simulate the scan {scan}", [], [scan]
        return f"check the scan {scan}", read(), []

    def cut() -> Files:
        doc = "cut the source to the frames to train on, with a sidecar that says which"
        return doc, read(), [fixture, at(training.sidecar_file)]

    def train() -> Files:
        doc = f"train the backend {training.backend.name} on the fixture; gives {BUNDLE_NAME}"
        return doc, [fixture], [bundle]

    def infer() -> Files:
        doc = "reconstruct the scan with the trained bundle; gives HDF5, pictures and metrics"
        return doc, [bundle, *scan], made("inference")

    yield from row(training, "source", source_name, check_source)
    fixture_name = training.changed("source", "fixture") or "default"
    after = f"source:{source_name}" if several else "source"
    yield from row(training, "fixture", fixture_name, cut, after)
    yield from row(training, "train", training.variant.name, train)
    yield from row(inference, "infer", inference.variant.name, infer)
    if refinement is not None:
        doc = f"go on from the reconstruction with the backend {refinement.refiner.name}"
        files = doc, [at(refinement.start_file), *scan], made("refinement")
        yield from row(refinement, "refine", refinement.variant.name, lambda: files)


@cached
def _sources(root: Path, what: Any, local: Path | None = None) -> dict[str, str]:
    """The source files that count for a stage of the core, or for a backend, by name."""
    from ptycho_tasks.builds.stage_code import backend_sources, core_sources

    found = core_sources(what) if isinstance(what, str) else backend_sources(what, local, root)
    return {name: str(path) for name, path in found.items()}


def _modules(root: Path, backend: Any, local: Path | None) -> Iterator[str]:
    """Files and folders that decide, by their presence and content, what a backend is."""
    from ptycho_tasks.backends import FOLDER

    yield str(root / FOLDER)
    if local is not None:
        # What one of them imports decides which others count.
        yield from _sources(root, backend, local).values()
        return
    module = sys.modules.get(type(backend).__module__)
    for file in {getattr(module, "__file__", None)} - {None}:
        assert file is not None
        yield file
        yield str(Path(file).parent)


def _key(root: Path, config: bytes) -> str:
    parts = [str(_FORMAT), sys.version, sys.prefix, str(root), _own_stamp()]
    return hashlib.sha256(config + "\0".join(parts).encode()).hexdigest()


def _own_stamp() -> str:
    """Another one after an upgrade of the core, or a change of its source."""
    return json.dumps(_stamps(_own_files(str(Path(__file__).parents[1]))))


def _own_files(folder: str) -> list[str]:
    """A folder of Python modules, and all modules and folders of modules in it."""
    found = [folder]
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                found.append(entry.path)
            elif entry.is_dir() and entry.name != "__pycache__":
                found += _own_files(entry.path)
    return found


def _stamps(paths: Mapping[str, Any] | list[str]) -> dict[str, Any]:
    """Size, modification time and inode of each path; None for one that is not there."""
    stamps: dict[str, Any] = {}
    for path in paths:
        try:
            stat = os.stat(path)  # noqa: PTH116 (asked for thousands of paths)
        except OSError:
            stamps[path] = None
        else:
            stamps[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return stamps
