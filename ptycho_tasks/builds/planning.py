"""The rows of a project, from its ptycho.yaml."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_tasks.backends import FOLDER
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.stage_code import list_backend_sources, list_core_sources, list_versions
from ptycho_tasks.config.document import parse_config
from ptycho_tasks.config.factories import create_payloads, list_variants
from ptycho_tasks.config.fields import canonical_json
from ptycho_tasks.config.payload import (
    InferencePayload,
    Payload,
    RefinementPayload,
    TrainingPayload,
)
from ptycho_tasks.errors import ConfigError, one_line
from ptycho_tasks.layout import BUNDLE_NAME, RESULTS, project_path
from ptycho_tasks.options import STAGES
from ptycho_tasks.system.cache import cached


class Files(NamedTuple):
    """What a task does, what it reads, by role, and what it makes."""

    doc: str
    inputs: dict[str, str]
    outputs: list[str]


def make_rows(path: Path, config: bytes) -> tuple[list[Row], list[str], str]:
    """The tasks, the files and folders besides ptycho.yaml that decide them, and the folder of
    results that is shared with others.

    Raises:
        ConfigError: something in ptycho.yaml is wrong.
    """
    file = parse_config(path, config)
    variants = list_variants(file)
    rows: dict[str, dict[str, Row]] = {stage: {} for stage in STAGES}
    backends: set[tuple[Any, Path | None]] = set()
    for variant in variants:
        training, inference, refinement = create_payloads(file, variant)
        has_siblings = len(variants) > 1 or bool(variant.overrides)
        own = _RowsOfVariant(training, inference, refinement, has_siblings=has_siblings)
        for row in own.create(rows):
            if set(row.inputs.values()) & set(row.outputs):
                raise ConfigError(
                    f"{training.origins.get('source.file', file.path.name)}: source.file: "
                    f"{row.inputs['scan']} would be overwritten by the fixture; set another "
                    "`name`, or move the scan"
                )
            other = rows[row.stage].setdefault(row.name, row)
            if other.settings != row.settings:
                raise ConfigError(
                    f"{file.path.name}: the variants `{other.variant}` and `{row.variant}` "
                    f"would both write {row.outputs[0]}; rename one or write its values otherwise"
                )
        backends.add((training.backend, training.backend_source))
        if refinement is not None:
            backends.add((refinement.backend, refinement.backend_source))
    for stage in ("source", "fixture"):
        # One that all variants share needs no name of its own.
        if len(rows[stage]) == 1:
            rows[stage] = {name: row._replace(name=stage) for name, row in rows[stage].items()}
    if len(rows["source"]) == 1:
        rows["fixture"] = {
            name: row._replace(after="source") for name, row in rows["fixture"].items()
        }
    watched = {file for backend in backends for file in _modules(path.absolute().parent, *backend)}
    every = [row for stage in rows.values() for row in stage.values()]
    store = "" if training.config.store is None else str(training.path(training.config.store))
    return [*_merge_equal(every)], sorted(watched), store


def _merge_equal(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, of which those that would make the same are one with several names.

    Args:
        rows: each after those that make its inputs.
    """
    first: dict[tuple[Any, ...], list[Row]] = {}
    shown: dict[str, str] = {}
    for row in rows:
        # What two equal tasks make is equal, wherever it lies.
        inputs = tuple((role, shown.get(path, path)) for role, path in row.inputs.items())
        code = id(row.sources), tuple(row.versions.items())
        group = first.setdefault((row.stage, row.settings, inputs, code), [])
        group.append(row)
        shown |= zip(row.outputs, group[0].outputs, strict=True)
    for group in first.values():
        # The shortest label names what differs least from the project without variants.
        one, *others = sorted(group, key=lambda row: len(row.name))
        yield one._replace(
            outputs=[path for row in (one, *others) for path in row.outputs],
            aliases=[row.name for row in others],
        )


class _RowsOfVariant:
    """The rows of one variant."""

    def __init__(
        self,
        training: TrainingPayload,
        inference: InferencePayload,
        refinement: RefinementPayload | None,
        *,
        has_siblings: bool,
    ) -> None:
        self.training, self.inference, self.refinement = training, inference, refinement
        self.has_siblings = has_siblings
        """Whether there are other variants, so that tasks have the variant's name in theirs."""

    def create(self, known: Mapping[str, Mapping[str, Row]]) -> Iterator[Row]:
        """All rows, but for those that are known from another variant."""
        training, refinement = self.training, self.refinement
        source = training.label_changes("source") or "default"
        fixture = training.label_changes("source", "fixture") or "default"
        steps: list[tuple[str, str, Payload, Callable[[], Files]]] = [
            ("source", source, training, self._check_source),
            ("fixture", fixture, training, self._cut),
            ("train", training.variant.name, training, self._train),
            ("infer", training.variant.name, self.inference, self._infer),
        ]
        if refinement is not None:
            refine = partial(self._refine, refinement)
            steps.append(("refine", training.variant.name, refinement, refine))
        for stage, name, payload, list_files in steps:
            # To infer is to refine as well, where that is asked for: `infer` is both then.
            is_part = refinement is not None and stage in ("infer", "refine")
            task = f"{stage}:{name}" if self.has_siblings or is_part else stage
            text = canonical_json(payload.settings(stage))
            other = known[stage].get(task)
            if other is None or other.settings != text:
                after = f"source:{source}" if self.has_siblings else "source"
                row = self._create(task, stage, payload, list_files(), text)
                yield row._replace(after=after) if stage == "fixture" else row

    def _create(self, name: str, stage: str, payload: Payload, files: Files, settings: str) -> Row:
        # Before the training, no backend has a part in what is made.
        backend = None if stage in ("source", "fixture") else payload.backend
        sources = _sources(payload.root, stage, backend, payload.backend_source)
        return Row(
            name=name,
            stage=stage,
            variant=payload.variant.name,
            doc=one_line(files.doc),
            inputs=files.inputs,
            outputs=files.outputs,
            after="",
            settings=settings,
            at_default=payload.keys_at_default(payload.settings(stage)),
            versions=list_versions(stage, backend),
            sources=sources,
        )

    def _check_source(self) -> Files:
        scan = self._path(self.training.source_file)
        if self.training.source.simulate is not None:
            return Files(f"simulate the scan {scan}", {}, [scan])
        return Files(f"check the scan {scan}", self._paths(self.training.source_files), [])

    def _cut(self) -> Files:
        return Files(
            "cut the source to the frames to train on, with a sidecar that says which",
            self._paths(self.training.source_files),
            [self._path(self.training.fixture_file), self._path(self.training.sidecar_file)],
        )

    def _train(self) -> Files:
        return Files(
            f"train the backend {self.training.backend.name} on the fixture; gives {BUNDLE_NAME}",
            self._paths(self.training.training_files),
            [self._bundle()],
        )

    def _infer(self) -> Files:
        return Files(
            "reconstruct the scan with the trained bundle; gives HDF5, pictures and metrics",
            {"bundle": self._bundle(), **self._paths(self.inference.scan_files)},
            self._results("inference"),
        )

    def _refine(self, refinement: RefinementPayload) -> Files:
        start = self._path(refinement.start_file)
        return Files(
            f"go on from the reconstruction with the backend {refinement.backend.name}",
            {"reconstruction": start, **self._paths(self.inference.scan_files)},
            self._results("refinement"),
        )

    def _path(self, path: Path) -> str:
        return project_path(self.training.root, path)

    def _paths(self, files: Mapping[str, Path]) -> dict[str, str]:
        return {role: self._path(path) for role, path in files.items()}

    def _bundle(self) -> str:
        return f"{self.training.results_folder('training')}/{BUNDLE_NAME}"

    def _results(self, folder: str) -> list[str]:
        return [f"{self.training.results_folder(folder)}/{name}" for name in RESULTS]


@cached
def _sources(root: Path, stage: str, backend: Any, local: Path | None) -> dict[str, str]:
    """The source files that count for a stage, by name, those of its backend included."""
    sources = dict(list_core_sources(stage))
    if backend is not None:
        sources |= list_backend_sources(backend, local, root)
    return {name: str(path) for name, path in sources.items()}


def _modules(root: Path, backend: Any, local: Path | None) -> Iterator[str]:
    """Files and folders that decide, by their presence and content, what a backend is."""
    yield str(root / FOLDER)
    if local is not None:
        # What one of them imports decides which others count.
        yield from map(str, list_backend_sources(backend, local, root).values())
        return
    module = sys.modules.get(type(backend).__module__)
    for file in {getattr(module, "__file__", None)} - {None}:
        assert file is not None
        yield file
        yield str(Path(file).parent)
