"""The stages of the pipeline, each a function of one payload: what doit and the command line call.

The core owns every file: a stage reads its inputs, lets the backend compute, and publishes the
outputs whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.backend import (
    InferRequest,
    RefineRequest,
    TrainRequest,
    checked_model,
    checked_reconstruction,
)
from ptycho_tasks.backends import import_failure
from ptycho_tasks.code import backend_sources, core_sources, versions
from ptycho_tasks.errors import (
    BackendError,
    BundleError,
    ConfigError,
    FileWriteError,
    ScanError,
    TrainingError,
)
from ptycho_tasks.files import not_a_file
from ptycho_tasks.output import echo
from ptycho_tasks.payload import (
    AMPLITUDE,
    BUNDLE_NAME,
    METRICS,
    PHASE,
    PROJECT,
    RECONSTRUCTION,
    InferencePayload,
    Payload,
    RefinementPayload,
    TrainingPayload,
)
from ptycho_tasks.progress import show_progress
from ptycho_tasks.reporter import Stopped
from ptycho_tasks.state import known_sha256, known_source_digest

if TYPE_CHECKING:
    from ptycho_tasks.backend import Backend, Progress, Reconstruction, TrainedModel
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
        from ptycho_tasks.npz import write_scan
        from ptycho_tasks.simulate import simulate

        simulated = simulate(payload.source.simulate, name=payload.source_file.stem)
        write_scan(payload.source_file, _not_dark(simulated, "source.simulate", "raise `photons`"))
    scan = _read_source(payload, payload.source_file)
    _say_scan("source", payload.source_file, payload, scan)
    return scan


def make_fixture(payload: Payload) -> None:
    """Cut the source to the fixture and publish it with its sidecar.

    Raises:
        ScanError: the source breaks the contract, or has fewer frames than asked for.
        FileWriteError: the fixture cannot be written; an earlier one is unchanged.
    """
    scan = _read_source(payload, payload.source_file)
    source = payload.source_file
    made = cut_fixture(
        scan, source, known_sha256(payload.root, source), payload.fixture, payload.fixture_file
    )
    _say_scan("fixture", payload.fixture_file, payload, made)


def cut_fixture(
    scan: ScanData, source: Path, source_sha256: str, options: FixtureOptions, output: Path
) -> ScanData:
    """Cut a scan and publish the fixture with its sidecar; gives the fixture.

    Args:
        scan: what was read from `source`.
        source: the file, named in the sidecar.
        source_sha256: of its content; stands there too.
        options: which frames are taken.
        output: the NPZ; the sidecar is named alike and ends in .json.

    Raises:
        ScanError: the scan has fewer frames than asked for.
        FileWriteError: the fixture cannot be written; an earlier one is unchanged.
    """
    from ptycho_tasks.fixture import read_fixture, write_fixture

    write_fixture(
        scan,
        options,
        npz_path=output,
        sidecar_path=output.with_suffix(".json"),
        source_name=source.name,
        source_sha256=source_sha256,
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
    from ptycho_tasks.bundle import bundle_bytes
    from ptycho_tasks.files import write_atomic, writing

    _refuse_folders([payload.bundle_file])
    # Before anything is read: what is replaced meanwhile must not pass for what was read.
    made_from = _made_from(payload, "train", payload.training_files)
    scan = _read_fixture(payload) if payload.places == PROJECT else _read_subset(payload)
    work_dir = payload.work_dir(made_from)
    quiet = payload.execution.quiet
    label = f"train {payload.backend.name}"
    with (
        _made(work_dir),
        _answerable(payload, payload.backend),
        show_progress(label, quiet=quiet) as progress,
    ):
        given = payload.backend.train(
            TrainRequest(
                scan,
                payload.training,
                payload.execution,
                progress,
                work_dir,
                lambda text: _say(payload, f"{'':<10} {text}"),
                payload.log_dir,
            )
        )
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
    with writing(payload.checkpoints_dir):
        if payload.checkpoints_dir.exists():
            shutil.rmtree(payload.checkpoints_dir)
    for name, data in kept.items():
        path = payload.checkpoints_dir / name / BUNDLE_NAME
        write_atomic(path, data)
        _say(payload, f"checkpoint {_shown(path, payload)}")
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
    from ptycho_tasks.bundle import load_bundle

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
    label = f"infer {payload.backend.name}"
    with _answerable(payload, payload.backend), _progress(label, payload, scan) as progress:
        given = payload.backend.infer(
            InferRequest(
                scan,
                bundle.model,
                _trained_options(payload, bundle.params),
                payload.execution,
                progress,
            )
        )
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
    from ptycho_tasks.metrics import data_misfit
    from ptycho_tasks.product import read_product

    _refuse_folders(payload.output_files)
    inputs = {"reconstruction": payload.start_file, **payload.scan_files}
    made_from = _made_from(payload, "refine", inputs)
    start = read_product(payload.start_file)
    scan = _read_inference_scan(payload)
    refiner = payload.refiner
    try:
        start = checked_reconstruction(start, scan, payload.backend.name)
    except TrainingError as error:
        shown = _shown(payload.start_file, payload)
        raise ScanError(f"{shown}: is not of this scan: {error}; make it again") from error
    quiet = payload.execution.quiet
    label = f"refine {refiner.name}"
    with _answerable(payload, refiner), show_progress(label, quiet=quiet) as progress:
        given = refiner.refine(  # type: ignore[attr-defined]  # the payload's factory saw it
            RefineRequest(scan, start, payload.refinement, payload.refiner_execution, progress)
        )
    reconstruction = checked_reconstruction(given, scan, refiner.name, "refine")
    before = data_misfit(start.object, start.origin, start.probe, start.positions, scan.diffraction)
    began = {"r_factor": before.r_factor, "poisson_deviance": before.poisson_deviance}
    metrics = _publish(payload, scan, reconstruction, made_from, {"start": began})
    _say(payload, f"{'start':<10} R-factor {before.r_factor:.4f} before the refinement")
    _say_result(payload, metrics)
    if metrics["r_factor"] > before.r_factor:
        _say(
            payload,
            f"{'warning':<10} the refinement explains the frames worse than its start did; take "
            f"fewer epochs or smaller steps under `refine:` ({refiner.name}), or leave it out",
        )
    return metrics


def check_scan_to_infer(payload: InferencePayload, training: TrainingPayload) -> None:
    """Refuse a scan that could not be reconstructed after a training.

    Raises:
        ConfigError: the file is not there, or its frames are not of the size of the others.
        ScanError: the scan breaks the contract.
    """
    sizes = [_read_source(one, one.source_file).size for one in (training, payload)]
    if sizes[0] != sizes[1]:
        origin = payload.origins["source.file"]
        raise ConfigError(
            f"{origin}: {payload.scan_file}: has frames of {sizes[1]} x {sizes[1]} pixels, but "
            f"those to train on have {sizes[0]} x {sizes[0]}; name a scan of that size"
        )


def _refuse_folders(outputs: list[Path]) -> None:
    """Refuse to compute what could not be put in its place.

    Raises:
        FileWriteError: names the path.
    """
    for path in outputs:
        unfit = not_a_file(path)
        if unfit:
            raise FileWriteError(f"{path} {unfit}, which is in the way; move it away")
        if path.parent.is_file():
            raise FileWriteError(f"{path.parent} is a file, which is in the way; move it away")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder for the block, which goes again where that fails and left nothing in it."""
    from ptycho_tasks.files import writing

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for empty in (folder, folder.parent):
            with suppress(OSError):
                empty.rmdir()
        raise


def _tidy(work_dir: Path) -> None:
    """Remove the checkpoints of trainings that this one replaces, and an unused folder."""
    for other in work_dir.parent.iterdir():
        if other != work_dir:
            shutil.rmtree(other, ignore_errors=True)
    with suppress(OSError):
        work_dir.rmdir()


def _read_source(payload: Payload, path: Path) -> ScanData:
    """Read the source, or another scan in its format.

    The frames stay memory-mapped, so that a scan may be larger than memory. The price: should
    another program cut the file short meanwhile, the kernel ends this process with a bus error,
    which Python cannot catch. A scan is to be replaced by renaming, not rewritten in place.
    """
    from ptycho_tasks.readers import read_scan

    source = payload.source
    # The product is that of the source, and of no other scan.
    own = path == payload.source_file
    for key in ("source.file", "source.product") if own else ("inference.scan",):
        missing = payload.missing(key)
        if missing is not None:
            raise ConfigError(f"{missing}; correct the path")
    scan = read_scan(
        path,
        measurement=source.measurement,
        frame_axis=source.frame_axis,
        product=payload.product_file if own else None,
        pixel_size_m=source.pixel_size_m,
        energy_ev=source.energy_ev,
        distance_m=source.distance_m,
    )
    return _not_dark(scan, _shown(path, payload), "check the file and `source.measurement`")


def _read_fixture(payload: Payload) -> ScanData:
    from ptycho_tasks.fixture import read_fixture

    path = payload.fixture_file
    return _not_dark(read_fixture(path), _shown(path, payload), "take other frames into it")


def _read_subset(payload: TrainingPayload) -> ScanData:
    """The frames that a fixture of the source would hold."""
    from ptycho_tasks.fixture import select_indices
    from ptycho_tasks.scan import take_frames

    scan = _read_source(payload, payload.source_file)
    indices = select_indices(scan.positions, payload.fixture, name=scan.name)
    if len(indices) < scan.frame_count:
        scan = take_frames(scan, indices)
    _say_scan("scan", payload.source_file, payload, scan)
    return scan


def _not_dark(scan: ScanData, what: str, remedy: str) -> ScanData:
    # As a rule, the first frame tells.
    if not any(frame.any() for frame in scan.diffraction):
        raise ScanError(f"{what}: every frame is dark; nothing can be learnt from it; {remedy}")
    return scan


def _read_inference_scan(payload: InferencePayload) -> ScanData:
    if payload.config.inference.scan == "fixture":
        scan = _read_fixture(payload)
    else:
        scan = _read_source(payload, payload.scan_file)
    count = payload.config.inference.n_groups
    if count is not None and count != scan.frame_count:
        from ptycho_tasks.scan import evenly_spaced, take_frames

        if count > scan.frame_count:
            raise ConfigError(
                f"{payload.origins['inference.n_groups']}: inference.n_groups: {count} frames are "
                f"asked for, but {_shown(payload.scan_file, payload)} has {scan.frame_count}; ask "
                "for at most as many"
            )
        scan = take_frames(scan, evenly_spaced(scan.frame_count, count))
    _say_scan("scan", payload.scan_file, payload, scan)
    return scan


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


@contextmanager
def _progress(label: str, payload: Payload, scan: ScanData) -> Iterator[Progress]:
    """A `Progress` at which the frames that were read are let go of, so that a backend need not
    do so to reconstruct a scan that is larger than memory."""
    from ptycho_tasks.scan import release_pages

    with show_progress(label, quiet=payload.execution.quiet) as shown:

        def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
            release_pages(scan.diffraction)
            shown(done, total, metrics)

        yield progress


@contextmanager
def _answerable(payload: TrainingPayload | InferencePayload, at_work: Backend) -> Iterator[None]:
    """Say which backend, or which line of ptycho.yaml, is behind what a backend raises."""
    backend = f"backend `{at_work.name}`"
    try:
        yield
    except Stopped:
        raise
    except SystemExit as error:
        raise TrainingError(
            f"{backend} ended the program with sys.exit({error.code!r}); it must raise an error "
            "that says what is wrong"
        ) from error
    except ImportError as error:
        raise BackendError(f"{backend} cannot run: {import_failure(error)}") from error
    except ConfigError as error:
        key = str(error).partition(":")[0]
        text = str(error)
        if isinstance(payload, RefinementPayload) and key.startswith("training."):
            key, text = (said.replace("training.", "refine.", 1) for said in (key, text))
        origin = payload.origins.get(key)
        if origin is None:
            raise
        raise ConfigError(f"{origin}: {text}") from error


def _publish(
    payload: InferencePayload,
    scan: ScanData,
    reconstruction: Reconstruction,
    made_from: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    from ptycho_tasks.files import staged
    from ptycho_tasks.metrics import data_misfit
    from ptycho_tasks.pictures import Kind, picture_bytes
    from ptycho_tasks.product import product_bytes

    misfit = data_misfit(
        reconstruction.object,
        reconstruction.origin,
        reconstruction.probe,
        reconstruction.positions,
        scan.diffraction,
    )
    metrics = {
        "frames": scan.frame_count,
        "r_factor": misfit.r_factor,
        "poisson_deviance": misfit.poisson_deviance,
        "scores": _scores(payload, scan, reconstruction),
        **(more or {}),
    }
    shown: tuple[tuple[str, Kind], ...] = ((AMPLITUDE, "amplitude"), (PHASE, "phase"))
    pictures = {
        name: picture_bytes(
            reconstruction.object,
            reconstruction.seen,
            kind=kind,
            title=f"{payload.name}: {kind}",
            pixel_size_m=scan.pixel_size_m,
        )
        for name, kind in shown
    }
    contents = {
        RECONSTRUCTION: product_bytes(
            reconstruction, scan, residual=misfit.residual, provenance=made_from
        ),
        **pictures,
    }
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    said = metrics | {"made_from": {**made_from, "files": files}}
    contents[METRICS] = (json.dumps(said, indent=1, sort_keys=True) + "\n").encode()
    # All are written before the first takes its place, so a full disk leaves the old set whole.
    with ExitStack() as stack:
        for name, data in contents.items():
            stack.enter_context(staged(payload.output_dir / name)).write_bytes(data)
    return metrics


def _made_from(
    payload: TrainingPayload | InferencePayload, stage: str, inputs: dict[str, Path]
) -> dict[str, Any]:
    """What decides a stage's outputs: settings, versions, sha256 of the inputs."""
    backend, source = payload.backend, payload.backend_source
    if isinstance(payload, RefinementPayload):
        backend, source = payload.refiner, payload.refiner_source
    return {
        "settings": payload.settings(stage),
        "versions": versions(stage, backend),
        "sources": {
            name: known_source_digest(path)
            for name, path in {
                **core_sources(stage),
                **backend_sources(backend, source, payload.root),
            }.items()
        },
        "inputs": {
            name: known_sha256(payload.root, path)
            for name, path in inputs.items()
            # Who reads it says what is wrong with one that is missing.
            if path.is_file()
        },
    }


def _scores(
    payload: InferencePayload, scan: ScanData, reconstruction: Reconstruction
) -> dict[str, float | None] | None:
    """Scores against the scan's own object; None where it has none that covers the scan."""
    from ptycho_tasks.metrics import score

    if scan.object is None:
        return None
    try:
        return score(
            reconstruction.object,
            reconstruction.origin,
            scan.object,
            reconstruction.positions,
            scan.size,
        )
    except ScanError as error:
        # The images are right all the same; a placeholder for an object is common.
        _say(payload, f"no scores  objectGuess: {error}")
        return None


def _say_result(payload: InferencePayload, metrics: dict[str, Any]) -> None:
    for what, name in (
        ("product", RECONSTRUCTION),
        ("amplitude", AMPLITUDE),
        ("phase", PHASE),
        ("metrics", METRICS),
    ):
        _say(payload, f"{what:<10} {_shown(payload.output_dir / name, payload)}")
    _say(
        payload,
        f"{'misfit':<10} R-factor {metrics['r_factor']:.4f}, "
        f"Poisson deviance {metrics['poisson_deviance']:.4g} a pixel",
    )
    for name, value in (metrics["scores"] or {}).items():
        shown = "none" if value is None else format(value, ".4g")
        _say(payload, f"{'score':<10} {name} {shown}")


def _say_scan(what: str, path: Path, payload: Payload, scan: ScanData) -> None:
    N = scan.size
    _say(payload, f"{what:<10} {_shown(path, payload)}: {scan.frame_count} frames of {N} x {N}")
    for note in scan.notes:
        _say(payload, f"{'':<10} {note}")


def _shown(path: Path, payload: Payload) -> str:
    return str(path.relative_to(payload.root)) if path.is_relative_to(payload.root) else str(path)


def _say(payload: Payload, text: str) -> None:
    if not payload.execution.quiet:
        echo(text)
