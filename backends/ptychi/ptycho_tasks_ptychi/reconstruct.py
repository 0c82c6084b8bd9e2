"""Reconstruct one scan with pty-chi: from a flat object, or from another reconstruction.

Conventions of the library, and ours: its FFT is not normalised, so that its probe is ours over N;
the middle of its even patch lies between pixels, half a pixel before pixel N//2, which a position
of ours names, so that the origin of our positions is at -1/2; its frames are intensities.

Axis letters: M frames, N detector pixels along one side, P probe modes, H, W object rows and
columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import (
    ROUGH_PROBE,
    Reconstruction,
    RefineRequest,
    TrainedModel,
    TrainRequest,
)
from ptycho_tasks.errors import ScanError, TrainingError
from ptycho_tasks.physics.forward import count_all_light
from ptycho_tasks.scan import Canvas, ScanData, canvas_of
from ptycho_tasks_ptychi.evaluate import MODEL, count_frames, cut_window
from ptycho_tasks_ptychi.library import choose_device, contain_library, import_library
from ptycho_tasks_ptychi.options import PtychiOptions

FLUX_FACTOR = 4.0
"""A probe whose flux is within this factor of the mean counts a frame has the right scale."""
NEW_MODE_FLUX = 0.02
"""Flux of a probe mode that the scan does not have, over that of the first."""
CHUNK = 64
"""Frames that the difference map works on at once; decides speed and memory, not the result."""
LEAST_COUNTS = 1e-6
"""Of a pixel that was measured, over the mean, where others were not: by less than that the library
knows which pixels of a frame are bad."""


def reconstruct_scan(request: TrainRequest) -> TrainedModel:
    """Iterate from a flat object; see `Ptychi.train`."""
    scan = request.scan
    if scan.is_probe_estimated:
        request.say(ROUGH_PROBE)
    counts = read_counts(scan)
    mean_counts = count_light(scan, float(counts.mean()))
    result = iterate(request, make_flat_start(scan, request.options, mean_counts))
    arrays: dict[str, NDArray[Any]] = {
        "object": result.object,
        "probe": result.probe,
        "positions": result.positions,
        "scan_positions": np.ascontiguousarray(scan.positions, np.float64),
        "counts": counts,
    }
    metadata = {
        "origin": list(result.origin),
        "scan": scan.name,
        "algorithm": request.options.algorithm,
    }
    return TrainedModel({MODEL: arrays}, metadata, [{"loss": loss} for loss in result.losses])


def refine_start(request: RefineRequest) -> Reconstruction:
    """Iterate from another backend's reconstruction; see `Ptychi.refine`."""
    scan = request.scan
    read_counts(scan)
    result = iterate(request, take_start(request.start, scan, request.options))
    canvas = canvas_of(result.positions, scan.size)
    image = cut_window(result.object, result.origin, canvas)
    return Reconstruction(image, canvas.origin, result.probe, result.positions, result.losses)


def read_counts(scan: ScanData) -> NDArray[np.float64]:
    """Read the (M,) float64 counts of the frames.

    Raises:
        ScanError: every frame is dark.
    """
    counts = count_frames(scan.diffraction)
    if not counts.any():
        raise ScanError(f"{scan.name}: every frame is dark; there is nothing to reconstruct")
    return counts


def count_light(scan: ScanData, counts: float) -> float:
    """Mean counts of whole frames, from those on pixels that were measured."""
    if scan.bad_pixels is None:
        return counts
    good = np.mean([np.isfinite(frame) for frame in scan.diffraction], axis=0)
    return count_all_light(counts, scan.probe, good)


def make_flat_start(scan: ScanData, options: PtychiOptions, counts: float) -> Reconstruction:
    """Make a flat object under the scan's probe, with the flux of the data.

    Args:
        scan: to reconstruct.
        options: of the training.
        counts: mean counts a frame.

    Raises:
        ScanError: the probe is zero everywhere.
    """
    probe = change_mode_count(
        scale_guess(scan.probe, counts), options.probe_modes or len(scan.probe)
    )
    canvas = add_rim(scan.positions, scan.size, options)
    # With the probe's flux F, |object|^2 is counts / F on the average.
    image = np.full(canvas.shape, math.sqrt(counts / sum_flux(probe)), np.complex64)
    return Reconstruction(image, canvas.origin, probe, scan.positions)


def take_start(start: Reconstruction, scan: ScanData, options: PtychiOptions) -> Reconstruction:
    """Place another backend's reconstruction on a canvas to iterate on, flat where it saw nothing.

    Args:
        start: the reconstruction; it is not changed.
        scan: its scan.
        options: of the refinement.

    Raises:
        ScanError: its probe or its positions are those of another scan, or do not fit its object.
    """
    sides, frames = start.probe.shape[-1], len(start.positions)
    if (sides, frames) != (scan.size, scan.frame_count):
        raise ScanError(
            f"{scan.name}: has {scan.frame_count} frames of {scan.size} x {scan.size} pixels, but "
            f"the reconstruction to go on from is of {frames} frames of {sides} x {sides}; make it "
            "again, from this scan"
        )
    canvas = add_rim(start.positions, scan.size, options)
    image, seen = (cut_window(part, start.origin, canvas) for part in (start.object, start.seen))
    image[~seen] = mean_level(image[seen])
    probe = change_mode_count(start.probe, options.probe_modes or len(start.probe))
    return Reconstruction(image, canvas.origin, probe, start.positions)


def mean_level(values: NDArray[np.complex64]) -> complex:
    """The value with the mean square and the mean phase of (K,) complex64 values."""
    modulus = math.sqrt(np.mean(np.abs(values.astype(np.complex128)) ** 2))
    return complex(modulus * np.exp(1j * np.angle(np.sum(values, dtype=np.complex128))))


def iterate(request: TrainRequest | RefineRequest, start: Reconstruction) -> Reconstruction:
    """Run the epochs of a request; gives the result, on the canvas of the start.

    Args:
        request: gives frames, options and device.
        start: object, probe and positions to start from, on a canvas of `add_rim`.

    Raises:
        TrainingError: the iterations diverged, or the positions left the canvas.
        ConfigError: the accelerator is not there.
    """
    options, losses = request.options, list[float]()
    device = choose_device(request.execution.accelerator)
    with contain_library(request.execution):
        api, task_type = import_library()
        task = make_task(api, task_type, options, request.scan, start, device)
        request.progress(0, options.epochs, {})
        for epoch in range(1, options.epochs + 1):
            losses.append(run_epoch(task))
            if not math.isfinite(losses[-1]):
                raise divergence_error(options, f"the loss became NaN or Inf in epoch {epoch}")
            request.progress(epoch, options.epochs, {"loss": losses[-1]})
            request.show(lambda: read_result(task, options, start).object)
        return read_result(task, options, start, losses)


def run_epoch(task: Any) -> float:
    """Run one epoch of a task; gives its loss."""
    task.run(1)
    return float(task.reconstructor.loss_tracker.table["loss"].iloc[-1])


def read_result(
    task: Any, options: PtychiOptions, start: Reconstruction, losses: Sequence[float] = ()
) -> Reconstruction:
    """Read the result of a task, on the canvas of its start.

    Args:
        task: from `make_task`.
        options: of the request.
        start: its start.
        losses: of its epochs.

    Raises:
        TrainingError: the positions are not finite, or left the canvas.
    """
    image, probe, used = (
        task.get_data_to_cpu(name, as_numpy=True) for name in ("object", "probe", "probe_positions")
    )
    positions = start.positions
    if options.refine_positions:
        # Only add the movements: single precision would round positions that stayed.
        positions = positions + (used - relative_positions(start)).astype(np.float64)
        refuse_lost_positions(positions, start, options)
    return Reconstruction(
        np.ascontiguousarray(image[0], np.complex64),
        start.origin,
        np.ascontiguousarray(probe[0] * start.probe.shape[-1], np.complex64),
        np.ascontiguousarray(positions, np.float64),
        losses,
    )


def make_task(
    api: Any,
    task_type: type[Any],
    options: PtychiOptions,
    scan: ScanData,
    start: Reconstruction,
    device: str,
) -> Any:
    """Make a reconstruction of the library that is ready to run.

    Args:
        api: the module `ptychi.api`.
        task_type: the library's class of reconstructions.
        options: of the request.
        scan: gives the frames.
        start: object, probe and positions to start from.
        device: `cpu` or `gpu`.
    """
    positions, engine_options = relative_positions(start), configure(api, options, device)
    counts, least = np.square(scan.diffraction), None
    if scan.bad_pixels is not None:
        least = LEAST_COUNTS * float(np.nanmean(counts))
        counts = np.nan_to_num(np.maximum(counts, 2 * least), nan=0.0)
        engine_options.reconstructor_options.exclude_measured_pixels_below = least
    task = task_type(
        engine_options,
        diffraction_data=counts,
        object_data=start.object[None],
        probe_data=(start.probe / scan.size)[None],
        probe_position_y_px=positions[:, 0],
        probe_position_x_px=positions[:, 1],
    )
    # The library shuffles with a generator that its seed does not set.
    task.reconstructor.dataloader.generator.manual_seed(options.seed)
    if least is not None:
        leave_out_bad(task.reconstructor.loss_tracker, least)
    return task


def leave_out_bad(tracker: Any, least: float) -> None:
    """Have the losses of a task be of pixels with more counts than `least`; the library leaves the
    others out of its steps, not of its losses."""
    compare = tracker.metric_function
    if compare is not None:
        tracker.metric_function = lambda predicted, counts: compare(
            *(one[counts > least] for one in (predicted, counts))
        )


def relative_positions(start: Reconstruction) -> NDArray[np.float32]:
    """(M, 2) float32 positions (y, x) from the object's pixel [0, 0]."""
    return np.asarray(start.positions - np.asarray(start.origin), dtype=np.float32)


def configure(api: Any, options: PtychiOptions, device: str) -> Any:
    """Translate the options into those of the library.

    Args:
        api: the module `ptychi.api`.
        options: of the request.
        device: `cpu` or `gpu`.
    """
    algorithm = options.algorithm
    kinds = {
        "LSQML": api.LSQMLOptions,
        "rPIE": api.RPIEOptions,
        "ePIE": api.EPIEOptions,
        "DM": api.DMOptions,
    }
    result = kinds[algorithm]()
    engine, image, probe, positions = (
        result.reconstructor_options,
        result.object_options,
        result.probe_options,
        result.probe_position_options,
    )
    engine.num_epochs = options.epochs
    engine.random_seed = options.seed % 2**32
    engine.default_device = api.Devices(device)
    engine.allow_nondeterministic_algorithms = False
    image.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    image.position_origin_coords = [-0.5, -0.5]
    # Both change the probe; a known probe must stay.
    image.remove_object_probe_ambiguity.enabled = options.refine_probe
    probe.orthogonalize_incoherent_modes.enabled = options.refine_probe
    probe.optimizable = options.refine_probe
    probe.optimization_plan.start = options.first_epoch("probe")
    positions.optimizable = options.refine_positions
    positions.optimization_plan.start = options.first_epoch("positions")
    positions.step_size = options.position_step
    if algorithm == "DM":
        engine.chunk_length = CHUNK
        engine.displayed_loss_function = None
        engine.exit_wave_update_relaxation = options.knob("relaxation")
        image.inertia = probe.inertia = options.knob("inertia")
        return result
    engine.batch_size = options.knob("batch_size")
    engine.batching_mode = api.BatchingModes(options.knob("batching"))
    image.step_size = options.knob("object_step")
    probe.step_size = options.knob("probe_step")
    if algorithm == "LSQML":
        engine.noise_model = api.NoiseModels(options.knob("noise_model"))
        engine.momentum_acceleration_gain = options.knob("momentum")
        # It would take the first epoch, and the start has the right flux already.
        engine.rescale_probe_intensity_in_first_epoch = False
    else:
        # ePIE's alpha only multiplies its step.
        image.alpha = probe.alpha = options.knob("alpha") if algorithm == "rPIE" else 1.0
    return result


def sum_flux(probe: NDArray[np.complex64]) -> float:
    """Sum of |P|^2 over the modes and pixels of a (P, N, N) complex64 probe."""
    return float(np.sum(np.abs(probe.astype(np.complex128)) ** 2))


def scale_guess(probe: NDArray[np.complex64], counts: float) -> NDArray[np.complex64]:
    """Scale a probe guess to counts, unless its flux is about that of the data already.

    Args:
        probe: (P, N, N) complex64.
        counts: mean counts a frame.

    Raises:
        ScanError: the probe is zero everywhere.
    """
    flux = sum_flux(probe)
    if flux == 0:
        raise ScanError("probeGuess: is zero everywhere; give a probe to start from")
    if counts / FLUX_FACTOR <= flux <= counts * FLUX_FACTOR:
        return probe
    return (probe * math.sqrt(counts / flux)).astype(np.complex64)


def _sort_modes(probe: NDArray[np.complex64]) -> NDArray[np.complex128]:
    """Orthogonal modes that give the same frames, the strongest first; without dark ones."""
    modes = probe.astype(np.complex128)
    if len(modes) == 1:
        return modes
    _, sizes, rows = np.linalg.svd(modes.reshape(len(modes), -1), full_matrices=False)
    lit = sizes > 1e-6 * sizes[0]
    ordered = (sizes[:, None] * rows)[lit].reshape(-1, *modes.shape[1:])
    strongest = modes[np.square(np.abs(modes)).sum(axis=(1, 2)).argmax()]
    # The phase of a mode is free: that of the first is left as it was.
    ordered[0] *= np.exp(1j * np.angle(np.vdot(ordered[0], strongest)))
    return np.asarray(ordered)


def change_mode_count(probe: NDArray[np.complex64], modes: int) -> NDArray[np.complex64]:
    """Take the strongest `modes` of a probe, and add weak new ones where it has fewer.

    Modes come in any order and overlap: those that are taken are the orthogonal ones that hold most
    light. A new mode is the first one times a product of Hermite polynomials over its width,
    orthogonal to those before it (Thibault and Menzel, Nature 494, 68, 2013, on what modes mean).
    The flux is kept.

    Args:
        probe: (P, N, N) complex64.
        modes: how many are wanted.

    Returns:
        (modes, N, N) complex64.
    """
    if modes == len(probe):
        return probe
    chosen = [*_sort_modes(probe)[:modes]]
    orders = sorted(np.ndindex(modes + 1, modes + 1), key=lambda order: (sum(order), order))
    first = chosen[0]
    light = np.abs(first) ** 2
    along = []
    for axis in (0, 1):
        profile = light.sum(axis=1 - axis) / light.sum()
        index = np.arange(len(profile))
        middle = float(np.sum(profile * index))
        along.append(
            (index - middle) / max(math.sqrt(np.sum(profile * (index - middle) ** 2)), 1.0)
        )
    for row, column in orders[len(chosen) :]:
        if len(chosen) == modes:
            break
        polynomials = (
            np.polynomial.hermite_e.hermeval(values, [0] * order + [1])
            for values, order in zip(along, (row, column), strict=True)
        )
        new = first * np.multiply.outer(*polynomials)
        for other in chosen:
            new = new - other * (np.vdot(other, new) / np.vdot(other, other))
        chosen.append(
            new * (math.sqrt(NEW_MODE_FLUX) * np.linalg.norm(first) / np.linalg.norm(new))
        )
    result = np.stack(chosen)
    return (result * math.sqrt(sum_flux(probe) / sum_flux(result))).astype(np.complex64)


def add_rim(positions: NDArray[np.float64], size: int, options: PtychiOptions) -> Canvas:
    """The canvas of positions, with a rim for positions that round otherwise, or that move."""
    rim = size // 4 if options.refine_positions else 1
    canvas = canvas_of(positions, size)
    return Canvas(
        (canvas.origin[0] - rim, canvas.origin[1] - rim),
        (canvas.shape[0] + 2 * rim, canvas.shape[1] + 2 * rim),
    )


def refuse_lost_positions(
    positions: NDArray[np.float64], start: Reconstruction, options: PtychiOptions
) -> None:
    """Refuse refined positions that left the object, or are not finite.

    Raises:
        TrainingError: says so.
    """
    if not np.isfinite(positions).all():
        raise divergence_error(options, "a position became NaN or Inf")
    needed = canvas_of(positions, start.probe.shape[-1])
    for first, length, begin, room in zip(
        needed.origin, needed.shape, start.origin, start.object.shape, strict=True
    ):
        if first < begin or first + length > begin + room:
            raise TrainingError(
                "the refined positions left the object; lower position_step "
                f"({options.position_step:g}), raise refine_positions_from "
                f"({options.first_epoch('positions')}), or set refine_positions to false"
            )


def divergence_error(options: PtychiOptions, what: str) -> TrainingError:
    """The error for iterations that failed, with a remedy."""
    remedy = (
        f"lower relaxation ({options.knob('relaxation'):g})"
        if options.algorithm == "DM"
        else f"lower object_step ({options.knob('object_step'):g})"
    )
    return TrainingError(f"{options.algorithm}: {what}; {remedy}")
