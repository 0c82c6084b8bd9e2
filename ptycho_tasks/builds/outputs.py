"""What the stages write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.builds.identity import Identity, seal_metrics
from ptycho_tasks.builds.messages import print_line, print_warning
from ptycho_tasks.builds.stage_code import acting_backend, list_sources, list_versions
from ptycho_tasks.builds.state import digest_of_source, sha256_of_input
from ptycho_tasks.config.fields import canonical_json
from ptycho_tasks.config.payload import (
    InferencePayload,
    Payload,
)
from ptycho_tasks.errors import FileWriteError, ScanError, TrainingError
from ptycho_tasks.layout import AMPLITUDE, METRICS, PHASE, RECONSTRUCTION
from ptycho_tasks.system.files import find_file_problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ptycho_tasks.backend import Reconstruction
    from ptycho_tasks.physics.metrics import Misfit
    from ptycho_tasks.scan import ScanData


BACKGROUND = 0.02
"""Share of the light from which on somebody is told of a background."""


def refuse_folders(outputs: list[Path]) -> None:
    """Refuse to compute what could not be put in its place.

    Raises:
        FileWriteError: names the path.
    """
    for path in outputs:
        unfit = find_file_problem(path)
        if unfit:
            raise FileWriteError(f"{path} {unfit}, which is in the way; move it away")
        if path.parent.is_file():
            raise FileWriteError(f"{path.parent} is a file, which is in the way; move it away")


@contextmanager
def make_folder(folder: Path) -> Iterator[None]:
    """A folder for the block, which goes again where that fails and left nothing in it."""
    from ptycho_tasks.system.files import report_write_errors

    with report_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for empty in (folder, folder.parent):
            with suppress(OSError):
                empty.rmdir()
        raise


def remove_other_trainings(work_dir: Path) -> None:
    """Remove the checkpoints of trainings that this one replaces, and an unused folder."""
    from ptycho_tasks.results.work_folders import remove_work_folders

    remove_work_folders(work_dir.parent, keep=work_dir)
    with suppress(OSError):
        work_dir.rmdir()


def publish_reconstruction(
    payload: InferencePayload,
    scan: ScanData,
    reconstruction: Reconstruction,
    identity: Identity,
    more: dict[str, Any] | None = None,
    *,
    is_trained: bool = False,
    is_probe_fitted: bool = False,
) -> dict[str, Any]:
    """Publish a reconstruction: product, pictures and metrics, all or none.

    Args:
        payload: of the stage.
        scan: what was reconstructed.
        reconstruction: what the backend gave.
        identity: what decides it; it is kept in the files.
        more: further entries of metrics.json.
        is_trained: whether it was made with what was learned in epochs.
        is_probe_fitted: whether its training was told to fit the probe.

    Gives what metrics.json holds, but for the identity.

    Raises:
        TrainingError: it explains nothing.
        FileWriteError: the files cannot be written; earlier ones are unchanged.
    """
    from ptycho_tasks.physics.displacement import MISPLACED
    from ptycho_tasks.physics.metrics import describe_poor
    from ptycho_tasks.results.pictures import Kind, picture_bytes
    from ptycho_tasks.results.product import product_bytes
    from ptycho_tasks.scans.mapping import refuse_cut
    from ptycho_tasks.system.files import replace_file

    misfit = reconstruction.measure_misfit(scan.diffraction)
    refuse_cut()
    poor = describe_poor(misfit, misfit.noise)
    displacement = reconstruction.measure_displacement(scan.diffraction)
    checks = ""
    background = _describe_background(misfit.background)
    if poor is not None or misfit.explains_nothing:
        checks = _name_checks(
            scan, displacement, is_trained=is_trained, is_probe_fitted=is_probe_fitted
        )
        checks = f"{background}; else {checks}" if background else checks
    _refuse_worthless(misfit, checks)
    metrics = {
        "frames": scan.frame_count,
        "r_factor": misfit.r_factor,
        "poisson_deviance": misfit.poisson_deviance,
        "flat": misfit.flat._asdict(),
        "noise": misfit.noise._asdict(),
        **_score(payload, scan, reconstruction),
        "displacement_px": displacement,
        **({} if reconstruction.steps is None else {"steps": reconstruction.steps}),
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
            reconstruction, scan, residual=misfit.residual, provenance=identity.to_record()
        ),
        **pictures,
    }
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    made_from = {**identity.to_record(), "files": files, "metrics": seal_metrics(metrics)}
    record = metrics | {"made_from": made_from}
    contents[METRICS] = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    # All are written before the first takes its place, so a full disk leaves the old set whole.
    with ExitStack() as stack:
        for name, data in contents.items():
            place = payload.target(payload.output_dir / name)
            stack.enter_context(replace_file(place)).write_bytes(data)
    if poor is not None:
        print_warning(f"{poor}; {checks}")
    elif len(misfit.far_off):
        print_warning(_describe_far_off(misfit.far_off))
    elif background:
        print_warning(background)
    elif displacement > MISPLACED:
        print_warning(
            f"frames fit the object better {displacement:.2g} pixels (root mean square) from their "
            "positions: these are not quite right, or the probe is not; training.positions and "
            "training.probe: refined (backend unrolled) mend either, `ptycho-tasks check SCAN` may "
            "say why"
        )
    return metrics


def _describe_background(share: float) -> str:
    if not share > BACKGROUND:
        return ""
    return (
        f"about {100 * share:.2g} % of the light is in all pixels alike, where object and probe "
        "send none: a background, which spoils the image where photons are few; take a dark image "
        "off the counts in the file, and set source.negative_counts to clip"
    )


def _name_checks(
    scan: ScanData, displacement: float, *, is_trained: bool, is_probe_fitted: bool
) -> str:
    """What may be wrong with a scan whose frames are explained badly."""
    from ptycho_tasks.physics.displacement import MISPLACED
    from ptycho_tasks.physics.metrics import find_unit

    checks = (
        "`ptycho-tasks check SCAN` may say why: check the positions (unit, axes, signs), the probe "
        "and `source.measurement`"
    )
    if displacement > MISPLACED:
        checks = (
            f"{checks}; frames fit the object better {displacement:.2g} pixels (root mean square) "
            "from their positions, and training.positions: refined (backend unrolled) moves them"
        )
    if scan.is_probe_estimated:
        checks = (
            "the probe is only an estimate from the frames: take a known one (source.probe: "
            f"FILE), or more frames to fit it to; {checks}"
        )
    unit = find_unit(scan.diffraction)
    if unit != 1:
        checks = (
            f"the frames hold whole multiples of {unit:.3g}, and no counts, so that their noise is "
            "another: first divide counts by it in the file, or amplitudes by its root; else "
            f"{checks}"
        )
    if is_trained:
        return f"{checks}, or train longer"
    if scan.is_probe_estimated:
        return checks
    anew = "source.probe: estimate finds one without a guess"
    if is_probe_fitted:
        return f"{checks}; where a probe is far from the right one, {anew}"
    return (
        f"{checks}; training.probe: refined (backend unrolled) fits a probe that is a guess, and "
        f"{anew}"
    )


def _describe_far_off(frames: NDArray[np.int64]) -> str:
    from ptycho_tasks.scans.raw_scan import ranges

    which = f"frame {frames[0]}" if len(frames) == 1 else f"frames {ranges(frames)}"
    return (
        f"most of the misfit is that of {which}, counted from 0: a position is wrong, the value of "
        "a pixel, or there was more or less light; `ptycho-tasks check SCAN` names pixels that a "
        "ray hit, and frames whose light differs from that around them"
    )


def _refuse_worthless(misfit: Misfit, checks: str) -> None:
    """Refuse to publish what explains nothing.

    Raises:
        TrainingError: with the numbers.
    """
    if misfit.explains_nothing:
        raise TrainingError(
            "the reconstruction explains the frames no better than a flat object with the same "
            f"probe (R-factor {misfit.r_factor:.3g}; flat {misfit.flat.r_factor:.3g}; photon noise "
            f"alone {misfit.noise.r_factor:.2g}); nothing was written; {checks}"
        )


def identify_result(payload: Payload, stage: str, inputs: Mapping[str, Path]) -> Identity:
    """What decides a stage's outputs, of its files as they are now; see `payload.files_read` for
    the further ones that are known only when the scan was read.

    Args:
        payload: of the stage.
        stage: its name.
        inputs: its files, by role. One that is missing is left out: who reads it says what is
            wrong.
    """
    backend = acting_backend(stage, payload.backend)
    sources = list_sources(stage, backend, payload.backend_source, payload.root, payload.reader)
    return Identity(
        canonical_json(payload.settings(stage)),
        list_versions(stage, backend, payload.reader),
        {name: digest_of_source(path) for name, path in sources.items()},
        {role: sha256_of_input(payload.root, p) for role, p in inputs.items() if p.is_file()},
    )


def _score(
    payload: InferencePayload, scan: ScanData, reconstruction: Reconstruction
) -> dict[str, Any]:
    """Scores against the scan's own object, and how much that one misses the frames, which tells
    whether it is the truth; none where it has none that covers the scan."""
    from ptycho_tasks.physics.metrics import score
    from ptycho_tasks.physics.truth import judge_own_object

    if scan.object is None:
        return {"scores": None}
    try:
        scores = score(
            reconstruction.object,
            reconstruction.origin,
            scan.object,
            reconstruction.positions,
            scan.size,
        )
    except ScanError as error:
        # The images are right all the same; a placeholder for an object is common.
        print_line(payload, f"no scores  objectGuess: {error}")
        return {"scores": None}
    return {"scores": scores, "object_guess": {"noise_ratio": judge_own_object(scan)}}
