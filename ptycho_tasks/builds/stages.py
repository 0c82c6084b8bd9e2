"""The stages of the pipeline, each a function of one payload: what doit and the command line call.

The core owns every file: a stage reads its inputs, lets the backend compute, and publishes the
outputs whole or not at all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.backend import (
    InferRequest,
    RefineRequest,
    TrainRequest,
    checked_model,
    checked_reconstruction,
)
from ptycho_tasks.backends import check_bad_pixels, check_scans
from ptycho_tasks.builds.inputs import (
    read_scan_to_infer,
    read_source,
    read_training_scans,
    refuse_missing_files,
)
from ptycho_tasks.builds.messages import (
    explain_failures,
    print_doubts,
    print_line,
    print_result,
    print_scan,
    print_warning,
)
from ptycho_tasks.builds.outputs import (
    identify_result,
    make_folder,
    publish_reconstruction,
    refuse_folders,
    remove_other_trainings,
)
from ptycho_tasks.builds.progress import show_progress_of
from ptycho_tasks.builds.state import sha256_of_input
from ptycho_tasks.config.payload import (
    InferencePayload,
    Payload,
    RefinementPayload,
    TrainingPayload,
)
from ptycho_tasks.errors import BundleError, ScanError, TrainingError
from ptycho_tasks.layout import BUNDLE_NAME, FIXTURE_NAME
from ptycho_tasks.scans.mapping import refuse_cut, refuse_cut_files
from ptycho_tasks.system.files import FileStamp, file_stamp

if TYPE_CHECKING:
    from ptycho_tasks.backend import TrainedModel
    from ptycho_tasks.options import FixtureOptions
    from ptycho_tasks.scan import ScanData


@refuse_cut_files()
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
        from ptycho_tasks.scans.readers import read_scan

        scan = simulate(payload.source.simulate, name=payload.source_file.stem)
        if not any((frame > 0).any() for frame in scan.diffraction):
            raise ScanError("source.simulate: every frame is dark; raise `photons`")
        place = payload.target(payload.source_file, "scan.npz")
        write_scan(place, scan)
        scan = replace(read_scan(place, **payload.reading), name=scan.name)
    else:
        scan = read_source(payload, payload.source_file)
    print_scan("source", payload.source_file, payload, scan)
    print_doubts(payload.source_file, payload, scan)
    return scan


@refuse_cut_files()
def make_fixture(payload: Payload) -> None:
    """Cut the source to the fixture and publish it with its sidecar.

    Raises:
        ScanError: the source breaks the contract, or has fewer frames than asked for.
        FileWriteError: the fixture cannot be written; an earlier one is unchanged.
    """
    identity = identify_result(payload, "fixture", payload.source_files)
    stamp = file_stamp(payload.source_file)
    scan = read_source(payload, payload.source_file)
    identity = identity._replace(read=payload.files_read)
    source = payload.source_file
    sha256 = functools.partial(sha256_of_input, payload.root)
    output = payload.target(payload.fixture_file, FIXTURE_NAME)
    fixture = cut_fixture(
        scan,
        source,
        sha256,
        payload.fixture,
        output,
        stamp=stamp,
        made_from=identity.to_record(),
    )
    print_scan("fixture", payload.fixture_file, payload, fixture)


def cut_fixture(
    scan: ScanData,
    source: Path,
    sha256: Callable[[Path], str],
    options: FixtureOptions,
    output: Path,
    *,
    stamp: FileStamp | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> ScanData:
    """Cut a scan and publish the fixture with its sidecar; gives the fixture.

    Args:
        scan: what was read from `source`.
        source: the file, named in the sidecar.
        sha256: gives the sha256 of a file's content, which stands there too.
        options: which frames are taken.
        output: the NPZ; the sidecar is named alike and ends in .json.
        stamp: what the file was before it was read; it must be that still.
        made_from: what decides the fixture, for the sidecar to keep.

    Raises:
        ScanError: the scan has fewer frames than asked for, or its file changed meanwhile.
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
        stamps={**scan.files, **({source: stamp} if stamp else {})},
        made_from=made_from,
    )
    return read_fixture(output)


@refuse_cut_files()
def train(payload: TrainingPayload) -> Path:
    """Train on the fixture and publish the bundle. Gives the bundle's path.

    Raises:
        BackendError: the backend's own libraries are missing.
        ConfigError: an option that the backend cannot honour here.
        ScanError: no frame holds light.
        TrainingError: the training failed, or the backend gave what is no model.
        FileWriteError: the bundle cannot be written; an earlier one is unchanged.
    """
    from ptycho_tasks.system.files import write_atomic

    refuse_folders([payload.bundle_file])
    # Before anything is read: what is replaced meanwhile must not pass for what was read.
    refuse_missing_files(payload)
    identity = identify_result(payload, "train", payload.input_files)
    scans = read_training_scans(payload)
    identity = identity._replace(read=payload.files_read)
    work_dir = payload.work_dir(identity.without("training.epochs").key())
    with make_folder(work_dir):
        model = _call_training(payload, scans, work_dir)
    pack = functools.partial(_pack, payload, scans[0].size)
    content = pack(model, identity.to_record())
    checkpoints = {name: pack(state, None) for name, state in model.checkpoints.items()}
    _publish_checkpoints(payload, checkpoints)
    write_atomic(payload.target(payload.bundle_file), content)
    remove_other_trainings(work_dir)
    print_line(payload, f"bundle     {payload.display_path(payload.bundle_file)}")
    return payload.bundle_file


def _call_training(payload: TrainingPayload, scans: list[ScanData], work_dir: Path) -> TrainedModel:
    """Have the backend train; gives what it made, checked."""
    from ptycho_tasks.builds.cost import check_cost
    from ptycho_tasks.builds.turns import take_turn
    from ptycho_tasks.results.folder_record import record_changes

    backend = payload.backend
    trained_on = next(iter(payload.training_files.values()))
    with (
        record_changes(payload.log_dir),
        explain_failures(payload),
        show_progress_of(f"train {backend.name}", payload) as shown,
    ):
        request = TrainRequest(
            scans,
            payload.options,
            payload.execution,
            shown.progress,
            work_dir,
            functools.partial(_say, payload),
            payload.log_dir,
            {key.partition(".")[2]: path for key, path in payload.backend_files.items()},
            shown.show,
        )
        check_scans(backend, request)
        name = payload.display_path(trained_on)
        with (
            take_turn(backend, request),
            check_cost(backend, request, name).explain_memory_errors(),
        ):
            model = backend.train(request)
    refuse_cut()
    return checked_model(model, backend.name)


def _say(payload: Payload, text: str) -> None:
    """Show what a backend says."""
    print_line(payload, f"{'':<10} {text}")


def _pack(
    payload: TrainingPayload, size: int, model: TrainedModel, provenance: dict[str, Any] | None
) -> bytes:
    """The bundle of a model, or of a checkpoint, which has no provenance of its own."""
    from ptycho_tasks.results.bundle import bundle_bytes

    return bundle_bytes(
        model,
        backend=payload.backend.name,
        backend_version=payload.backend.version,
        size=size,
        params=payload.params(size),
        made_from=provenance,
    )


def _publish_checkpoints(payload: TrainingPayload, bundles: Mapping[str, bytes]) -> None:
    """Put the checkpoints of this training in the place of those of the one before."""
    from ptycho_tasks.results.folder_record import remove_recorded, write_record
    from ptycho_tasks.system.files import write_atomic

    folder = payload.target(payload.checkpoints_dir)
    remove_recorded(folder)
    paths = {name: folder / name / BUNDLE_NAME for name in bundles}
    for name, path in paths.items():
        write_atomic(path, bundles[name])
        shown = payload.checkpoints_dir / name / BUNDLE_NAME
        print_line(payload, f"checkpoint {payload.display_path(shown)}")
    if paths and payload.staging is None:
        write_record(folder, paths.values())


@refuse_cut_files()
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
    from ptycho_tasks.builds.turns import take_turn
    from ptycho_tasks.results.bundle import load_bundle

    refuse_folders(payload.output_files)
    # Before anything is read, as in training.
    inputs = {"bundle": payload.bundle_file, **payload.scan_files}
    identity = identify_result(payload, "infer", inputs)
    bundle = load_bundle(payload.model_dir)
    if bundle.backend != payload.backend.name:
        raise BundleError(
            f"{payload.display_path(payload.model_dir)}: this bundle was made by the backend "
            f"`{bundle.backend}`, not by `{payload.backend.name}`; train again, or set "
            f"`backend: {bundle.backend}`"
        )
    scan = read_scan_to_infer(payload)
    identity = identity._replace(read=payload.files_read)
    label = f"infer {payload.backend.name}"
    with (
        explain_failures(payload),
        show_progress_of(label, payload, scan) as shown,
    ):
        options = _trained_options(payload, bundle.params)
        say = functools.partial(_say, payload)
        check_bad_pixels(payload.backend, scan)
        request = InferRequest(
            scan, bundle.model, options, payload.execution, shown.progress, say, shown.show
        )
        with take_turn(payload.backend, request):
            cost = check_cost(payload.backend, request, payload.display_path(payload.scan_file))
            with cost.explain_memory_errors():
                result = payload.backend.infer(request)
        shown.show_last(lambda: result.object * result.seen)
    with cost.explain_memory_errors():
        reconstruction = checked_reconstruction(result, scan, payload.backend.name)
        is_trained = bool(bundle.model.history)
        metrics = publish_reconstruction(
            payload,
            scan,
            reconstruction,
            identity,
            is_trained=is_trained,
            is_probe_fitted=getattr(options, "probe", None) == "refined",
        )
    print_result(payload, metrics)
    return metrics


@refuse_cut_files()
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
    from ptycho_tasks.builds.turns import take_turn
    from ptycho_tasks.results.product import read_product

    refuse_folders(payload.output_files)
    inputs = {"reconstruction": payload.start_file, **payload.scan_files}
    identity = identify_result(payload, "refine", inputs)
    start = read_product(payload.start_file)
    scan = read_scan_to_infer(payload)
    identity = identity._replace(read=payload.files_read)
    refiner = payload.backend
    try:
        start = checked_reconstruction(start, scan, payload.config.backend)
    except TrainingError as error:
        path = payload.display_path(payload.start_file)
        raise ScanError(f"{path}: is not of this scan: {error}; make it again") from error
    label = f"refine {refiner.name}"
    with explain_failures(payload), show_progress_of(label, payload) as shown:
        say = functools.partial(_say, payload)
        check_bad_pixels(refiner, scan)
        request = RefineRequest(
            scan, start, payload.options, payload.execution, shown.progress, say, shown.show
        )
        name = payload.display_path(payload.scan_file)
        with (
            take_turn(refiner, request),
            check_cost(refiner, request, name).explain_memory_errors(),
        ):
            # The payload's factory saw that it is there.
            result = refiner.refine(request)  # type: ignore[attr-defined]
        shown.show_last(lambda: result.object * result.seen)
    reconstruction = checked_reconstruction(result, scan, refiner.name, "refine")
    before = start.measure_misfit(scan.diffraction)
    began = {"r_factor": before.r_factor, "poisson_deviance": before.poisson_deviance}
    metrics = publish_reconstruction(
        payload,
        scan,
        reconstruction,
        identity,
        {"start": began},
        is_probe_fitted=payload.values.get("training.probe") == "refined",
    )
    print_line(payload, f"{'start':<10} R-factor {before.r_factor:.4f} before the refinement")
    print_result(payload, metrics)
    if metrics["r_factor"] > before.r_factor:
        print_warning(
            "the refinement explains the frames worse than its start did; change the options "
            f"under `refine:` ({refiner.name}), or leave it out"
        )
    return metrics


def _trained_options(payload: InferencePayload, params: Any) -> Any:
    """The options that the model was trained with, which need not be today's configuration."""
    import msgspec

    try:
        return msgspec.convert(params["training"], payload.backend.options_type)
    except (KeyError, msgspec.ValidationError) as error:
        raise BundleError(
            f"{payload.display_path(payload.model_dir)}: params.json: training: {error}; the "
            f"bundle is of another version of the backend `{payload.backend.name}`; train again"
        ) from error


def find_stage(name: str) -> Callable[[Any], object]:
    """What runs a stage, by its name."""
    functions = {"source": "check_source", "fixture": "make_fixture"}
    return globals()[functions.get(name, name)]  # type: ignore[no-any-return]
