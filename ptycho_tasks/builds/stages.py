"""The stages of the pipeline, each a function of one payload: what doit and the command line call.

The core owns every file: a stage reads its inputs, lets the backend compute, and publishes the
outputs whole or not at all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.backend import (
    InferRequest,
    RefineRequest,
    TrainRequest,
    checked_model,
    checked_reconstruction,
)
from ptycho_tasks.builds.inputs import (
    _read_fixture,
    _read_inference_scan,
    _read_source,
    _read_subset,
)
from ptycho_tasks.builds.outputs import (
    _made,
    _made_from,
    _publish,
    _read_besides,
    _refuse_folders,
    _tidy,
)
from ptycho_tasks.builds.progress import (
    _answerable,
    _progress,
    _say,
    _say_doubts,
    _say_result,
    _say_scan,
    _warn,
    show_progress,
)
from ptycho_tasks.builds.state import known_sha256
from ptycho_tasks.config.payload import (
    PROJECT,
    InferencePayload,
    Payload,
    RefinementPayload,
    TrainingPayload,
    _shown,
)
from ptycho_tasks.errors import BundleError, ScanError, TrainingError
from ptycho_tasks.layout import BUNDLE_NAME

if TYPE_CHECKING:
    from ptycho_tasks.backend import TrainedModel
    from ptycho_tasks.options import FixtureOptions
    from ptycho_tasks.scan import ScanData


def check_source(payload: Payload) -> ScanData:
    """Simulate the source or check the user's; say what was found.

    Raises:
        ConfigError: a file that ptycho.yaml names is not there.
        ScanError: the scan breaks the contract, or no frame holds light.
        FileWriteError: the simulated scan cannot be written.
    """
    if payload.source.simulate is not None:
        from ptycho_tasks.physics.simulate import simulate
        from ptycho_tasks.scans.npz import write_scan

        simulated = simulate(payload.source.simulate, name=payload.source_file.stem)
        if not any(frame.any() for frame in simulated.diffraction):
            raise ScanError("source.simulate: every frame is dark; raise `photons`")
        write_scan(payload.source_file, simulated)
    scan = _read_source(payload, payload.source_file)
    _say_scan("source", payload.source_file, payload, scan)
    _say_doubts(payload.source_file, payload, scan)
    return scan


def make_fixture(payload: Payload) -> None:
    """Cut the source to the fixture and publish it with its sidecar.

    Raises:
        ScanError: the source breaks the contract, or has fewer frames than asked for.
        FileWriteError: the fixture cannot be written; an earlier one is unchanged.
    """
    scan = _read_source(payload, payload.source_file)
    source = payload.source_file
    sha256 = functools.partial(known_sha256, payload.root)
    made = cut_fixture(scan, source, sha256, payload.fixture, payload.fixture_file)
    _say_scan("fixture", payload.fixture_file, payload, made)


def cut_fixture(
    scan: ScanData,
    source: Path,
    sha256: Callable[[Path], str],
    options: FixtureOptions,
    output: Path,
) -> ScanData:
    """Cut a scan and publish the fixture with its sidecar; gives the fixture.

    Args:
        scan: what was read from `source`.
        source: the file, named in the sidecar.
        sha256: gives the sha256 of a file's content, which stands there too.
        options: which frames are taken.
        output: the NPZ; the sidecar is named alike and ends in .json.

    Raises:
        ScanError: the scan has fewer frames than asked for.
        FileWriteError: the fixture cannot be written; an earlier one is unchanged.
    """
    from ptycho_tasks.scans.cutting import write_fixture
    from ptycho_tasks.scans.fixture import read_fixture

    write_fixture(
        scan,
        options,
        npz_path=output,
        sidecar_path=output.with_suffix(".json"),
        source_name=source.name,
        source_sha256=sha256(source),
        source_files={os.path.relpath(file, source.parent): sha256(file) for file in scan.files},
    )
    return read_fixture(output)


def train(payload: TrainingPayload) -> Path:
    """Train on the fixture and publish the bundle. Gives the bundle's path.

    Raises:
        BackendError: the backend's own libraries are missing.
        ConfigError: an option that the backend cannot honour here.
        ScanError: no frame holds light.
        TrainingError: the training failed, or the backend gave what is no model.
        FileWriteError: the bundle cannot be written; an earlier one is unchanged.
    """
    from ptycho_tasks.builds.cost import check_cost
    from ptycho_tasks.results.bundle import bundle_bytes
    from ptycho_tasks.results.ownership import record, recording, remove_recorded
    from ptycho_tasks.system.files import write_atomic

    _refuse_folders([payload.bundle_file])
    # Before anything is read: what is replaced meanwhile must not pass for what was read.
    made_from = _made_from(payload, "train", payload.training_files)
    scan = _read_fixture(payload) if payload.places == PROJECT else _read_subset(payload)
    made_from |= _read_besides(payload)
    work_dir = payload.work_dir(made_from)
    quiet = payload.execution.quiet
    label = f"train {payload.backend.name}"
    with (
        _made(work_dir),
        recording(payload.log_dir),
        _answerable(payload, payload.backend),
        show_progress(label, quiet=quiet) as progress,
    ):
        request = TrainRequest(
            scan,
            payload.training,
            payload.execution,
            progress,
            work_dir,
            lambda text: _say(payload, f"{'':<10} {text}"),
            payload.log_dir,
        )
        trained_on = payload.fixture_file if payload.places == PROJECT else payload.source_file
        with check_cost(payload.backend, request, _shown(trained_on, payload)).told():
            given = payload.backend.train(request)
    model = checked_model(given, payload.backend.name)

    def bundle_of(state: TrainedModel, made_from: dict[str, Any] | None) -> bytes:
        return bundle_bytes(
            state,
            backend=payload.backend.name,
            backend_version=payload.backend.version,
            size=scan.size,
            params=payload.params(scan.size),
            made_from=made_from,
        )

    content = bundle_of(model, made_from)
    kept = {name: bundle_of(state, None) for name, state in model.checkpoints.items()}
    remove_recorded(payload.checkpoints_dir)
    paths = {name: payload.checkpoints_dir / name / BUNDLE_NAME for name in kept}
    for name, path in paths.items():
        write_atomic(path, kept[name])
        _say(payload, f"checkpoint {_shown(path, payload)}")
    if paths:
        record(payload.checkpoints_dir, paths.values())
    path = payload.bundle_file
    write_atomic(path, content)
    _tidy(work_dir)
    _say(payload, f"bundle     {_shown(path, payload)}")
    return path


def infer(payload: InferencePayload) -> dict[str, Any]:
    """Reconstruct the scan with the bundle; publish product, pictures and metrics.

    Gives what `metrics.json` holds.

    Raises:
        BundleError: the bundle is missing, damaged, or made by another backend.
        BackendError: the backend's own libraries are missing.
        ConfigError: the scan is not there, or an option that the backend cannot honour here.
        ScanError: the scan breaks the contract, or no frame holds light.
        TrainingError: the backend gave what is no reconstruction, or one that explains nothing.
        FileWriteError: the outputs cannot be written; earlier ones are unchanged.
    """
    from ptycho_tasks.builds.cost import check_cost
    from ptycho_tasks.results.bundle import load_bundle

    _refuse_folders(payload.output_files)
    # Before anything is read, as in training.
    inputs = {"bundle": payload.bundle_file, **payload.scan_files}
    made_from = _made_from(payload, "infer", inputs)
    bundle = load_bundle(payload.model_dir)
    if bundle.backend != payload.backend.name:
        raise BundleError(
            f"{_shown(payload.model_dir, payload)}: this bundle was made by the backend "
            f"`{bundle.backend}`, not by `{payload.backend.name}`; train again, or set "
            f"`backend: {bundle.backend}`"
        )
    scan = _read_inference_scan(payload)
    made_from |= _read_besides(payload)
    label = f"infer {payload.backend.name}"
    with _answerable(payload, payload.backend), _progress(label, payload, scan) as progress:
        options = _trained_options(payload, bundle.params)
        request = InferRequest(scan, bundle.model, options, payload.execution, progress)
        cost = check_cost(payload.backend, request, _shown(payload.scan_file, payload))
        with cost.told():
            given = payload.backend.infer(request)
    with cost.told():
        reconstruction = checked_reconstruction(given, scan, payload.backend.name)
        metrics = _publish(payload, scan, reconstruction, made_from)
    _say_result(payload, metrics)
    return metrics


def refine(payload: RefinementPayload) -> dict[str, Any]:
    """Go on from the reconstruction with an iterative backend; publish what `infer` publishes.

    Gives what `metrics.json` holds; `start` in it has the misfit that the reconstruction began
    with.

    Raises:
        BackendError: the backend's own libraries are missing.
        ConfigError: the scan is not there, or an option that the backend cannot honour here.
        ScanError: the scan breaks the contract, or the reconstruction is not of it.
        TrainingError: the backend diverged, or gave what is no reconstruction.
        FileWriteError: the outputs cannot be written; earlier ones are unchanged.
    """
    from ptycho_tasks.builds.cost import check_cost
    from ptycho_tasks.physics.metrics import data_misfit
    from ptycho_tasks.results.product import read_product

    _refuse_folders(payload.output_files)
    inputs = {"reconstruction": payload.start_file, **payload.scan_files}
    made_from = _made_from(payload, "refine", inputs)
    start = read_product(payload.start_file)
    scan = _read_inference_scan(payload)
    made_from |= _read_besides(payload)
    refiner = payload.refiner
    try:
        start = checked_reconstruction(start, scan, payload.backend.name)
    except TrainingError as error:
        shown = _shown(payload.start_file, payload)
        raise ScanError(f"{shown}: is not of this scan: {error}; make it again") from error
    quiet = payload.execution.quiet
    label = f"refine {refiner.name}"
    with _answerable(payload, refiner), show_progress(label, quiet=quiet) as progress:
        execution = payload.refiner_execution
        request = RefineRequest(scan, start, payload.refinement, execution, progress)
        with check_cost(refiner, request, _shown(payload.scan_file, payload)).told():
            # The payload's factory saw that it is there.
            given = refiner.refine(request)  # type: ignore[attr-defined]
    reconstruction = checked_reconstruction(given, scan, refiner.name, "refine")
    before = data_misfit(start.object, start.origin, start.probe, start.positions, scan.diffraction)
    began = {"r_factor": before.r_factor, "poisson_deviance": before.poisson_deviance}
    metrics = _publish(payload, scan, reconstruction, made_from, {"start": began})
    _say(payload, f"{'start':<10} R-factor {before.r_factor:.4f} before the refinement")
    _say_result(payload, metrics)
    if metrics["r_factor"] > before.r_factor:
        _warn(
            "the refinement explains the frames worse than its start did; take "
            f"fewer epochs or smaller steps under `refine:` ({refiner.name}), or leave it out"
        )
    return metrics


def _trained_options(payload: InferencePayload, params: Any) -> Any:
    """The options that the model was trained with, which need not be today's configuration."""
    import msgspec

    try:
        return msgspec.convert(params["training"], payload.backend.options_type)
    except (KeyError, msgspec.ValidationError) as error:
        raise BundleError(
            f"{_shown(payload.model_dir, payload)}: params.json: training: {error}; the bundle is "
            f"of another version of the backend `{payload.backend.name}`; train again"
        ) from error
