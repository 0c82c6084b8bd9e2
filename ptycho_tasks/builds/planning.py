"""The rows of a project, from its ptycho.yaml."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_tasks.backends import KIND
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.stage_code import (
    acting_backend,
    list_backend_sources,
    list_reader_sources,
    list_sources,
    list_versions,
)
from ptycho_tasks.config.document import ConfigFile, parse_config
from ptycho_tasks.config.factories import Payloads, create_payloads, list_variants
from ptycho_tasks.config.fields import canonical_json
from ptycho_tasks.config.layers import Variant, merge
from ptycho_tasks.config.payload import Payload, RefinementPayload
from ptycho_tasks.config.scans import Stray, read_scans
from ptycho_tasks.config.sections import Config
from ptycho_tasks.errors import ConfigError, one_line
from ptycho_tasks.layout import BUNDLE_NAME, RESULTS, project_path
from ptycho_tasks.options import STAGES
from ptycho_tasks.scans import recognition
from ptycho_tasks.scans.recognition import ReaderEntry
from ptycho_tasks.system.cache import cached


class Files(NamedTuple):
    """What a task does, what it reads, by role, and what it makes."""

    doc: str
    inputs: dict[str, str]
    outputs: list[str]


class Plan(NamedTuple):
    """What a ptycho.yaml comes to."""

    rows: list[Row]
    watched: list[str]
    """The files and folders besides ptycho.yaml that decide the rows."""
    store: str
    """The folder of results that is shared with others; empty where there is none."""
    strays: tuple[Stray, ...]
    """Files that were left out."""


def make_plan(
    path: Path,
    config: bytes,
    changes: Mapping[str, str] | None = None,
    *,
    skips_strays: bool = False,
) -> Plan:
    """Make the rows of a project.

    Args:
        path: of ptycho.yaml.
        config: its bytes.
        changes: KEY=VALUE of the command line: then the rows are those of this one-off variant.
        skips_strays: whether files that cannot be told from other scans are left out.

    Raises:
        ConfigError: something in ptycho.yaml is wrong.
    """
    file = parse_config(path, config, skips_strays=skips_strays)
    planner = _Planner(file, list_variants(file, changes))
    for variant in planner.variants:
        planner.add_variant(variant)
    return planner.finish()


class _Planner:
    """Gathers the rows of all variants and scans."""

    def __init__(self, file: ConfigFile, variants: list[Variant]) -> None:
        self.file = file
        self.variants = variants
        self._has_variants = len(self.variants) > 1 or bool(self.variants[0].overrides)
        self._rows: dict[str, dict[str, Row]] = {stage: {} for stage in STAGES}
        self._writers: dict[str, Row] = {}
        self._cut: dict[tuple[Any, ...], Config] = {}
        """Sections whose source and fixture have rows; kept, so that no other gets their id."""
        self._watched: set[str] = set()
        self._backends: set[tuple[Any, Path | None]] = set()
        self._store = ""
        self._strays: dict[Stray, None] = {}

    def add_variant(self, variant: Variant) -> None:
        """Add the tasks of a variant: the training, and those of each scan."""
        scans = read_scans(merge(self.file, variant))
        self._watched |= {*scans.watched}
        self._strays |= dict.fromkeys(scans.strays)
        for scan in scans.names:
            payloads = create_payloads(self.file, variant, scan)
            own = _Rows(payloads, has_variants=self._has_variants)
            # A thousand variants share these sections, as one object each.
            config = payloads.training.config
            sections = scan, id(config.source), id(config.fixture), scan in scans.learned
            if sections not in self._cut:
                self._cut[sections] = config
                self._add(own.source())
                if scan in scans.learned:
                    self._add(own.fixture())
            if scan in scans.inferred:
                self._add(own.infer())
                if payloads.refinement is not None:
                    self._add(own.refine(payloads.refinement))
        if scans.names != (None,):
            payloads = create_payloads(self.file, variant)
        self._add(_Rows(payloads, has_variants=self._has_variants).train())
        self._note_code(payloads)

    def _note_code(self, payloads: Payloads) -> None:
        for payload in filter(None, (payloads.training, payloads.refinement)):
            self._backends.add((payload.backend, payload.backend_source))
        shared = payloads.training.config.store
        self._store = "" if shared is None else self._check_store(payloads.training.path(shared))

    def _check_store(self, path: Path) -> str:
        """The folder of shared results, if it can be one.

        Raises:
            ConfigError: it is a file, or a folder that holds the project's own files.
        """
        store, root = os.path.normpath(path), os.path.normpath(self.file.root)
        own = [root, *(os.path.join(root, name) for name in ("runs", "fixtures", "backends"))]  # noqa: PTH118
        problem = "is a file" if os.path.isfile(store) else ""  # noqa: PTH113
        if store in own or any(store.startswith(f"{folder}{os.sep}") for folder in own[1:]):
            problem = "holds the project's own files"
        if problem:
            raise ConfigError(
                f"{self.file.where('store')}: store: {store} {problem}; name a folder"
            )
        return store

    def _add(self, row: Row) -> None:
        """Add a task that no other variant has.

        Raises:
            ConfigError: it would write what it reads, or what another one writes.
        """
        for role, path in row.inputs.items():
            if path in row.outputs and row.stage == "fixture":
                where = self.file.where("source.file")
                raise ConfigError(
                    f"{where}: source.file: {path} would be overwritten by the fixture; set "
                    "another `name`, or move the scan"
                )
            if path in row.outputs:
                raise ConfigError(
                    f"{self.file.where(role)}: {role}: {path} is what the task itself makes; copy "
                    "it elsewhere, and name the copy"
                )
        known = self._rows[row.stage].setdefault(row.name, row)
        for path in row.outputs or [row.name]:
            other = self._writers.setdefault(path, known)
            if (other.name, other.settings, other.inputs) != (row.name, row.settings, row.inputs):
                names = dict.fromkeys(f"`{one.scan or one.variant}`" for one in (other, row))
                raise ConfigError(
                    f"{self.file.path.name}: {' and '.join(names)} would both write {path}; "
                    "rename one or write its values otherwise"
                )

    def finish(self) -> Plan:
        """All rows, each after those that make its inputs."""
        rows = self._rows
        for stage in ("source", "fixture"):
            # One that all variants share needs no name of its own.
            if [row.scan for row in rows[stage].values()] == [""]:
                rows[stage] = {n: row._replace(name=stage) for n, row in rows[stage].items()}
        if [row.name for row in rows["source"].values()] == ["source"]:
            rows["fixture"] = {
                n: row._replace(after="source") for n, row in rows["fixture"].items()
            }
        root = self.file.path.absolute().parent
        self._watched.add(str(root / recognition.KIND.folder))
        self._watched |= {*map(str, list_reader_sources(root).values())}
        for backend in self._backends:
            self._watched |= {*_modules(root, *backend)}
        every = [row for stage in rows.values() for row in stage.values()]
        merged = [*_merge_equal(every)]
        return Plan(merged, sorted(self._watched), self._store, tuple(self._strays))


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


class _Rows:
    """The rows of one variant and scan."""

    def __init__(self, payloads: Payloads, *, has_variants: bool) -> None:
        self.training, self.inference, self.refinement = payloads
        self._has_variants = has_variants
        """Whether there are other variants, so that tasks have the variant's name in theirs."""
        self._variant = self.training.variant.name if has_variants else ""
        self._scan = self.training.scan or ""

    def source(self) -> Row:
        """To simulate or check the scan."""
        scan = self._path(self.training.source_file)
        if self.training.source.simulate is not None:
            files = Files(f"simulate the scan {scan}", {}, [scan])
        else:
            inputs = self._paths(self.training.source_files)
            files = Files(f"check the scan {scan}", inputs, [])
        return self._create(self._name_source(), "source", self.training, files)

    def fixture(self) -> Row:
        """To cut the fixture."""
        label = self.training.label_changes("source", "fixture")
        files = Files(
            "cut the source to the frames to train on, with a sidecar that says which",
            self._paths(self.training.source_files),
            [self._path(self.training.fixture_file), self._path(self.training.sidecar_file)],
        )
        row = self._create(self._name("fixture", label), "fixture", self.training, files)
        return row._replace(after=self._name_source())

    def train(self) -> Row:
        """To train, on all scans that are learned from."""
        fixtures = self.training.training_files
        what = "the fixture" if len(fixtures) == 1 else f"{len(fixtures)} fixtures"
        files = Files(
            f"train the backend {self.training.backend.name} on {what}; gives {BUNDLE_NAME}",
            self._paths(self.training.input_files),
            [self._bundle()],
        )
        name = f"train:{self._variant}" if self._has_variants else "train"
        return self._create(name, "train", self.training, files)

    def infer(self) -> Row:
        """To reconstruct the scan."""
        files = Files(
            "reconstruct the scan with the trained bundle; gives HDF5, pictures and metrics",
            {"bundle": self._bundle(), **self._paths(self.inference.scan_files)},
            self._results("inference"),
        )
        row = self._create(self._name_result("infer"), "infer", self.inference, files)
        # The check of a scan that is learned from comes before its fixture.
        return row._replace(after=self._name_source()) if self._scan else row

    def refine(self, refinement: RefinementPayload) -> Row:
        """To go on from the reconstruction."""
        start = self._path(refinement.start_file)
        files = Files(
            f"go on from the reconstruction with the backend {refinement.backend.name}",
            {"reconstruction": start, **self._paths(self.inference.scan_files)},
            self._results("refinement"),
        )
        return self._create(self._name_result("refine"), "refine", refinement, files)

    def _name_source(self) -> str:
        return self._name("source", self.training.label_changes("source"))

    def _name(self, stage: str, label: str) -> str:
        """The name of a task that variants share, if they change the same in it."""
        parts = [part for part in (label, self._scan) if part]
        if not parts and self._has_variants:
            parts = ["default"]
        return ":".join([stage, "/".join(parts)]) if parts else stage

    def _name_result(self, stage: str) -> str:
        # To infer is to refine as well, where that is asked for: `infer` is both then.
        has_parts = self._has_variants or (self.refinement is not None and not self._scan)
        variant = self.training.variant.name if has_parts else ""
        parts = [part for part in (variant, self._scan) if part]
        return ":".join([stage, "/".join(parts)]) if parts else stage

    def _create(self, name: str, stage: str, payload: Payload, files: Files) -> Row:
        backend = acting_backend(stage, payload.backend)
        sources = _sources(payload.root, stage, backend, payload.backend_source, payload.reader)
        settings = payload.settings(stage)
        return Row(
            name=name,
            stage=stage,
            variant=payload.variant.name,
            scan=payload.scan or "",
            doc=one_line(files.doc),
            inputs=files.inputs,
            outputs=files.outputs,
            after="",
            settings=canonical_json(settings),
            at_default=payload.keys_at_default(settings),
            versions=list_versions(stage, backend, payload.reader),
            sources=sources,
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
def _sources(
    root: Path, stage: str, backend: Any, local: Path | None, reader: ReaderEntry | None
) -> dict[str, str]:
    """The source files that count for a stage, by name: one mapping for all rows of a kind."""
    sources = list_sources(stage, backend, local, root, reader)
    return {name: str(path) for name, path in sources.items()}


def _modules(root: Path, backend: Any, local: Path | None) -> Iterator[str]:
    """Files and folders that decide, by their presence and content, what a backend is."""
    yield str(root / KIND.folder)
    if local is not None:
        # What one of them imports decides which others count.
        yield from map(str, list_backend_sources(backend, local, root).values())
        return
    module = sys.modules.get(type(backend).__module__)
    for file in {getattr(module, "__file__", None)} - {None}:
        assert file is not None
        yield file
        yield str(Path(file).parent)
