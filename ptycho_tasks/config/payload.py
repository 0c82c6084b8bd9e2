"""Payloads: all that a stage needs to know before it opens an array.

A payload is pure. It holds settled values, the origin of each, the backend that acts, and the
paths of the files. `config.factories` makes payloads.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from ptycho_tasks.backend import Backend
from ptycho_tasks.config.facts import Facts
from ptycho_tasks.config.layers import Variant
from ptycho_tasks.config.sections import Config, SourceOptions
from ptycho_tasks.config.variants import make_label
from ptycho_tasks.layout import (
    BUNDLE_NAME,
    CHECKPOINTS,
    FILES_BESIDE,
    FIXTURE_NAME,
    LOGS,
    OF_EVERY_SCAN,
    RECONSTRUCTION,
    RESULTS,
    names_file,
    project_path,
)
from ptycho_tasks.options import ExecutionOptions, FixtureOptions, TrainingOptions
from ptycho_tasks.scans.recognition import ReaderEntry
from ptycho_tasks.system.files import find_file_problem, find_zip_problem
from ptycho_tasks.system.lock import STATE_DIR


@dataclass(frozen=True)
class Folders:
    """The folders that a command line names; None where the project's own are meant."""

    model_dir: Path | None = None
    """Holds the bundle."""
    output_dir: Path | None = None
    """Gets the reconstruction."""


_CHOICE = "fixture.scans"
"""It says which fixtures are made and learned from, and changes none of them."""

PROJECT_FOLDERS = Folders()
"""What doit takes: the project's own."""


@dataclass(frozen=True)
class Payload:
    """Values after all layers, where each came from, and where the project's files lie."""

    section: ClassVar[str] = "training"
    """The section of ptycho.yaml that holds the options of the backend that acts."""

    root: Path
    config: Config
    values: Mapping[str, Any]
    """Dotted key path to plain value, for every leaf."""
    origins: Mapping[str, str]
    """Dotted key path to `override`, `command line`, `ptycho.yaml:LINE` or `default`."""
    facts: Facts
    """Dotted key path to what it affects, and its default."""
    variant: Variant
    scan: str | None
    """The name of the scan that `source` is of. None where ptycho.yaml names no `source.files`, and
    for a payload that is of all of them, as to train takes."""
    training_scans: tuple[str | None, ...]
    """The scans that are learned from, by name, in the order of `fixture.scans`."""
    backend: Backend
    """The backend that acts."""
    backend_source: Path | None
    """Its file, where it is a local one."""
    options: TrainingOptions
    """Its options: what stands under `section`, typed by it."""
    execution: ExecutionOptions
    """How to run, typed by it."""
    folders: Folders
    reader: ReaderEntry | None = field(default=None, compare=False, kw_only=True)
    """What `source.reader` names."""
    files_read: dict[str, str] = field(default_factory=dict, compare=False, kw_only=True)
    """Files that hold a part of the scan besides those that are named, by `project_path`, to
    sha256; the stage that reads the scan fills it."""
    staging: Path | None = field(default=None, compare=False, kw_only=True)
    """The folder where outputs are written that are put in their places later."""

    @property
    def is_of_project(self) -> bool:
        """Whether all files lie in the project's own places, and not where a command line says."""
        return self.folders == PROJECT_FOLDERS

    @property
    def name(self) -> str:
        """What the project's files are named after."""
        return self.config.name

    def path(self, text: str) -> Path:
        """A path as the user wrote it: `~` expanded, relative to the project's folder."""
        return self.root / os.path.expanduser(text)  # noqa: PTH111 (Path's raises for some)

    def target(self, path: Path, name: str = "") -> Path:
        """Where a file is written that is to lie at `path`; a staging folder knows it by `name`,
        or by its own."""
        return path if self.staging is None else self.staging / (name or path.name)

    def display_path(self, path: Path) -> str:
        """A path for messages: relative where it lies in the project's folder."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def describe_missing(self, key: str) -> str | None:
        """A message if a key names a file that is not there, or a bundle that is none at first
        sight; None if all is well."""
        text = self.values[key]
        if text is None or (key == "inference.scan" and text in ("source", "fixture")):
            return None
        section, _, name = key.partition(".")
        if section == "source" and name in FILES_BESIDE and not names_file(name, text):
            return None
        path = self.backend_files.get(key) or self.path(text)
        problem = find_file_problem(path)
        is_there = os.path.exists(path)  # noqa: PTH110 (Path.exists raises where a folder is closed)
        if not problem and is_there and key in self.backend_files and path.name == BUNDLE_NAME:
            problem = find_zip_problem(path)
        what = f"scan `{self.scan}`: {key}" if self.scan and key.startswith("source.") else key
        if problem:
            return f"{self.origins[key]}: {what}: {path} {problem}"
        if is_there:
            return None
        if os.path.isfile(path.parent):  # noqa: PTH113
            return (
                f"{self.origins[key]}: {what}: there is no {path}: {path.parent} is a file that is "
                f"not called {path.name}, nor a folder that holds one"
            )
        near = difflib.get_close_matches(text, self.facts.find(key).words, n=1)
        hint = f" (did you mean `{near[0]}`?)" if near else ""
        return f"{self.origins[key]}: {what}: there is no {path}{hint}"

    def settings(self, stage: str) -> dict[str, Any]:
        """Dotted key path to value, for all that decides the result of a stage besides its
        inputs and the code."""
        keys = self.facts.select_keys(stage, tuple(self.values))
        settings = {key: self.values[key] for key in keys}
        if settings.get("inference.scan", "fixture") != "fixture":
            settings["inference.scan"] = "source"  # of a file, the content decides
        files = [*self.backend_files, *(f"source.{name}" for name in self.source.files_beside)]
        settings |= {key: "a file" for key in files if key in settings}
        return settings

    def keys_at_default(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Those keys of `settings` whose value is the default."""
        default = self.facts.default
        return tuple([key for key, value in settings.items() if value == default(key)])

    @functools.cached_property
    def backend_files(self) -> dict[str, Path]:
        """The files besides scans that the backend reads, by the key that decides each."""
        return {}

    @property
    def source(self) -> SourceOptions:
        """Where the scan comes from, and how to read it."""
        return self.config.source

    @property
    def fixture(self) -> FixtureOptions:
        """Which frames are taken."""
        return self.config.fixture

    @functools.cached_property
    def source_file(self) -> Path:
        """The scan: the user's file, or the simulated one."""
        if self.source.file is not None:
            return self.path(self.source.file)
        stem = self._file_stem(self.scan, "source")
        return self.root.joinpath("fixtures", f"{stem}_source.npz")

    @property
    def source_files(self) -> dict[str, Path]:
        """The files that hold the scan, by what they are."""
        beside = self.source.files_beside.items()
        return {"scan": self.source_file, **{name: self.path(text) for name, text in beside}}

    @property
    def reading(self) -> dict[str, Any]:
        """How a scan is read, by the names that `readers.read_scan` gives it."""
        return self.source.reading(self.path)

    def label_changes(self, *sections: str) -> str:
        """What the variant changes in some sections, as one word; empty if it changes nothing.

        Variants that change the same there share the files that are made of it.
        """
        changed = self.variant.changes.items()
        parts = [(*key.partition(".")[::2], value) for key, value in changed if key != _CHOICE]
        changes = {rest: value for section, rest, value in parts if section in sections}
        return make_label(changes) if changes else ""

    def _file_stem(self, scan: str | None, *sections: str) -> str:
        return "-".join(filter(None, (self.name, self.label_changes(*sections), scan)))

    @property
    def product_file(self) -> Path | None:
        """The Ptychodus product beside the scan, if any."""
        return None if self.source.product is None else self.path(self.source.product)

    @functools.cached_property
    def fixture_file(self) -> Path:
        """The fixture's NPZ."""
        return self._fixture_path(self.scan)

    def _fixture_path(self, scan: str | None) -> Path:
        return self.root.joinpath("fixtures", f"{self._file_stem(scan, 'source', 'fixture')}.npz")

    @property
    def sidecar_file(self) -> Path:
        """The fixture's JSON sidecar."""
        return self.fixture_file.with_suffix(".json")

    @property
    def model_dir(self) -> Path:
        """The folder that holds `wts.h5.zip`."""
        return self.folders.model_dir or self._results_path("training")

    @property
    def bundle_file(self) -> Path:
        """The trained model."""
        return self.model_dir / BUNDLE_NAME

    def results_folder(self, stage: str) -> str:
        """The folder for the results of `training`, `inference` or `refinement`, in the project."""
        of_scan = f"/{self.scan}" if self.scan and stage != "training" else ""
        return f"runs/{self.variant.name}/{stage}{of_scan}"

    def _results_path(self, stage: str) -> Path:
        return self.root / self.results_folder(stage)


@dataclass(frozen=True)
class TrainingPayload(Payload):
    """All that training needs."""

    def settings(self, stage: str) -> dict[str, Any]:
        """As of any payload. A command trains on a scan and not on a fixture: then the settings
        that say how the scan is read and cut count too."""
        own = super().settings(stage)
        if stage == "train" and not self.is_of_project:
            own |= super().settings("fixture")
        return own

    def work_dir(self, key: str) -> Path:
        """The folder for checkpoints of trainings that differ in nothing but `epochs`.

        Args:
            key: sha256 of what decides them, but for `epochs`.
        """
        return self.work_root / key[:16]

    @property
    def training_files(self) -> dict[str, Path]:
        """The files to train on, by what they are: the fixtures, `fixture`, `fixture 2` and so on,
        which a scan's name does not change; for a command the scan."""
        if not self.is_of_project:
            return self.source_files
        paths = map(self._fixture_path, self.training_scans)
        return {f"fixture {n}" if n > 1 else "fixture": path for n, path in enumerate(paths, 1)}

    @functools.cached_property
    def backend_files(self) -> dict[str, Path]:
        """See `Payload`."""
        list_files = getattr(self.backend, "files", None)
        files = {} if list_files is None else list_files(self.options)
        return {f"{self.section}.{name}": self.path(str(path)) for name, path in files.items()}

    @property
    def input_files(self) -> dict[str, Path]:
        """All files that a training reads, by what they are."""
        return {**self.training_files, **self.backend_files}

    @property
    def log_dir(self) -> Path:
        """The folder of logs that the user asked for."""
        return self.model_dir / LOGS

    @property
    def checkpoints_dir(self) -> Path:
        """The folder of kept checkpoints, each a bundle in a folder of its name."""
        return self.model_dir / CHECKPOINTS

    @property
    def work_root(self) -> Path:
        """Where the folders for checkpoints lie."""
        if self.folders.model_dir is not None:
            return self.folders.model_dir / STATE_DIR / "training"  # `work` is a project's
        return self.root / STATE_DIR / "work" / self.variant.name

    def params(self, size: int) -> dict[str, Any]:
        """What `params.json` of the bundle holds: the settled values, also under the flat
        names that PtychoPINN uses.

        Args:
            size: N of the training scan.
        """
        training: dict[str, Any] = msgspec.to_builtins(self.options)
        # A project's bundle may be another's too, so that it says what is the same in both.
        read = FIXTURE_NAME if self.is_of_project else project_path(self.root, self.source_file)
        gridsize = training.get("gridsize", 1)
        flat = {
            "N": size,
            "batch_size": training.get("batch_size"),
            "gridsize": gridsize,
            "intensity_scale.trainable": False,
            "model_type": training.get("model_type", self.backend.name),
            "n_groups": training.get("n_groups"),
            "nepochs": training.get("epochs"),
            "object.big": gridsize > 1,
            "probe.trainable": training.get("probe") == "refined"
            or training.get("refine_probe", False),
            "train_data_file_path": read,
        }
        return {
            "backend": self.backend.name,
            # What a backend has no option for has no flat name either.
            "flat": {name: value for name, value in flat.items() if value is not None},
            "training": training,
        }


@dataclass(frozen=True)
class InferencePayload(Payload):
    """All that inference needs."""

    @functools.cached_property
    def scan_file(self) -> Path:
        """The scan to reconstruct."""
        which = self.config.inference.scan
        if which == "source":
            return self.source_file
        return self.fixture_file if which == "fixture" else self.path(which)

    @property
    def scan_files(self) -> dict[str, Path]:
        """The files that hold it, by what they are."""
        if self.scan_file == self.source_file:
            return self.source_files
        beside = self.source.files_beside.items()
        shared = {name: self.path(text) for name, text in beside if name in OF_EVERY_SCAN}
        return {"scan": self.scan_file, **shared}

    @property
    def output_dir(self) -> Path:
        """The folder of the reconstruction."""
        return self.folders.output_dir or self._results_path("inference")

    @property
    def output_files(self) -> list[Path]:
        """The reconstruction's files."""
        return [self.output_dir / name for name in RESULTS]


@dataclass(frozen=True)
class RefinementPayload(InferencePayload):
    """All that it takes to go on from a reconstruction; the backend is that of `refine`."""

    section: ClassVar[str] = "refine"

    @property
    def start_file(self) -> Path:
        """The reconstruction to start from."""
        return self._results_path("inference") / RECONSTRUCTION

    @property
    def output_dir(self) -> Path:
        """The folder of the refined reconstruction."""
        return self._results_path("refinement")
