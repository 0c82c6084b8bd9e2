"""What the stages write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.builds.progress import _say, _warn
from ptycho_tasks.builds.stage_code import backend_sources, core_sources, versions
from ptycho_tasks.builds.state import known_sha256, known_source_digest
from ptycho_tasks.config.payload import (
    InferencePayload,
    Payload,
    RefinementPayload,
    TrainingPayload,
)
from ptycho_tasks.errors import FileWriteError, ScanError, TrainingError
from ptycho_tasks.layout import AMPLITUDE, METRICS, PHASE, RECONSTRUCTION
from ptycho_tasks.system.files import not_a_file

if TYPE_CHECKING:
    from ptycho_tasks.backend import Reconstruction
    from ptycho_tasks.physics.metrics import Misfit
    from ptycho_tasks.scan import ScanData


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
    from ptycho_tasks.system.files import writing

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
    from ptycho_tasks.system.files import remove_work

    remove_work(work_dir.parent, keep=work_dir)
    with suppress(OSError):
        work_dir.rmdir()


def _publish(
    payload: InferencePayload,
    scan: ScanData,
    reconstruction: Reconstruction,
    made_from: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    from ptycho_tasks.physics.metrics import data_misfit
    from ptycho_tasks.results.pictures import Kind, picture_bytes
    from ptycho_tasks.results.product import product_bytes
    from ptycho_tasks.system.files import staged

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
    from ptycho_tasks.physics.metrics import score

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
