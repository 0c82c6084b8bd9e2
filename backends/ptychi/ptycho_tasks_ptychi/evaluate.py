"""Look a reconstruction up, in the frame of the scan to infer. Only numpy is needed.

Axis letters: M frames, N detector pixels along one side, P probe modes, H, W object rows and
columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import SEEN_LEVEL, InferRequest, Reconstruction, TrainedModel
from ptycho_tasks.errors import BundleError, ConfigError, ScanError, TrainingError
from ptycho_tasks.physics.forward import illumination_of, patch_corners
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.scan import Canvas, ScanData, canvas_of, corners_and_fractions

MODEL = "reconstruction"
"""Name of the bundle's only model."""
LEAST_LIGHT = 0.5
"""Share of a frame's light that must fall on the reconstructed object."""


@dataclass(frozen=True)
class Stored:
    """The reconstruction that a bundle holds."""

    object: NDArray[np.complex64]
    """(H, W) complex64."""
    origin: tuple[int, int]
    """(row, column) on the scan's object grid of object[0, 0]."""
    probe: NDArray[np.complex64]
    """(P, N, N) complex64 in counts."""
    positions: NDArray[np.float64]
    """(M, 2) float64 (y, x) of the frames that were used, as refined."""
    scan_positions: NDArray[np.float64]
    """(M, 2) float64 (y, x) of the same frames in their scan."""
    counts: NDArray[np.float64]
    """(M,) float64 counts of the same frames; place and counts together identify a frame."""
    scan: str
    """Name of the scan."""


def read_stored(model: TrainedModel) -> Stored:
    """Read the reconstruction of a bundle.

    Raises:
        BundleError: a part is missing or has another shape.
    """
    try:
        arrays = model.models[MODEL]
        row, column = (int(side) for side in model.metadata["origin"])
        stored = Stored(
            origin=(row, column),
            scan=str(model.metadata["scan"]),
            **{
                name: np.asarray(arrays[name])
                for name in ("object", "probe", "positions", "scan_positions", "counts")
            },
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(
            f"wts.h5.zip: lacks a part of the reconstruction ({error}); train again"
        ) from error
    shapes = [array.shape for array in (stored.object, stored.probe, stored.positions)]
    square = len(shapes[1]) == 3 and shapes[1][1] == shapes[1][2]
    listed = shapes[2] == stored.scan_positions.shape == (*stored.counts.shape, 2)
    try:
        if len(shapes[0]) != 2 or not square or not listed:
            raise ScanError(f"object, probe and positions have the shapes {shapes}")
        patch_corners(stored.positions, shapes[1][-1], stored.origin, shapes[0])
    except ScanError as error:
        raise BundleError(
            f"wts.h5.zip: the parts of the reconstruction do not fit: {error}; train again"
        ) from error
    return stored


def look_up_scan(request: InferRequest) -> Reconstruction:
    """Give object and probe in the scan's frame; see `Ptychi.infer`."""
    scan, stored = request.scan, read_stored(request.model)
    N = stored.probe.shape[-1]
    if scan.size != N:
        raise ConfigError(
            f"{scan.name}: its frames have {scan.size} x {scan.size} pixels, but those of "
            f"{stored.scan}, which was reconstructed, have {N} x {N}; reconstruct this scan"
        )
    request.progress(0, scan.frame_count, {})
    positions, new = choose_positions(stored, scan)
    canvas = canvas_of(positions, N)
    refuse_unseen(stored, scan, positions, canvas)
    image = cut_window(stored.object, stored.origin, canvas)
    result = Reconstruction(
        object=image,
        origin=canvas.origin,
        probe=stored.probe,
        positions=positions,
        losses=[epoch["loss"] for epoch in request.model.history],
    )
    if new.size:
        refuse_another_object(stored, scan, result, new)
    request.progress(scan.frame_count, scan.frame_count, {})
    return result


def count_frames(diffraction: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum (M, N, N) float32 amplitudes, which may lie on disk, to (M,) float64 counts on the pixels
    that were measured."""
    return np.array([np.nansum(np.square(frame, dtype=np.float64)) for frame in diffraction])


def choose_positions(
    stored: Stored, scan: ScanData
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Choose the refined position of a frame that was used, and the scan's own of a new frame.

    Args:
        stored: the reconstruction.
        scan: the scan to infer.

    Returns:
        (M, 2) float64 (y, x), and (K,) int64 indices of the new frames.
    """
    known = {
        (y, x, counts): used
        for (y, x), counts, used in zip(
            stored.scan_positions, stored.counts, stored.positions, strict=True
        )
    }
    positions, new = np.array(scan.positions, dtype=np.float64), []
    frames = zip(scan.positions, count_frames(scan.diffraction), strict=True)
    for frame, ((y, x), counts) in enumerate(frames):
        if (y, x, counts) in known:
            positions[frame] = known[y, x, counts]
        else:
            new.append(frame)
    return positions, np.array(new, dtype=np.int64)


def refuse_another_object(
    stored: Stored, scan: ScanData, result: Reconstruction, new: NDArray[np.int64]
) -> None:
    """Refuse new frames that the reconstruction explains no better than an empty object.

    Raises:
        TrainingError: says so.
    """
    level = np.sqrt(np.mean(np.abs(result.object[result.seen]) ** 2))
    error, empty_error = (
        data_misfit(
            image, result.origin, result.probe, result.positions[new], scan.diffraction[new]
        ).r_factor
        for image in (result.object, np.full_like(result.object, level))
    )
    if error >= empty_error:
        raise TrainingError(
            f"{scan.name}: {new.size} of {scan.frame_count} frames are new, and the object "
            f"reconstructed from {stored.scan} explains them no better than an empty one (R-factor "
            f"{error:.3g}, {empty_error:.3g}): an iterative engine knows no other object; "
            "reconstruct this scan"
        )


def refuse_unseen(
    stored: Stored, scan: ScanData, positions: NDArray[np.float64], canvas: Canvas
) -> None:
    """Refuse a scan with frames beside the reconstructed object.

    Raises:
        TrainingError: names the first such frame.
    """
    light = illumination_of(stored.probe, stored.positions, stored.origin, stored.object.shape)
    seen = cut_window(light >= SEEN_LEVEL * light.max(), stored.origin, canvas)
    beam = np.sum(np.abs(stored.probe) ** 2, axis=0, dtype=np.float64)
    N = beam.shape[-1]
    corners = corners_and_fractions(positions, N)[0] - np.asarray(canvas.origin)
    shares = np.array([np.sum(beam, where=seen[y : y + N, x : x + N]) for y, x in corners])
    lost = np.flatnonzero(shares < LEAST_LIGHT * beam.sum())
    if lost.size:
        raise TrainingError(
            f"{scan.name}: {lost.size} of {scan.frame_count} frames, first frame {lost[0]}, lie "
            f"beside the object that was reconstructed from {stored.scan}; an iterative engine "
            "knows no other: reconstruct this scan"
        )


def cut_window(image: NDArray[Any], origin: tuple[int, int], canvas: Canvas) -> NDArray[Any]:
    """Cut the part of an image that a canvas shows; zero where the image does not reach.

    Args:
        image: (H, W) of any dtype.
        origin: (row, column) on the scan's object grid of image[0, 0].
        canvas: a window of the same grid.
    """
    shown = np.zeros(canvas.shape, image.dtype)
    source, target = [], []
    for first, length, start, size in zip(
        origin, image.shape, canvas.origin, canvas.shape, strict=True
    ):
        low, high = max(first, start), max(first, start, min(first + length, start + size))
        source.append(slice(low - first, high - first))
        target.append(slice(low - start, high - start))
    shown[tuple(target)] = image[tuple(source)]
    return shown
