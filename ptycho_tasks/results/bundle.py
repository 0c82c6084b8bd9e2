"""The model bundle `wts.h5.zip`: arrays and JSON in, arrays and JSON out.

A zip of stored members: `manifest.json`, `params.json`, `wts.h5`, `history.json`. Nothing in it
is ever unpickled or executed, so a stranger's bundle is safe to load. Equal content gives equal
bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import TrainedModel
from ptycho_tasks.errors import BundleError, TrainingError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.system.files import find_file_problem

FORMAT = "ptycho-tasks-bundle"
FORMAT_VERSION = 1
MANIFEST, PARAMS, WEIGHTS, HISTORY = "manifest.json", "params.json", "wts.h5", "history.json"
_MEMBERS = (PARAMS, WEIGHTS, HISTORY)
_MANIFEST_LIMIT = 1 << 20
# The earliest time a zip can hold: a bundle must not tell when it was made.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    """A bundle's content, checked."""

    manifest: Mapping[str, Any]
    params: Mapping[str, Any]
    model: TrainedModel

    @property
    def backend(self) -> str:
        """The name of the backend that made it."""
        return str(self.manifest["backend"]["name"])


def bundle_bytes(
    model: TrainedModel,
    *,
    backend: str,
    backend_version: str,
    size: int,
    params: Mapping[str, Any],
    made_from: Mapping[str, Any] | None = None,
) -> bytes:
    """A bundle as bytes.

    Args:
        model: arrays by model and name, metadata, history; after `checked_model`.
        backend: the backend's name.
        backend_version: the backend's version.
        size: N.
        params: the settled configuration; the model's metadata are added to it.
        made_from: settings, versions and sha256 of the inputs that decided the content.

    Raises:
        TrainingError: an array or a value of the history is NaN or Inf.
    """
    _refuse_nan(model, backend)
    intensity_scale = model.metadata.get("intensity_scale")
    members = {
        PARAMS: _json(
            {**params, "intensity_scale": intensity_scale, "metadata": dict(model.metadata)}
        ),
        WEIGHTS: _weights_bytes(model.models),
        HISTORY: _json([dict(epoch) for epoch in model.history]),
    }
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "core_version": version("ptycho-tasks"),
        "backend": {"name": backend, "version": backend_version},
        "models": sorted(model.models),
        "N": size,
        "gridsize": params.get("flat", {}).get("gridsize", 1),
        "made_from": made_from,
        "members": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in members.items()
        },
    }
    return _container({MANIFEST: _json(manifest), **members})


def _container(members: Mapping[str, bytes]) -> bytes:
    """The zip of some members: the same bytes for the same members, in this order."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _ZIP_DATE)
            info.create_system = 3  # else another one on Windows
            archive.writestr(info, data)
    return stream.getvalue()


def load_bundle(model_dir: Path) -> Bundle:
    """Read and check the bundle in a model directory; the bundle's own path will do too.

    Checked: member names, sizes and checksums against the manifest, the format's version, every
    other byte against what these members give when they are written, and that the weights are
    plain arrays stored in the file itself.

    Raises:
        BundleError: what is wrong with it, and where.
    """
    path = Path(model_dir)
    path = path if path.name == BUNDLE_NAME else path / BUNDLE_NAME
    content = _content(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            manifest = _read_manifest(path, archive)
            members = {name: _read_member(path, archive, manifest, name) for name in _MEMBERS}
            whole = _container({MANIFEST: archive.read(MANIFEST), **members}) == content
    except BundleError:
        raise
    except Exception as error:  # damage shows as errors of zipfile, zlib, struct and codecs
        raise BundleError(
            f"{path}: damaged or not a zip ({error}); train again or copy it anew"
        ) from error
    if not whole:
        raise BundleError(
            f"{path}: the zip around its members was changed; train again or copy it anew"
        )
    params = _parse(path, PARAMS, members[PARAMS], dict)
    history = _parse(path, HISTORY, members[HISTORY], list)
    metadata = params.get("metadata", {})
    if not isinstance(metadata, dict):
        raise BundleError(f"{path}: {PARAMS}: metadata: expected keys and values; train again")
    if not all(isinstance(epoch, dict) and _are_numbers(epoch.values()) for epoch in history):
        raise BundleError(f"{path}: {HISTORY}: expected finite numbers an epoch; train again")
    weights = _read_weights(path, members[WEIGHTS], manifest["models"])
    model = TrainedModel(models=weights, metadata=metadata, history=history)
    return Bundle(manifest, params, model)


def read_made_from(model_dir: Path) -> dict[str, Any] | None:
    """What a bundle says of what decided its content; None where it says nothing, or is damaged."""
    try:
        made_from = load_bundle(model_dir).manifest.get("made_from")
    except BundleError:
        return None
    return made_from if isinstance(made_from, dict) else None


def _content(path: Path) -> bytes:
    problem = find_file_problem(path)
    if problem:
        raise BundleError(f"{path}: {problem}; name the folder that holds {BUNDLE_NAME}")
    try:
        return path.read_bytes()
    except NotADirectoryError:
        raise BundleError(
            f"{path.parent}: is a file that is not called {BUNDLE_NAME}; call it that, or name "
            "the folder that holds one"
        ) from None
    except FileNotFoundError:
        raise BundleError(
            f"{path}: no such bundle; run `doit train`, or name the folder that holds {BUNDLE_NAME}"
        ) from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error


def _refuse_nan(model: TrainedModel, backend: str) -> None:
    where = [
        f"{name}/{key}"
        for name, arrays in model.models.items()
        for key, array in arrays.items()
        if not np.isfinite(array).all()
    ]
    where += [
        f"history, epoch {epoch}, {key}"
        for epoch, metrics in enumerate(model.history, start=1)
        for key, value in metrics.items()
        if not np.isfinite(value)
    ]
    if where:
        raise TrainingError(
            f"backend `{backend}`: training ended with NaN or Inf in {where[0]}; "
            "lower the learning rate, or check the scan"
        )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _weights_bytes(models: Mapping[str, Mapping[str, NDArray[Any]]]) -> bytes:
    """HDF5 with a group a model and a dataset a parameter; shared arrays are hard links."""
    stream = io.BytesIO()
    stored: dict[int, h5py.Dataset] = {}
    with h5py.File(stream, "w", libver=("v108", "v108")) as file:
        for model in sorted(models):
            group = file.create_group(model)
            for name in sorted(models[model]):
                array = models[model][name]
                if id(array) in stored:
                    group[name] = stored[id(array)]
                else:
                    stored[id(array)] = group.create_dataset(name, data=array)
    return stream.getvalue()


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    names = archive.namelist()
    if "manifest.dill" in names:
        raise BundleError(
            f"{path}: a bundle with a manifest.dill holds pickled code, which could run anything "
            "on loading; it is refused. Train again with ptycho-tasks"
        )
    for name in names:
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise BundleError(f"{path}: the member {name!r} points outside the bundle; refused")
    if sorted(names) != sorted([MANIFEST, *_MEMBERS]):
        raise BundleError(
            f"{path}: expected the members {', '.join([MANIFEST, *_MEMBERS])}, "
            f"found {', '.join(names) or 'none'}"
        )
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise BundleError(f"{path}: the member {info.filename} is compressed; refused")
    if archive.getinfo(MANIFEST).file_size > _MANIFEST_LIMIT:
        raise BundleError(f"{path}: {MANIFEST} is larger than 1 MiB; refused")
    manifest: dict[str, Any] = _parse(path, MANIFEST, archive.read(MANIFEST), dict)
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    if manifest.get("format") != FORMAT:
        raise BundleError(f"{path}: {MANIFEST}: format is not {FORMAT!r}: not our bundle")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {manifest.get('format_version')!r}; this ptycho-tasks reads "
            f"version {FORMAT_VERSION}. Train again, or use the version that wrote it"
        )
    backend, members = manifest.get("backend"), manifest.get("members")
    models, size = manifest.get("models"), manifest.get("N")
    fits = (
        isinstance(backend, dict)
        and isinstance(backend.get("name"), str)
        and isinstance(members, dict)
        and all(isinstance(members.get(name), dict) for name in _MEMBERS)
        and isinstance(models, list)
        and all(isinstance(name, str) for name in models)
        and isinstance(size, int)
    )
    if not fits:
        raise BundleError(f"{path}: {MANIFEST} lacks backend, members, models or N")


def _read_member(
    path: Path, archive: zipfile.ZipFile, manifest: Mapping[str, Any], name: str
) -> bytes:
    declared = manifest["members"][name]
    size = archive.getinfo(name).file_size
    if size != declared.get("size"):
        raise BundleError(
            f"{path}: {name} has {size} bytes where the manifest says {declared.get('size')}"
        )
    data = archive.read(name)
    if hashlib.sha256(data).hexdigest() != declared.get("sha256"):
        raise BundleError(
            f"{path}: {name} does not match its sha256 in the manifest: the bundle was changed; "
            "train again or copy it anew"
        )
    return data


def _parse(path: Path, member: str, data: bytes, kind: type) -> Any:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {member} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise BundleError(f"{path}: {member} does not hold what it should")
    return value


def _are_numbers(values: Iterable[Any]) -> bool:
    # A whole number may be too large for a float.
    return all(isinstance(value, int | float) and abs(value) < 1e300 for value in values)


def _read_weights(
    path: Path, data: bytes, expected: list[str]
) -> dict[str, dict[str, NDArray[Any]]]:
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            if sorted(file) != sorted(expected):
                raise BundleError(
                    f"{path}: {WEIGHTS} holds the models {', '.join(file)}; "
                    f"the manifest names {', '.join(expected)}"
                )
            datasets = {model: _datasets(path, file, model) for model in sorted(file)}
            return _arrays(path, datasets, len(data))
    except BundleError:
        raise
    except Exception as error:  # h5py reports bytes that make no sense in many ways
        raise BundleError(
            f"{path}: {WEIGHTS} is not readable HDF5: {' '.join(str(error).split())}"
        ) from error


def _arrays(
    path: Path, datasets: Mapping[str, Mapping[str, h5py.Dataset]], limit: int
) -> dict[str, dict[str, NDArray[Any]]]:
    """The arrays by model and name; what the file stores once is one array.

    Args:
        path: the bundle, for messages.
        datasets: by model and name.
        limit: bytes of the HDF5 file. What it does not hold it could still claim, by the terabyte.
    """
    stored = {
        h5py.h5o.get_info(dataset.id).addr: dataset
        for group in datasets.values()
        for dataset in group.values()
    }
    claimed = sum(dataset.size * dataset.dtype.itemsize for dataset in stored.values())
    if claimed > limit:
        raise BundleError(
            f"{path}: {WEIGHTS} claims {claimed} bytes of arrays in a file of {limit}; refused"
        )
    arrays = {address: np.asarray(dataset[()]) for address, dataset in stored.items()}
    for address, array in arrays.items():
        if not np.isfinite(array).all():
            raise BundleError(
                f"{path}: {WEIGHTS}: {stored[address].name[1:]} holds NaN or Inf; train again"
            )
    return {
        model: {name: arrays[h5py.h5o.get_info(dataset.id).addr] for name, dataset in group.items()}
        for model, group in datasets.items()
    }


def _datasets(path: Path, file: h5py.File, model: str) -> dict[str, h5py.Dataset]:
    group = file[model] if isinstance(file.get(model, getlink=True), h5py.HardLink) else None
    if not isinstance(group, h5py.Group):
        raise BundleError(f"{path}: {WEIGHTS}: {model} is not a group of its own; refused")
    datasets: dict[str, h5py.Dataset] = {}
    for name in group:
        link = group.get(name, getlink=True)
        dataset = group[name] if isinstance(link, h5py.HardLink) else None
        # External, virtual or filtered storage could reach other files or blow up on reading.
        if (
            not isinstance(dataset, h5py.Dataset)
            or dataset.external
            or dataset.is_virtual
            or dataset.chunks
            or dataset.dtype.kind not in "biufc"
        ):
            raise BundleError(f"{path}: {WEIGHTS}: {model}/{name} is not a plain array; refused")
        datasets[name] = dataset
    return datasets
