"""Reconstruct one scan with pty-chi.

Conventions of the library, and ours: its FFT is not normalised, so that its probe is ours over N;
the middle of its even patch lies between pixels, half a pixel before pixel N//2, which a position
of ours names, so that the origin of our positions is at -1/2; its frames are intensities.

Axis letters: M frames, N detector pixels along one side, P probe modes, H, W object rows and
columns.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import TrainedModel, TrainRequest
from ptycho_tasks.errors import ScanError, TrainingError
from ptycho_tasks.scan import Canvas, ScanData, canvas_of
from ptycho_tasks_ptychi.engines import PtychiOptions
from ptycho_tasks_ptychi.evaluate import MODEL, frame_counts
from ptycho_tasks_ptychi.library import find_device, guest, import_task

FLUX_FACTOR = 4.0
"""A probe whose flux is within this factor of the mean counts a frame is taken as scaled."""
NEW_MODE_FLUX = 0.02
"""Flux of a probe mode that the scan does not have, over that of the first."""
CHUNK = 64
"""Frames that the difference map works on at once; decides speed and memory, not the result."""


def reconstruct(request: TrainRequest) -> TrainedModel:
    """Run the iterations; see `Ptychi.train`."""
    scan, options = request.scan, request.options
    device = find_device(request.execution.accelerator)
    in_frames = frame_counts(scan.diffraction)
    counts = float(in_frames.mean())
    if counts == 0:
        raise ScanError(f"{scan.name}: every frame is dark; there is nothing to reconstruct")
    probe = with_modes(scaled(scan.probe, counts), options.probe_modes or len(scan.probe))
    canvas = roomy_canvas(scan, options)
    # With the probe's flux F, |object|^2 is counts / F on the average.
    start = np.full(canvas.shape, math.sqrt(counts / flux_of(probe)), np.complex64)
    history: list[dict[str, float]] = []
    with guest(request.execution):
        api, make_task = import_task()
        task = task_of(api, make_task, options, scan, start, probe, canvas, device)
        request.progress(0, options.epochs, {})
        for epoch in range(1, options.epochs + 1):
            task.run(1)
            loss = float(task.reconstructor.loss_tracker.table["loss"].iloc[-1])
            if not math.isfinite(loss):
                raise diverged(options, f"the loss became NaN or Inf in epoch {epoch}")
            history.append({"loss": loss})
            request.progress(epoch, options.epochs, history[-1])
        image, found, used = (
            task.get_data_to_cpu(name, as_numpy=True)
            for name in ("object", "probe", "probe_positions")
        )
    positions = scan.positions
    if options.refine_positions:
        # Only what they moved by: single precision would round those that stayed.
        positions = positions + (used - relative_to(canvas, scan)).astype(np.float64)
        refuse_lost(positions, scan.size, canvas, options)
    arrays: dict[str, NDArray[Any]] = {
        "object": np.ascontiguousarray(image[0], np.complex64),
        "probe": np.ascontiguousarray(found[0] * scan.size, np.complex64),
        "positions": np.ascontiguousarray(positions, np.float64),
        "scan_positions": np.ascontiguousarray(scan.positions, np.float64),
        "counts": in_frames,
    }
    metadata = {"origin": list(canvas.origin), "scan": scan.name, "algorithm": options.algorithm}
    return TrainedModel({MODEL: arrays}, metadata, history)


def task_of(
    api: Any,
    make_task: type[Any],
    options: PtychiOptions,
    scan: ScanData,
    start: NDArray[np.complex64],
    probe: NDArray[np.complex64],
    canvas: Canvas,
    device: str,
) -> Any:
    """A reconstruction by the library, ready to run.

    Args:
        api: the module `ptychi.api`.
        make_task: the library's class of reconstructions.
        options: resolved.
        scan: gives frames and positions.
        start: (H, W) complex64 object to start from.
        probe: (P, N, N) complex64 in counts.
        canvas: where `start` lies.
        device: `cpu` or `gpu`.
    """
    given = relative_to(canvas, scan)
    task = make_task(
        configure(api, options, device),
        diffraction_data=np.square(scan.diffraction),
        object_data=start[None],
        probe_data=(probe / scan.size)[None],
        probe_position_y_px=given[:, 0],
        probe_position_x_px=given[:, 1],
    )
    # The library shuffles with a generator of its own that its seed does not reach.
    task.reconstructor.dataloader.generator.manual_seed(options.seed)
    return task


def relative_to(canvas: Canvas, scan: ScanData) -> NDArray[np.float32]:
    """(M, 2) float32 positions (y, x) from the canvas's pixel [0, 0]."""
    return np.asarray(scan.positions - np.asarray(canvas.origin), dtype=np.float32)


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
    probe.optimization_plan.start = options.refine_probe_from
    positions.optimizable = options.refine_positions
    positions.optimization_plan.start = options.refine_positions_from
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
        raise ScanError("probeGuess is zero everywhere; an iteration needs a probe to start from")
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


def roomy_canvas(scan: ScanData, options: PtychiOptions) -> Canvas:
    """The scan's canvas with a rim: for positions that round the other way, or that move."""
    rim = scan.size // 4 if options.refine_positions else 1
    canvas = canvas_of(scan.positions, scan.size)
    return Canvas(
        (canvas.origin[0] - rim, canvas.origin[1] - rim),
        (canvas.shape[0] + 2 * rim, canvas.shape[1] + 2 * rim),
    )


def refuse_lost(
    positions: NDArray[np.float64], size: int, canvas: Canvas, options: PtychiOptions
) -> None:
    """Refuse refined positions that left the canvas, or are none.

    Raises:
        TrainingError: says so.
    """
    if not np.isfinite(positions).all():
        raise diverged(options, "a position became NaN or Inf")
    needed = canvas_of(positions, size)
    for first, length, start, room in zip(
        needed.origin, needed.shape, canvas.origin, canvas.shape, strict=True
    ):
        if first < start or first + length > start + room:
            raise TrainingError(
                "the refined positions left the object; lower training.position_step "
                f"({options.position_step:g}), raise training.refine_positions_from "
                f"({options.refine_positions_from}), or set training.refine_positions to false"
            )


def diverged(options: PtychiOptions, what: str) -> TrainingError:
    """The error for iterations that came to nothing, with what may help."""
    remedy = (
        f"lower training.relaxation ({options.knob('relaxation'):g})"
        if options.algorithm == "DM"
        else f"lower training.object_step ({options.knob('object_step'):g})"
    )
    return TrainingError(f"{options.algorithm}: {what}; {remedy}")
