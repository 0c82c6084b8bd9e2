"""`ptycho-tasks train` and `ptycho-tasks infer`: one training, one reconstruction, no project.

Values from the flags become a payload, complete and checked, before torch or an array is loaded;
then the stage is called that doit calls too.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from ptycho_tasks.commands.flags import FlagCommand, Table, Told, options, told
from ptycho_tasks.commands.train_flags import INFER, TRAIN
from ptycho_tasks.config.document import ConfigFile, read_config
from ptycho_tasks.config.factories import create_inference_payload, create_training_payload
from ptycho_tasks.config.payload import InferencePayload, Payload, Places, TrainingPayload
from ptycho_tasks.errors import DEBUG, ConfigError
from ptycho_tasks.layout import BUNDLE_NAME, whole_path

_MANIFEST, _MANIFEST_LIMIT = "manifest.json", 1 << 20
_EPILOG = (
    "Flags may be spelled with - or _ inside: --output-dir, --output_dir. A value that is not "
    "given is the backend's default; `ptycho-tasks backends NAME` shows them."
)


def _command(name: str, table: Table) -> Callable[[Callable[..., None]], click.Command]:
    return click.command(name, cls=FlagCommand, params=options(table), epilog=_EPILOG)


@_command("train", TRAIN)
def train(**given: Any) -> None:
    """Train on one scan; write the bundle wts.h5.zip.

    Without a project: in one, `doit train` trains what is stale.
    """
    _show_tracebacks(given)
    file = _config(given["config"])
    said = told(TRAIN, given, file.root)
    output = whole_path(given["output_dir"])
    training = training_payload(file, said, output, force=given["force"])
    test = given["test_data_file"] and reconstruction_payload(
        file, said, output, given["test_data_file"], force=given["force"]
    )

    with _alone_in(output, "train"):
        from ptycho_tasks.builds import stages
        from ptycho_tasks.builds.inputs import check_scan_to_infer

        if test:
            check_scan_to_infer(test, training)
        stages.train(training)
        if test:
            stages.infer(test)


@_command("infer", INFER)
def infer(**given: Any) -> None:
    """Reconstruct a scan with a trained bundle.

    Writes the product reconstruction.h5, pictures and metrics.json. The backend is the one that
    made the bundle.
    """
    _show_tracebacks(given)
    output = whole_path(given["output_dir"])
    said = told(INFER, given, Path.cwd())
    payload = inference_payload(said, given["model_path"], output, force=given["force"])

    with _alone_in(output, "infer"):
        from ptycho_tasks.builds import stages

        stages.infer(payload)


def training_payload(
    file: ConfigFile, said: Told, output: Path, *, force: bool = False
) -> TrainingPayload:
    """Settle what `ptycho-tasks train` does.

    Args:
        file: the configuration that the flags are laid over.
        said: by the flags.
        output: the folder that gets the bundle.
        force: replace files of others.

    Raises:
        BackendError: the backend is unknown or cannot be loaded.
        ConfigError: a value is wrong, a file is missing, or files of others are in the way.
    """
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
    configured = file.data.get("source") or {}
    scan = configured.get("file") if isinstance(configured, dict) else None
    if scan is None and "source.file" not in said.values:
        if "simulate" in configured:
            raise ConfigError(
                f"{file.where('source.simulate')}: source.simulate: is for `doit`, which keeps the "
                "scan; give --train-data-file"
            )
        raise click.UsageError(
            "Missing option '--train-data-file': nothing says which scan to train on"
        )
    payload = create_training_payload(
        file,
        command_line=_of_scan(said.values, scan),
        flags=said.flags,
        places=Places(model_dir=output),
    )
    _check_inputs(payload)
    _refuse_overwriting(payload, [payload.bundle_file, payload.checkpoints_dir])
    checkpoints = payload.checkpoints_dir.glob(f"*/{BUNDLE_NAME}")
    _refuse_foreign([payload.bundle_file, *sorted(checkpoints)], force=force)
    return payload


def reconstruction_payload(
    file: ConfigFile, said: Told, output: Path, scan: Path, *, force: bool = False
) -> InferencePayload:
    """Settle the reconstruction that follows a training; see `training_payload`.

    Args:
        file: the configuration that the flags are laid over.
        said: by the flags.
        output: the folder that gets the bundle; the reconstruction goes into `inference` there.
        scan: what is reconstructed.
        force: replace files of others.
    """
    values = said.values | {"source.file": str(whole_path(scan)), "inference.scan": "source"}
    payload = create_inference_payload(
        file,
        command_line=_of_scan(values, None),
        flags=said.flags | {"source.file": "--test-data-file"},
        places=Places(output, output / "inference"),
    )
    _check_inputs(payload)
    _refuse_overwriting(payload, payload.output_files)
    _refuse_foreign(payload.output_files, force=force)
    return payload


def inference_payload(
    said: Told, model_path: Path, output: Path, *, force: bool = False
) -> InferencePayload:
    """Settle what `ptycho-tasks infer` does.

    Args:
        said: by the flags.
        model_path: the folder of the bundle, or the bundle.
        output: the folder that gets the reconstruction.
        force: replace files of others.

    Raises:
        BackendError: the backend that made the bundle is unknown here or cannot be loaded.
        BundleError: the bundle is damaged.
        ConfigError: a value is wrong, a file is missing, or a file of others is in the way.
    """
    folder = whole_path(model_path)
    folder = folder.parent if folder.name == BUNDLE_NAME else folder
    if not (folder / BUNDLE_NAME).is_file():
        raise ConfigError(
            f"--model-path: there is no {folder / BUNDLE_NAME}; name the folder that holds it"
        )
    payload = create_inference_payload(
        _no_config(),
        command_line={"backend": backend_of(folder), **said.values},
        flags={"backend": "--model-path", **said.flags},
        places=Places(folder, output),
    )
    _check_inputs(payload)
    _refuse_overwriting(payload, payload.output_files)
    _refuse_foreign(payload.output_files, force=force)
    return payload


def backend_of(model_dir: Path) -> str:
    """The name of the backend that made a bundle, without the array libraries where it is whole.

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


def _show_tracebacks(given: Mapping[str, Any]) -> None:
    if given["debug"]:
        os.environ[DEBUG] = "1"


def _config(path: Path | None) -> ConfigFile:
    if path is None:
        return _no_config()
    if not whole_path(path).is_file():
        raise ConfigError(f"--config: there is no file {path}; correct the path")
    return read_config(whole_path(path))


def _no_config() -> ConfigFile:
    """What stands for a ptycho.yaml where there is none."""
    return ConfigFile(Path.cwd() / "command line", {})


def _of_scan(values: dict[str, Any], configured: str | None) -> dict[str, Any]:
    """Values without what a configuration says of another scan than the one that they name."""
    if values.get("source.file", configured) == configured:
        return values
    return {"source.simulate": None, "source.product": None, **values}


def _check_inputs(payload: Payload) -> None:
    for key in ("source.file", "source.product"):
        missing = payload.missing(key)
        if missing is not None:
            raise ConfigError(f"{missing}; correct the path")


def _refuse_foreign(outputs: list[Path], *, force: bool) -> None:
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


@contextmanager
def _alone_in(folder: Path, task: str) -> Iterator[None]:
    """Make a folder, and keep other runs out of it in the block; nothing is left of a block that
    fails before it made something."""
    from ptycho_tasks.system.lock import LOCK_NAME, ProjectLock
    from ptycho_tasks.system.processes import stopping_in_order

    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output-dir: cannot make {folder}: {error.strerror}; choose another folder"
        ) from error
    lock = ProjectLock(folder / LOCK_NAME, place=str(folder))
    lock.acquire()
    try:
        with stopping_in_order():
            lock.working_on(task)
            yield
    finally:
        lock.release(remove=True)
        for empty in (lock.path.parent, *made):
            with suppress(OSError):  # it holds something
                empty.rmdir()
