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

from ptycho_tasks.backend import Reconstruction, RefineRequest, TrainedModel, TrainRequest
from ptycho_tasks.errors import ScanError, TrainingError
from ptycho_tasks.scan import Canvas, ScanData, canvas_of
from ptycho_tasks_ptychi.engines import PtychiOptions
from ptycho_tasks_ptychi.evaluate import MODEL, frame_counts, window
from ptycho_tasks_ptychi.library import find_device, guest, import_task

FLUX_FACTOR = 4.0
"""A probe whose flux is within this factor of the mean counts a frame is taken as scaled."""
NEW_MODE_FLUX = 0.02
"""Flux of a probe mode that the scan does not have, over that of the first."""
CHUNK = 64
"""Frames that the difference map works on at once; decides speed and memory, not the result."""


def reconstruct(request: TrainRequest) -> TrainedModel:
    """Iterate from a flat object; see `Ptychi.train`."""
    scan = request.scan
    in_frames = light_of(scan)
    made = iterate(request, flat_start(scan, request.options, float(in_frames.mean())))
    arrays: dict[str, NDArray[Any]] = {
        "object": made.object,
        "probe": made.probe,
        "positions": made.positions,
        "scan_positions": np.ascontiguousarray(scan.positions, np.float64),
        "counts": in_frames,
    }
    metadata = {
        "origin": list(made.origin),
        "scan": scan.name,
        "algorithm": request.options.algorithm,
    }
    return TrainedModel({MODEL: arrays}, metadata, [{"loss": loss} for loss in made.losses])


def refine(request: RefineRequest) -> Reconstruction:
    """Iterate from another backend's reconstruction; see `Ptychi.refine`."""
    scan = request.scan
    light_of(scan)
    made = iterate(request, start_from(request.start, scan, request.options))
    canvas = canvas_of(made.positions, scan.size)
    image = window(made.object, made.origin, canvas)
    return Reconstruction(image, canvas.origin, made.probe, made.positions, made.losses)


def light_of(scan: ScanData) -> NDArray[np.float64]:
    """(M,) float64 counts of the frames.

    Raises:
        ScanError: every frame is dark.
    """
    counts = frame_counts(scan.diffraction)
    if not counts.any():
        raise ScanError(f"{scan.name}: every frame is dark; there is nothing to reconstruct")
    return counts


def flat_start(scan: ScanData, options: PtychiOptions, counts: float) -> Reconstruction:
    """A flat object under the scan's probe, with the flux of the data.

    Args:
        scan: what is to be reconstructed.
        options: resolved.
        counts: mean counts a frame.

    Raises:
        ScanError: the probe is zero everywhere.
    """
    probe = with_modes(scaled(scan.probe, counts), options.probe_modes or len(scan.probe))
    canvas = roomy_canvas(scan.positions, scan.size, options)
    # With the probe's flux F, |object|^2 is counts / F on the average.
    image = np.full(canvas.shape, math.sqrt(counts / flux_of(probe)), np.complex64)
    return Reconstruction(image, canvas.origin, probe, scan.positions)


def start_from(start: Reconstruction, scan: ScanData, options: PtychiOptions) -> Reconstruction:
    """Another backend's reconstruction on a canvas to iterate on, flat where it is no result.

    Args:
        start: the reconstruction; it is not changed.
        scan: what it is of.
        options: resolved.

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
    canvas = roomy_canvas(start.positions, scan.size, options)
    image, seen = (window(part, start.origin, canvas) for part in (start.object, start.seen))
    image[~seen] = mean_level(image[seen])
    probe = with_modes(start.probe, options.probe_modes or len(start.probe))
    return Reconstruction(image, canvas.origin, probe, start.positions)


def mean_level(values: NDArray[np.complex64]) -> complex:
    """One value of the mean square and the mean phase of (K,) complex64."""
    modulus = math.sqrt(np.mean(np.abs(values.astype(np.complex128)) ** 2))
    return complex(modulus * np.exp(1j * np.angle(np.sum(values, dtype=np.complex128))))


def iterate(request: TrainRequest | RefineRequest, start: Reconstruction) -> Reconstruction:
    """Run the epochs that a request asks for; gives what they end at, on the canvas of the start.

    Args:
        request: gives frames, options and where to run.
        start: object, probe and positions to start from; its canvas is a `roomy_canvas`.

    Raises:
        TrainingError: the iterations diverged, or the positions left the canvas.
        ConfigError: the accelerator is not there.
    """
    options, losses = request.options, list[float]()
    device = find_device(request.execution.accelerator)
    with guest(request.execution):
        api, make_task = import_task()
        task = task_of(api, make_task, options, request.scan, start, device)
        request.progress(0, options.epochs, {})
        for epoch in range(1, options.epochs + 1):
            losses.append(run_epoch(task))
            if not math.isfinite(losses[-1]):
                raise diverged(options, f"the loss became NaN or Inf in epoch {epoch}")
            request.progress(epoch, options.epochs, {"loss": losses[-1]})
        return result_of(task, options, start, losses)


def run_epoch(task: Any) -> float:
    """Run one epoch of a `task_of`; gives its loss."""
    task.run(1)
    return float(task.reconstructor.loss_tracker.table["loss"].iloc[-1])


def result_of(
    task: Any, options: PtychiOptions, start: Reconstruction, losses: Sequence[float] = ()
) -> Reconstruction:
    """What a task has come to, on the canvas that it started on.

    Args:
        task: made by `task_of`.
        options: resolved.
        start: what it started from.
        losses: of its epochs.

    Raises:
        TrainingError: the positions are no numbers, or left the canvas.
    """
    image, probe, used = (
        task.get_data_to_cpu(name, as_numpy=True) for name in ("object", "probe", "probe_positions")
    )
    positions = start.positions
    if options.refine_positions:
        # Only what they moved by: single precision would round those that stayed.
        positions = positions + (used - relative_positions(start)).astype(np.float64)
        refuse_lost(positions, start, options)
    return Reconstruction(
        np.ascontiguousarray(image[0], np.complex64),
        start.origin,
        np.ascontiguousarray(probe[0] * start.probe.shape[-1], np.complex64),
        np.ascontiguousarray(positions, np.float64),
        losses,
    )


def task_of(
    api: Any,
    make_task: type[Any],
    options: PtychiOptions,
    scan: ScanData,
    start: Reconstruction,
    device: str,
) -> Any:
    """A reconstruction by the library, ready to run.

    Args:
        api: the module `ptychi.api`.
        make_task: the library's class of reconstructions.
        options: resolved.
        scan: gives the frames.
        start: object, probe and positions to start from.
        device: `cpu` or `gpu`.
    """
    given = relative_positions(start)
    task = make_task(
        configure(api, options, device),
        diffraction_data=np.square(scan.diffraction),
        object_data=start.object[None],
        probe_data=(start.probe / scan.size)[None],
        probe_position_y_px=given[:, 0],
        probe_position_x_px=given[:, 1],
    )
    # The library shuffles with a generator of its own that its seed does not reach.
    task.reconstructor.dataloader.generator.manual_seed(options.seed)
    return task


def relative_positions(start: Reconstruction) -> NDArray[np.float32]:
    """(M, 2) float32 positions (y, x) from the object's pixel [0, 0]."""
    return np.asarray(start.positions - np.asarray(start.origin), dtype=np.float32)


def configure(api: Any, options: PtychiOptions, device: str) -> Any:
    """The library's options for ours.

    Args:
        api: the module `ptychi.api`.
        options: resolved.
        device: `cpu` or `gpu`.
    """
    algorithm = options.algorithm
    kinds = {
        "LSQML": api.LSQMLOptions,
        "rPIE": api.RPIEOptions,
        "ePIE": api.EPIEOptions,
        "DM": api.DMOptions,
    }
    made = kinds[algorithm]()
    engine, image, probe, positions = (
        made.reconstructor_options,
        made.object_options,
        made.probe_options,
        made.probe_position_options,
    )
    engine.num_epochs = options.epochs
    engine.random_seed = options.seed % 2**32
    engine.default_device = api.Devices(device)
    engine.allow_nondeterministic_algorithms = False
    image.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    image.position_origin_coords = [-0.5, -0.5]
    # Both change the probe. Where it is known, it must stay.
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
        return made
    engine.batch_size = options.knob("batch_size")
    engine.batching_mode = api.BatchingModes(options.knob("batching"))
    image.step_size = options.knob("object_step")
    probe.step_size = options.knob("probe_step")
    if algorithm == "LSQML":
        engine.noise_model = api.NoiseModels(options.knob("noise_model"))
        engine.momentum_acceleration_gain = options.knob("momentum")
        # The first epoch would be spent on it; the start has the right flux already.
        engine.rescale_probe_intensity_in_first_epoch = False
    else:
        # ePIE's alpha only multiplies its step.
        image.alpha = probe.alpha = options.knob("alpha") if algorithm == "rPIE" else 1.0
    return made


def flux_of(probe: NDArray[np.complex64]) -> float:
    """Sum of |P|^2 over the modes and pixels of a (P, N, N) complex64 probe."""
    return float(np.sum(np.abs(probe.astype(np.complex128)) ** 2))


def scaled(probe: NDArray[np.complex64], counts: float) -> NDArray[np.complex64]:
    """A probe guess in counts: of any scale it gets the flux of the data, of about theirs it stays.

    Args:
        probe: (P, N, N) complex64.
        counts: mean counts a frame.

    Raises:
        ScanError: the probe is zero everywhere.
    """
    flux = flux_of(probe)
    if flux == 0:
        raise ScanError("probeGuess: is zero everywhere; give a probe to start from")
    if counts / FLUX_FACTOR <= flux <= counts * FLUX_FACTOR:
        return probe
    return (probe * math.sqrt(counts / flux)).astype(np.complex64)


def with_modes(probe: NDArray[np.complex64], modes: int) -> NDArray[np.complex64]:
    """The first `modes` of a probe, and weak new ones where it has fewer.

    A new mode is the first one times a product of Hermite polynomials over its width, orthogonal
    to those before it (Thibault and Menzel, Nature 494, 68, 2013, on what modes mean). The flux
    is kept.

    Args:
        probe: (P, N, N) complex64.
        modes: how many are wanted.

    Returns:
        (modes, N, N) complex64.
    """
    if modes == len(probe):
        return probe
    made = [mode.astype(np.complex128) for mode in probe[:modes]]
    orders = sorted(np.ndindex(modes + 1, modes + 1), key=lambda order: (sum(order), order))
    first = made[0]
    light = np.abs(first) ** 2
    along = []
    for axis in (0, 1):
        profile = light.sum(axis=1 - axis) / light.sum()
        index = np.arange(len(profile))
        middle = float(np.sum(profile * index))
        along.append(
            (index - middle) / max(math.sqrt(np.sum(profile * (index - middle) ** 2)), 1.0)
        )
    for row, column in orders[len(made) :]:
        if len(made) == modes:
            break
        polynomials = (
            np.polynomial.hermite_e.hermeval(values, [0] * order + [1])
            for values, order in zip(along, (row, column), strict=True)
        )
        new = first * np.multiply.outer(*polynomials)
        for other in made:
            new = new - other * (np.vdot(other, new) / np.vdot(other, other))
        made.append(new * (math.sqrt(NEW_MODE_FLUX) * np.linalg.norm(first) / np.linalg.norm(new)))
    result = np.stack(made)
    return (result * math.sqrt(flux_of(probe) / flux_of(result))).astype(np.complex64)


def roomy_canvas(positions: NDArray[np.float64], size: int, options: PtychiOptions) -> Canvas:
    """The canvas of some positions with a rim: for those that round the other way, or that move."""
    rim = size // 4 if options.refine_positions else 1
    canvas = canvas_of(positions, size)
    return Canvas(
        (canvas.origin[0] - rim, canvas.origin[1] - rim),
        (canvas.shape[0] + 2 * rim, canvas.shape[1] + 2 * rim),
    )


def refuse_lost(
    positions: NDArray[np.float64], start: Reconstruction, options: PtychiOptions
) -> None:
    """Refuse refined positions that left the object, or are none.

    Raises:
        TrainingError: says so.
    """
    if not np.isfinite(positions).all():
        raise diverged(options, "a position became NaN or Inf")
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


def diverged(options: PtychiOptions, what: str) -> TrainingError:
    """The error for iterations that came to nothing, with what may help."""
    remedy = (
        f"lower relaxation ({options.knob('relaxation'):g})"
        if options.algorithm == "DM"
        else f"lower object_step ({options.knob('object_step'):g})"
    )
    return TrainingError(f"{options.algorithm}: {what}; {remedy}")
