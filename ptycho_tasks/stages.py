"""The stages of the pipeline, each a function of one payload: what doit and the command line call.

The core owns every file: a stage reads its inputs, lets the backend compute, and publishes the
outputs whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
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
from ptycho_tasks.state import known_sha256, known_source_digest, spelled

if TYPE_CHECKING:
    from ptycho_tasks.backend import Backend, Progress, Reconstruction, TrainedModel
    from ptycho_tasks.metrics import Misfit
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
        if not any(frame.any() for frame in simulated.diffraction):
            raise ScanError("source.simulate: every frame is dark; raise `photons`")
        write_scan(payload.source_file, simulated)
    scan = _read_source(payload, payload.source_file)
    _say_scan("source", payload.source_file, payload, scan)
    _say_doubts(payload.source_file, payload, scan)
    return scan


def is_as_simulated(payload: Payload) -> bool:
    """Whether the source file is what a simulation would put there now."""
    from ptycho_tasks.files import sha256_file, temporary
    from ptycho_tasks.npz import write_scan
    from ptycho_tasks.simulate import simulate

    path = payload.source_file
    if payload.source.simulate is None or not path.is_file():
        return False
    with temporary(path) as made:
        write_scan(made, simulate(payload.source.simulate, name=path.stem))
        return sha256_file(made) == sha256_file(path)


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
    from ptycho_tasks.fixture import read_fixture, write_fixture

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
    from ptycho_tasks.bundle import bundle_bytes
    from ptycho_tasks.cost import check_cost
    from ptycho_tasks.files import write_atomic
    from ptycho_tasks.made import record, recording, remove_recorded

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
    from ptycho_tasks.bundle import load_bundle
    from ptycho_tasks.cost import check_cost

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
    from ptycho_tasks.cost import check_cost
    from ptycho_tasks.metrics import data_misfit
    from ptycho_tasks.product import read_product

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
    from ptycho_tasks.files import remove_work

    remove_work(work_dir.parent, keep=work_dir)
    with suppress(OSError):
        work_dir.rmdir()


def _read_source(payload: Payload, path: Path) -> ScanData:
    """Read the source, or another scan in its format.

    The frames stay memory-mapped, so that a scan may be larger than memory. The price: should
    another program cut the file short meanwhile, the kernel ends this process with a bus error,
    which Python cannot catch. A scan is to be replaced by renaming, not rewritten in place.
    """
    from ptycho_tasks.readers import read_scan, refuse_changed

    source = payload.source
    # The product is that of the source, and of no other scan.
    own = path == payload.source_file
    for key in ("source.file", "source.product") if own else ("inference.scan",):
        missing = payload.missing(key)
        if missing is not None:
            raise ConfigError(f"{missing}; correct the path")
    scan = read_scan(
        path,
        product=payload.product_file if own else None,
        follow=tuple(map(payload.path, source.follow)),
        **source.reading,
    )
    payload.files_read.update(
        {spelled(payload.root, file): known_sha256(payload.root, file) for file in scan.files}
    )
    refuse_changed(scan.files)
    return scan


def _read_fixture(payload: Payload) -> ScanData:
    from ptycho_tasks.fixture import read_fixture

    return read_fixture(payload.fixture_file)


def _read_subset(payload: TrainingPayload) -> ScanData:
    """The frames that a fixture of the source would hold."""
    from ptycho_tasks.fixture import select_indices
    from ptycho_tasks.scan import take_frames

    scan = _read_source(payload, payload.source_file)
    indices = select_indices(scan.positions, payload.fixture, name=scan.name)
    if len(indices) < scan.frame_count:
        scan = take_frames(scan, indices)
    _say_scan("scan", payload.source_file, payload, scan)
    _say_doubts(payload.source_file, payload, scan)
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
    _refuse_several(payload, scan)
    _say_scan("scan", payload.scan_file, payload, scan)
    # In a project, what the source leaves in doubt was said when it was checked.
    if payload.places != PROJECT or payload.config.inference.scan not in ("source", "fixture"):
        _say_doubts(payload.scan_file, payload, scan)
    return scan


def _refuse_several(payload: InferencePayload, scan: ScanData) -> None:
    """Refuse to lay several scans onto one canvas.

    Raises:
        ConfigError: names the key that says which one is meant.
    """
    from ptycho_tasks.scan import scan_numbers

    numbers = scan_numbers(scan)
    if len(numbers) > 1:
        shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        raise ConfigError(
            f"{_shown(payload.scan_file, payload)}: key 'scan_index' holds {len(numbers)} scans "
            f"({shown}), and a reconstruction is of one; name it with source.scan_index"
        )


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
    _refuse_worthless(misfit)
    metrics = {
        "frames": scan.frame_count,
        "r_factor": misfit.r_factor,
        "poisson_deviance": misfit.poisson_deviance,
        "flat": misfit.flat._asdict(),
        "noise": misfit.noise._asdict(),
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
    if misfit.is_poor:
        _warn(
            f"R-factor {misfit.r_factor:.3g}, where photon noise alone gives "
            f"{misfit.noise.r_factor:.2g}: the misfit is {misfit.noise_ratio:.3g} times that of "
            f"noise; {_CHECKS}"
        )
    return metrics


_CHECKS = (
    "check the positions (unit, axes, signs), the probe and `source.measurement`, or train longer"
)


def _refuse_worthless(misfit: Misfit) -> None:
    """Refuse to publish what explains nothing.

    Raises:
        TrainingError: with the numbers.
    """
    if misfit.explains_nothing:
        raise TrainingError(
            "the reconstruction explains the frames no better than a flat object with the same "
            f"probe (R-factor {misfit.r_factor:.3g}; flat {misfit.flat.r_factor:.3g}; photon noise "
            f"alone {misfit.noise.r_factor:.2g}); nothing was written; {_CHECKS}"
        )


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


def _read_besides(payload: Payload) -> dict[str, dict[str, str]]:
    """What was read besides the inputs, to be added to what a result was made from."""
    return {"read": dict(payload.files_read)} if payload.files_read else {}


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


def _say_doubts(path: Path, payload: Payload, scan: ScanData) -> None:
    from ptycho_tasks.plausibility import doubts

    for doubt in doubts(scan):
        _warn(f"{_shown(path, payload)}: {doubt}")


def _shown(path: Path, payload: Payload) -> str:
    return str(path.relative_to(payload.root)) if path.is_relative_to(payload.root) else str(path)


def _warn(text: str) -> None:
    """Also where the rest is quiet."""
    echo(f"{'warning':<10} {text}")


def _say(payload: Payload, text: str) -> None:
    if not payload.execution.quiet:
        echo(text)
