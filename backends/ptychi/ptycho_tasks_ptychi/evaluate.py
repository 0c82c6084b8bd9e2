"""A reconstruction in the frame of the scan that is asked for. Numpy is all it takes.

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
"""Share of a frame's light that must fall on what was reconstructed."""


@dataclass(frozen=True)
class Found:
    """What a bundle of this backend holds."""

    object: NDArray[np.complex64]
    """(H, W) complex64."""
    origin: tuple[int, int]
    """(row, column) on the scan's object grid of object[0, 0]."""
    probe: NDArray[np.complex64]
    """(P, N, N) complex64 in counts."""
    positions: NDArray[np.float64]
    """(M, 2) float64 (y, x) as used, of the frames that were reconstructed from."""
    scan_positions: NDArray[np.float64]
    """(M, 2) float64 (y, x) of the same frames as the scan has them."""
    counts: NDArray[np.float64]
    """(M,) float64 counts of the same frames; with the place, they tell a frame."""
    scan: str
    """Name of the scan."""

    @classmethod
    def of(cls, model: TrainedModel) -> Found:
        """Take the arrays out of a bundle.

        Raises:
            BundleError: something is missing or of another shape.
        """
        try:
            arrays = model.models[MODEL]
            row, column = (int(side) for side in model.metadata["origin"])
            found = cls(
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
        shapes = [array.shape for array in (found.object, found.probe, found.positions)]
        square = len(shapes[1]) == 3 and shapes[1][1] == shapes[1][2]
        listed = shapes[2] == found.scan_positions.shape == (*found.counts.shape, 2)
        try:
            if len(shapes[0]) != 2 or not square or not listed:
                raise ScanError(f"object, probe and positions have the shapes {shapes}")
            patch_corners(found.positions, shapes[1][-1], found.origin, shapes[0])
        except ScanError as error:
            raise BundleError(
                f"wts.h5.zip: the parts of the reconstruction do not fit: {error}; train again"
            ) from error
        return found


def evaluate(request: InferRequest) -> Reconstruction:
    """Object and probe in the scan's frame; see `Ptychi.infer`."""
    scan, found = request.scan, Found.of(request.model)
    N = found.probe.shape[-1]
    if scan.size != N:
        raise ConfigError(
            f"{scan.name}: its frames have {scan.size} x {scan.size} pixels, but those of "
            f"{found.scan}, which was reconstructed, have {N} x {N}; reconstruct this scan"
        )
    request.progress(0, scan.frame_count, {})
    positions, strangers = positions_used(found, scan)
    canvas = canvas_of(positions, N)
    refuse_unseen(found, scan, positions, canvas)
    image = window(found.object, found.origin, canvas)
    made = Reconstruction(
        object=image,
        origin=canvas.origin,
        probe=found.probe,
        positions=positions,
        losses=[epoch["loss"] for epoch in request.model.history],
    )
    if strangers.size:
        refuse_another_object(found, scan, made, strangers)
    request.progress(scan.frame_count, scan.frame_count, {})
    return made


def frame_counts(diffraction: NDArray[np.float32]) -> NDArray[np.float64]:
    """(M,) float64 counts of (M, N, N) float32 amplitudes, which may lie on disk."""
    return np.array([np.sum(np.square(frame, dtype=np.float64)) for frame in diffraction])


def positions_used(found: Found, scan: ScanData) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Refined positions for the frames that were reconstructed from, the scan's own for others.

    Args:
        found: the reconstruction.
        scan: the scan that is asked for.

    Returns:
        (M, 2) float64 (y, x), and (K,) int64, the others.
    """
    known = {
        (y, x, counts): used
        for (y, x), counts, used in zip(
            found.scan_positions, found.counts, found.positions, strict=True
        )
    }
    positions, strangers = np.array(scan.positions, dtype=np.float64), []
    told = zip(scan.positions, frame_counts(scan.diffraction), strict=True)
    for frame, ((y, x), counts) in enumerate(told):
        if (y, x, counts) in known:
            positions[frame] = known[y, x, counts]
        else:
            strangers.append(frame)
    return positions, np.array(strangers, dtype=np.int64)


def refuse_another_object(
    found: Found, scan: ScanData, made: Reconstruction, strangers: NDArray[np.int64]
) -> None:
    """Refuse new frames that the reconstruction explains no better than an empty object does.

    Raises:
        TrainingError: says so.
    """
    level = np.sqrt(np.mean(np.abs(made.object[made.seen]) ** 2))
    ours, empty = (
        data_misfit(
            image, made.origin, made.probe, made.positions[strangers], scan.diffraction[strangers]
        ).r_factor
        for image in (made.object, np.full_like(made.object, level))
    )
    if ours >= empty:
        raise TrainingError(
            f"{scan.name}: {strangers.size} of {scan.frame_count} frames are new, and the object "
            f"reconstructed from {found.scan} explains them no better than an empty one (R-factor "
            f"{ours:.3g}, {empty:.3g}): an iterative engine knows no other object; reconstruct "
            "this scan"
        )


def refuse_unseen(
    found: Found, scan: ScanData, positions: NDArray[np.float64], canvas: Canvas
) -> None:
    """Refuse a scan with frames beside the object that was reconstructed.

    Raises:
        TrainingError: names the first such frame.
    """
    light = illumination_of(found.probe, found.positions, found.origin, found.object.shape)
    seen = window(light >= SEEN_LEVEL * light.max(), found.origin, canvas)
    beam = np.sum(np.abs(found.probe) ** 2, axis=0, dtype=np.float64)
    N = beam.shape[-1]
    corners = corners_and_fractions(positions, N)[0] - np.asarray(canvas.origin)
    shares = np.array([np.sum(beam, where=seen[y : y + N, x : x + N]) for y, x in corners])
    lost = np.flatnonzero(shares < LEAST_LIGHT * beam.sum())
    if lost.size:
        raise TrainingError(
            f"{scan.name}: {lost.size} of {scan.frame_count} frames, first frame {lost[0]}, lie "
            f"beside the object that was reconstructed from {found.scan}; an iterative engine "
            "knows no other: reconstruct this scan"
        )


def window(image: NDArray[Any], origin: tuple[int, int], canvas: Canvas) -> NDArray[Any]:
    """The part of an image that a canvas shows; zero where the image does not reach.

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
