"""From configuration to complete, checked requests: pure, and before anything heavy.

Each factory settles every value, remembers where it came from, and checks it. No array is
opened, no network library imported, nothing written. A wrong value costs milliseconds.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ptycho_tasks.backend import Backend
from ptycho_tasks.backends import BackendEntry, find_backend
from ptycho_tasks.config import (
    ONLY,
    Config,
    ConfigFile,
    Fact,
    Layers,
    SourceOptions,
    Variant,
    canonical_json,
    convert,
    facts,
    flatten,
    merge,
)
from ptycho_tasks.errors import BackendError
from ptycho_tasks.files import not_a_file
from ptycho_tasks.lock import STATE_DIR
from ptycho_tasks.options import ExecutionOptions, FixtureOptions, TrainingOptions
from ptycho_tasks.variants import label

BUNDLE_NAME = "wts.h5.zip"
RECONSTRUCTION = "reconstruction.h5"
AMPLITUDE = "reconstructed_amplitude.png"
PHASE = "reconstructed_phase.png"
METRICS = "metrics.json"


@dataclass(frozen=True)
class Settled:
    """Values after all layers, where each came from, and where the project's files lie."""

    root: Path
    config: Config
    values: Mapping[str, Any]
    """Dotted key path to plain value, for every leaf."""
    origins: Mapping[str, str]
    """Dotted key path to `override`, `command line`, `ptycho.yaml:LINE` or `default`."""
    facts: Mapping[str, Fact]
    """Dotted key path to what it affects, and its default."""
    variant: Variant

    @property
    def name(self) -> str:
        """What the project's files are named after."""
        return self.config.name

    def path(self, text: str) -> Path:
        """A path as the user wrote it: `~` expanded, relative to the project's folder."""
        return self.root / Path(text).expanduser()

    def missing(self, key: str) -> str | None:
        """What to say where a key names a file that is not there; None where all is well."""
        text = self.values[key]
        if text is None or (key == "inference.scan" and text in ("source", "fixture")):
            return None
        path = self.path(text)
        unfit = not_a_file(path)
        if unfit:
            return f"{self.origins[key]}: {key}: {path} {unfit}"
        if os.path.exists(path):  # noqa: PTH110 (Path.exists raises where a folder is closed)
            return None
        return f"{self.origins[key]}: {key}: there is no {path}"

    def settings(self, stage: str) -> dict[str, Any]:
        """Dotted key path to value, for all that decides the result of a stage besides its
        inputs and the code."""
        return {k: v for k, v in self.values.items() if stage in self._fact(k).affects}

    def at_default(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of some keys whose value is the default."""
        return tuple(key for key in keys if self.values[key] == self._fact(key).default)

    def _fact(self, key: str) -> Fact:
        # A mapping among the values has keys of its own.
        while key not in self.facts:
            key = key.rpartition(".")[0]
        return self.facts[key]


@dataclass(frozen=True)
class FixturePayload(Settled):
    """All that makes the source and the fixture."""

    @property
    def source(self) -> SourceOptions:
        """Where the scan comes from, and how to read it."""
        return self.config.source

    @property
    def fixture(self) -> FixtureOptions:
        """Which frames are taken."""
        return self.config.fixture

    @property
    def source_file(self) -> Path:
        """The scan: the user's file, or the simulated one."""
        if self.source.file is not None:
            return self.path(self.source.file)
        return self.root / "fixtures" / f"{self._named('source')}_source.npz"

    def changed(self, *sections: str) -> str:
        """What the variant changes in some sections, in one word; may be empty.

        Variants that change the same there share the files that are made of it.
        """
        split = [(*key.partition(".")[::2], value) for key, value in self.variant.overrides.items()]
        return label({rest: value for section, rest, value in split if section in sections})

    def _named(self, *sections: str) -> str:
        changed = self.changed(*sections)
        return f"{self.name}-{changed}" if changed else self.name

    @property
    def product_file(self) -> Path | None:
        """The Ptychodus product beside the scan, if any."""
        return None if self.source.product is None else self.path(self.source.product)

    @property
    def fixture_file(self) -> Path:
        """The fixture's NPZ."""
        return self.root / "fixtures" / f"{self._named('source', 'fixture')}.npz"

    @property
    def sidecar_file(self) -> Path:
        """The fixture's JSON sidecar."""
        return self.fixture_file.with_suffix(".json")


@dataclass(frozen=True)
class _BackendPayload(FixturePayload):
    backend: Backend
    training: TrainingOptions
    """The `training` section, typed by the backend."""
    backend_source: Path | None
    """The file of a local backend."""

    @property
    def execution(self) -> ExecutionOptions:
        """How and where to run."""
        return self.config.execution

    @property
    def model_dir(self) -> Path:
        """The folder that holds `wts.h5.zip`."""
        return self.root / "runs" / self.variant.name / "training"

    @property
    def bundle_file(self) -> Path:
        """The trained model."""
        return self.model_dir / BUNDLE_NAME


@dataclass(frozen=True)
class TrainingPayload(_BackendPayload):
    """All that training needs."""

    def work_dir(self, made_from: Mapping[str, Any]) -> Path:
        """The folder for checkpoints of trainings that differ in nothing but `epochs`.

        Args:
            made_from: settings, versions, sources and inputs of the training.
        """
        settings = {k: v for k, v in made_from["settings"].items() if k != "training.epochs"}
        text = canonical_json({**made_from, "settings": settings})
        return self.work_root / hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def work_root(self) -> Path:
        """Where the folders for checkpoints lie."""
        return self.root / STATE_DIR / "work" / self.variant.name

    def params(self, size: int) -> dict[str, Any]:
        """What `params.json` of the bundle holds: the settled values, also under the flat
        names that PtychoPINN uses.

        Args:
            size: N of the training scan.
        """
        training: dict[str, Any] = msgspec.to_builtins(self.training)
        fixture = self.fixture_file.relative_to(self.root).as_posix()
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
            "probe.trainable": False,
            "train_data_file_path": fixture,
        }
        return {
            "backend": self.backend.name,
            # What a backend has no option for has no flat name either.
            "flat": {name: value for name, value in flat.items() if value is not None},
            "training": training,
        }


@dataclass(frozen=True)
class InferencePayload(_BackendPayload):
    """All that inference needs."""

    @property
    def scan_file(self) -> Path:
        """The scan to reconstruct."""
        which = self.config.inference.scan
        if which == "source":
            return self.source_file
        return self.fixture_file if which == "fixture" else self.path(which)

    @property
    def output_dir(self) -> Path:
        """The folder of the reconstruction."""
        return self.root / "runs" / self.variant.name / "inference"

    @property
    def output_files(self) -> list[Path]:
        """The reconstruction's files."""
        return [self.output_dir / name for name in (RECONSTRUCTION, AMPLITUDE, PHASE, METRICS)]


def create_fixture_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
    variant: Variant = ONLY,
) -> FixturePayload:
    """Settle what makes the source and the fixture.

    Args:
        file: ptycho.yaml as read.
        overrides: dotted key path to value; wins over everything.
        command_line: likewise; wins over the variant and ptycho.yaml.
        variant: one of those that ptycho.yaml asks for; wins over the rest of it.

    Raises:
        ConfigError: one line with the origin, the key path and what was expected.
    """
    layers = merge(file, variant=variant, command_line=command_line, overrides=overrides)
    return FixturePayload(*_settle(layers, variant))


def create_training_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
    variant: Variant = ONLY,
) -> TrainingPayload:
    """Settle all that training needs; see `create_fixture_payload`.

    Raises:
        BackendError: the backend is unknown or cannot be loaded.
        ConfigError: a value is wrong.
    """
    layers = merge(file, variant=variant, command_line=command_line, overrides=overrides)
    return TrainingPayload(*_with_backend(layers, variant))


def create_inference_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
    variant: Variant = ONLY,
) -> InferencePayload:
    """Settle all that inference needs; see `create_training_payload`."""
    layers = merge(file, variant=variant, command_line=command_line, overrides=overrides)
    return InferencePayload(*_with_backend(layers, variant))


def _settle(layers: Layers, variant: Variant) -> tuple[Any, ...]:
    config = convert(layers, Config)
    values = flatten(config)
    origins = {key: layers.origins.get(key, "default") for key in values}
    return layers.file.root, config, values, origins, _facts(Config), variant


def _with_backend(layers: Layers, variant: Variant) -> tuple[Any, ...]:
    root, config, values, origins, known, _ = _settle(layers, variant)
    try:
        entry, backend = _backend(config.backend, root)
    except BackendError as error:
        raise BackendError(f"{layers.where('backend')}: {error}") from error
    options = convert(layers, backend.options_type, "training")
    training = flatten(options, "training")
    values = {k: v for k, v in values.items() if k.split(".")[0] != "training"} | training
    origins |= {key: layers.origins.get(key, "default") for key in training}
    return (
        root,
        config,
        values,
        {key: origins[key] for key in values},
        known | _facts(backend.options_type, "training"),
        variant,
        backend,
        options,
        entry.source,
    )


# A thousand variants name the same few backends and sections.
_facts = functools.cache(facts)


@functools.cache
def _backend(name: str, root: Path) -> tuple[BackendEntry, Backend]:
    entry = find_backend(name, root)
    return entry, entry.load()
