"""From configuration to complete, checked requests: pure, and before anything heavy.

Each factory settles every value, remembers where it came from, and checks it. No array is
opened, no network library imported, nothing written. A wrong value costs milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ptycho_tasks.backend import Backend
from ptycho_tasks.backends import find_backend
from ptycho_tasks.config import (
    Config,
    ConfigFile,
    SourceOptions,
    canonical_json,
    convert,
    flatten,
    merge,
)
from ptycho_tasks.errors import BackendError
from ptycho_tasks.options import ExecutionOptions, FixtureOptions, TrainingOptions

DEFAULT_VARIANT = "default"


@dataclass(frozen=True)
class Settled:
    """Values after all layers, where each came from, and where the project's files lie."""

    root: Path
    config: Config
    values: Mapping[str, Any]
    """Dotted key path to plain value, for every leaf."""
    origins: Mapping[str, str]
    """Dotted key path to `override`, `command line`, `ptycho.yaml:LINE` or `default`."""

    @property
    def name(self) -> str:
        """What the project's files are named after."""
        return self.config.name

    def path(self, text: str) -> Path:
        """A path as the user wrote it: `~` expanded, relative to the project's folder."""
        return self.root / Path(text).expanduser()


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
        return self.root / "fixtures" / f"{self.name}_source.npz"

    @property
    def product_file(self) -> Path | None:
        """The Ptychodus product beside the scan, if any."""
        return None if self.source.product is None else self.path(self.source.product)

    @property
    def fixture_file(self) -> Path:
        """The fixture's NPZ."""
        return self.root / "fixtures" / f"{self.name}.npz"

    @property
    def sidecar_file(self) -> Path:
        """The fixture's JSON sidecar."""
        return self.fixture_file.with_suffix(".json")

    def reading(self) -> dict[str, Any]:
        """How the source is read, as far as it affects the result."""
        plain: dict[str, Any] = msgspec.to_builtins(self.source)
        return {k: v for k, v in plain.items() if k not in {"file", "simulate", "product"}}

    def source_identity(self) -> dict[str, Any]:
        """What decides whether the source is stale."""
        return {"simulate": msgspec.to_builtins(self.source.simulate), "reading": self.reading()}

    def fixture_identity(self) -> dict[str, Any]:
        """What decides, with the source's content, whether the fixture is stale."""
        return {
            "source_name": self.source_file.name,
            "reading": self.reading(),
            "fixture": msgspec.to_builtins(self.fixture),
        }


@dataclass(frozen=True)
class _BackendPayload(FixturePayload):
    backend: Backend
    training: TrainingOptions
    """The `training` section, typed by the backend."""
    code: str | None
    """sha256 of a local backend's file."""
    variant: str

    @property
    def execution(self) -> ExecutionOptions:
        """How and where to run."""
        return self.config.execution

    @property
    def model_dir(self) -> Path:
        """The folder that holds `wts.h5.zip`."""
        return self.root / "runs" / self.variant / "training"

    def _backend_identity(self) -> dict[str, Any]:
        return {"name": self.backend.name, "version": self.backend.version, "code": self.code}


@dataclass(frozen=True)
class TrainingPayload(_BackendPayload):
    """All that training needs."""

    def identity(self) -> dict[str, Any]:
        """What decides, with the fixture's content, whether the model is stale."""
        return {
            "backend": self._backend_identity(),
            "training": msgspec.to_builtins(self.training),
        }

    def work_dir(self, fixture_sha256: str) -> Path:
        """The folder for checkpoints of trainings that differ in nothing but `epochs`."""
        identity = self.identity()
        identity["training"].pop("epochs")
        text = canonical_json({"fixture": fixture_sha256, **identity})
        return self.work_root / hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def work_root(self) -> Path:
        """Where the folders for checkpoints lie."""
        return self.root / ".ptycho" / "work" / self.variant

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
            "model_type": training.get("model_type", "pinn"),
            "n_groups": training.get("n_groups"),
            "nepochs": training.get("epochs"),
            "object.big": gridsize > 1,
            "probe.trainable": False,
            "train_data_file_path": fixture,
        }
        return {
            "backend": self.backend.name,
            "fixture": msgspec.to_builtins(self.fixture),
            "flat": flat,
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
        return self.root / "runs" / self.variant / "inference"

    def identity(self) -> dict[str, Any]:
        """What decides, with the bundle's and the scan's content, whether the reconstruction
        is stale."""
        return {
            "backend": self._backend_identity(),
            "inference": msgspec.to_builtins(self.config.inference),
            "name": self.name,
            "reading": self.reading(),
        }


def create_fixture_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
) -> FixturePayload:
    """Settle what makes the source and the fixture.

    Args:
        file: ptycho.yaml as read.
        overrides: dotted key path to value; wins over everything.
        command_line: likewise; wins over ptycho.yaml.

    Raises:
        ConfigError: one line with the origin, the key path and what was expected.
    """
    config, values, origins = _settle(file, overrides, command_line)
    return FixturePayload(file.root, config, values, origins)


def create_training_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
) -> TrainingPayload:
    """Settle all that training needs; see `create_fixture_payload`.

    Raises:
        BackendError: the backend is unknown or cannot be loaded.
        ConfigError: a value is wrong.
    """
    return TrainingPayload(*_with_backend(file, overrides, command_line))


def create_inference_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
) -> InferencePayload:
    """Settle all that inference needs; see `create_training_payload`."""
    return InferencePayload(*_with_backend(file, overrides, command_line))


def _settle(
    file: ConfigFile, overrides: Mapping[str, Any] | None, command_line: Mapping[str, Any] | None
) -> tuple[Config, dict[str, Any], dict[str, str]]:
    layers = merge(file, command_line=command_line, overrides=overrides)
    config = convert(layers, Config)
    values = flatten(config)
    return config, values, {key: layers.origins.get(key, "default") for key in values}


def _with_backend(
    file: ConfigFile, overrides: Mapping[str, Any] | None, command_line: Mapping[str, Any] | None
) -> tuple[Any, ...]:
    config, values, origins = _settle(file, overrides, command_line)
    layers = merge(file, command_line=command_line, overrides=overrides)
    try:
        entry = find_backend(config.backend, file.root)
        backend = entry.load()
    except BackendError as error:
        raise BackendError(f"{layers.where('backend')}: {error}") from error
    options = convert(layers, backend.options_type, "training")
    training = flatten(options, "training")
    values = {k: v for k, v in values.items() if k.split(".")[0] != "training"} | training
    origins |= {key: layers.origins.get(key, "default") for key in training}
    return (
        file.root,
        config,
        values,
        {key: origins[key] for key in values},
        backend,
        options,
        entry.code(),
        DEFAULT_VARIANT,
    )
