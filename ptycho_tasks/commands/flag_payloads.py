"""Payloads from flags: of one training, or one reconstruction, without a project."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import click

from ptycho_tasks.commands.flags import FlagValues
from ptycho_tasks.config.document import ConfigFile
from ptycho_tasks.config.factories import create_inference_payload, create_training_payload
from ptycho_tasks.config.payload import Folders, InferencePayload, Payload, TrainingPayload
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.layout import BUNDLE_NAME, absolute_path

_MANIFEST, _MANIFEST_LIMIT = "manifest.json", 1 << 20

_FOR_DOIT = {"simulate": "keeps the scan", "files": "trains on several scans"}
"""Kinds of source that a command does not take, and why."""


def create_training(
    file: ConfigFile, flags: FlagValues, output: Path, *, force: bool = False
) -> TrainingPayload:
    """Settle what `ptycho-tasks train` does.

    Args:
        file: the configuration that the flags are laid over.
        flags: what the command line sets.
        output: the folder that gets the bundle.
        force: replace files of others.

    Raises:
        BackendError: the backend is unknown or cannot be loaded.
        ConfigError: a value is wrong, a file is missing, or files of others are in the way.
    """
    _refuse_project_settings(file)
    scan = _read_scan_setting(file, flags)
    payload = create_training_payload(
        file,
        command_line=_drop_other_scan(flags.values, scan),
        flags=flags.flags,
        folders=Folders(model_dir=output),
    )
    _check_inputs(payload, *payload.backend_files)
    _refuse_overwriting(payload, [payload.bundle_file, payload.checkpoints_dir])
    checkpoints = payload.checkpoints_dir.glob(f"*/{BUNDLE_NAME}")
    _check_ours([payload.bundle_file, *sorted(checkpoints)], force=force)
    return payload


def create_test(
    file: ConfigFile, flags: FlagValues, output: Path, scan: Path, *, force: bool = False
) -> InferencePayload:
    """Settle the reconstruction that follows a training; see `create_training`.

    Args:
        file: the configuration that the flags are laid over.
        flags: what the command line sets.
        output: the folder that gets the bundle; the reconstruction goes into `inference` there.
        scan: what is reconstructed.
        force: replace files of others.
    """
    values = flags.values | {"source.file": str(absolute_path(scan)), "inference.scan": "source"}
    payload = create_inference_payload(
        file,
        command_line=_drop_other_scan(values, None),
        flags=flags.flags | {"source.file": "--test-data-file"},
        folders=Folders(output, output / "inference"),
    )
    _check_inputs(payload)
    _refuse_overwriting(payload, payload.output_files)
    _check_ours(payload.output_files, force=force)
    return payload


def create_inference(
    flags: FlagValues, model_path: Path, output: Path, *, force: bool = False
) -> InferencePayload:
    """Settle what `ptycho-tasks infer` does.

    Args:
        flags: what the command line sets.
        model_path: the folder of the bundle, or the bundle.
        output: the folder that gets the reconstruction.
        force: replace files of others.

    Raises:
        BackendError: the backend that made the bundle is unknown here or cannot be loaded.
        BundleError: the bundle is damaged.
        ConfigError: a value is wrong, a file is missing, or a file of others is in the way.
    """
    folder = absolute_path(model_path)
    folder = folder.parent if folder.name == BUNDLE_NAME else folder
    if not (folder / BUNDLE_NAME).is_file():
        raise ConfigError(
            f"--model-path: there is no {folder / BUNDLE_NAME}; name the folder that holds it"
        )
    payload = create_inference_payload(
        empty_config(),
        command_line={"backend": read_backend_name(folder), **flags.values},
        flags={"backend": "--model-path", **flags.flags},
        folders=Folders(folder, output),
    )
    _check_inputs(payload)
    _refuse_overwriting(payload, payload.output_files)
    _check_ours(payload.output_files, force=force)
    return payload


def _refuse_project_settings(file: ConfigFile) -> None:
    """Refuse a configuration that asks for more than one training."""
    for key in ("matrix", "variants"):
        if file.data.get(key):
            raise ConfigError(
                f"{file.where(key)}: {key}: asks for several trainings; run `doit train` there, or "
                f"take `{key}` out"
            )
    if file.data.get("refine"):
        raise ConfigError(
            f"{file.where('refine')}: refine: is a stage of a project; run `doit infer` there, or "
            "take `refine` out"
        )


def _read_scan_setting(file: ConfigFile, flags: FlagValues) -> str | None:
    """The scan that a configuration names, if it does.

    Raises:
        ConfigError, click.UsageError: neither it nor a flag names one.
    """
    configured = file.data.get("source") or {}
    scan = configured.get("file") if isinstance(configured, dict) else None
    if scan is None and "source.file" not in flags.values:
        for key, reason in _FOR_DOIT.items():
            if key in configured:
                raise ConfigError(
                    f"{file.where(f'source.{key}')}: source.{key}: is for `doit`, which {reason}; "
                    "give --train-data-file"
                )
        raise click.UsageError(
            "Missing option '--train-data-file': nothing says which scan to train on"
        )
    return scan


def read_backend_name(model_dir: Path) -> str:
    """The name of the backend that made a bundle. For a whole bundle, h5py is not imported.

    Raises:
        BundleError: the bundle is damaged.
    """
    try:
        with zipfile.ZipFile(model_dir / BUNDLE_NAME) as archive:
            if archive.getinfo(_MANIFEST).file_size <= _MANIFEST_LIMIT:
                return str(json.loads(archive.read(_MANIFEST))["backend"]["name"])
    except Exception:  # damage shows in many ways; who reads it whole says what is wrong
        pass
    from ptycho_tasks.results.bundle import load_bundle

    return load_bundle(model_dir).backend


def empty_config() -> ConfigFile:
    """An empty configuration, for a command without a ptycho.yaml."""
    return ConfigFile(Path.cwd() / "command line", {})


def _drop_other_scan(values: dict[str, Any], configured: str | None) -> dict[str, Any]:
    """Values for the scan that they name: what a configuration says of another scan is left out."""
    if values.get("source.file", configured) == configured:
        return values
    others = ("source.simulate", "source.files", "source.product", "fixture.scans")
    return {**dict.fromkeys(others), **values}


def _check_inputs(payload: Payload, *further: str) -> None:
    for key in ("source.file", "source.product", "source.bad_pixels", *further):
        missing = payload.describe_missing(key)
        if missing is not None:
            raise ConfigError(f"{missing}; correct the path")


def _check_ours(outputs: list[Path], *, force: bool) -> None:
    """Refuse to replace files that we did not make."""
    if force or not any(path.is_file() for path in outputs):
        return
    from ptycho_tasks.results.ownership import check_ours

    check_ours(outputs, ", choose another --output-dir, or --force to replace it")


def _refuse_overwriting(payload: Payload, outputs: list[Path]) -> None:
    """Refuse to put an output in the place of the scan, or to remove the folder that it is in."""
    for scan in payload.source_files.values():
        for output in outputs:
            if scan.resolve().is_relative_to(output.resolve()):
                raise ConfigError(
                    f"--output-dir: {output} would replace {scan}, which is read; choose another "
                    "folder"
                )
