"""The forward model: from object, probe and positions to expected counts.

    I_i(q) = sum_p | F[ P_p(u - f_i) O(u + c_i) ](q) |^2

with c_i the whole part and f_i the sub-pixel rest of position i, F the orthonormal Fourier
transform with the zero frequency at index N//2 (Rodenburg and Maiden, Springer Handbook of
Microscopy, 2019, chapter 17; incoherent modes: Thibault and Menzel, Nature 494, 68, 2013).
Single precision throughout: its error stays far below the shot noise of any real detector.

Axis letters:  B frames of a chunk,  P probe modes,  N patch side,  H, W object grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import corners_and_fractions

CHUNK_PIXELS = 2**17
"""Complex pixels in flight; about 1 MiB an intermediate array, which suits a CPU's cache."""


def fourier_shift(field: NDArray[Any], shift_yx: ArrayLike) -> NDArray[np.complex64]:
    """Move a periodic field by a fraction of a pixel: out(u) = field(u - shift).

    Args:
        field: (..., H, W) complex.
        shift_yx: (..., 2) pixels, positive towards larger indices; its leading axes broadcast
            with those of `field`.

    Returns:
        (..., H, W) complex64.
    """
    from scipy import fft

    shift = np.asarray(shift_yx, dtype=np.float64)
    rows, columns = field.shape[-2:]
    ramp_y = np.exp(-2j * np.pi * fft.fftfreq(rows) * shift[..., 0, None])
    ramp_x = np.exp(-2j * np.pi * fft.fftfreq(columns) * shift[..., 1, None])
    spectrum = fft.fft2(np.asarray(field, dtype=np.complex64))
    spectrum = spectrum * ramp_y.astype(np.complex64)[..., :, None]
    spectrum *= ramp_x.astype(np.complex64)[..., None, :]
    moved: NDArray[np.complex64] = fft.ifft2(spectrum, overwrite_x=True)
    return moved


def probe_at(probe: NDArray[np.complex64], fraction: ArrayLike) -> NDArray[np.complex64]:
    """Move the probe by the sub-pixel rest of a position, so that patches stay on whole pixels.

    The probe and not the patch is moved: it is smooth and falls to zero at its rim, where a
    patch, cut out of a larger object, is not periodic.

    Args:
        probe: (P, N, N) complex64.
        fraction: (2,) or (B, 2) sub-pixel rest of the positions (y, x).

    Returns:
        (P, N, N) or (B, P, N, N) complex64.
    """
    return fourier_shift(probe, np.asarray(fraction, dtype=np.float64)[..., None, :])


def propagate(field: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Far field of exit waves (..., N, N): orthonormal, zero frequency at index N//2."""
    from scipy import fft

    far: NDArray[np.complex64] = fft.fft2(field, norm="ortho")
    return np.asarray(fft.fftshift(far, axes=(-2, -1)))


def far_light(probe: NDArray[np.complex64]) -> NDArray[np.float64]:
    """(N, N) counts of a (P, N, N) probe's own far field."""
    return np.asarray(np.square(np.abs(propagate(probe)), dtype=np.float64).sum(axis=0))


def share_of_light(probe: NDArray[np.complex64], good: NDArray[Any]) -> float:
    """What share of a probe's own far field falls where it is measured.

    Args:
        probe: (P, N, N) complex64.
        good: (N, N) share of the frames in which a pixel was measured.
    """
    light = far_light(probe)
    return float((light * good).sum() / light.sum()) if light.any() else float(np.mean(good))


LEAST_SHARE = 0.02
"""Of a probe's own light, on good pixels: of less, what is measured there is the object's."""


def count_all_light(counts: float, probe: NDArray[np.complex64], good: NDArray[Any]) -> float:
    """Mean counts of whole frames, from those on good pixels.

    What falls on bad pixels is taken as the share of the probe's own far field there; where that
    is nearly all of it, the probe's flux is taken as it is.

    Args:
        counts: mean counts a frame, on good pixels.
        probe: (P, N, N) complex64.
        good: (N, N) share of the frames in which a pixel was measured.
    """
    share = share_of_light(probe, good)
    if share >= LEAST_SHARE:
        return counts / share
    return float(np.square(np.abs(probe), dtype=np.float64).sum()) or counts


def expected_intensity(
    object: NDArray[np.complex64],
    probe: NDArray[np.complex64],
    positions: NDArray[np.float64],
    origin: tuple[int, int] = (0, 0),
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Expected counts of every frame, a chunk of frames at a time, in bounded memory.

    Args:
        object: (H, W) complex64.
        probe: (P, N, N) complex64 incoherent modes, |probe|^2 in counts.
        positions: (M, 2) float64 (y, x) on the scan's object grid, pixels.
        origin: (row, column) on the scan's object grid of object[0, 0].

    Yields:
        (frames, intensity): the frames covered, and their (B, N, N) float32 counts.

    Raises:
        ScanError: a patch reaches outside the object.
    """
    size = probe.shape[-1]
    corners, fractions = patch_corners(positions, size, origin, object.shape)
    # A view on every possible patch: an indexed read copies whole rows, and never moves data twice.
    patches = np.lib.stride_tricks.sliding_window_view(
        np.asarray(object, dtype=np.complex64), (size, size)
    )
    step = max(1, CHUNK_PIXELS // probe.size)
    for first in range(0, len(positions), step):
        frames = slice(first, min(first + step, len(positions)))
        patch = patches[corners[frames, 0], corners[frames, 1]]
        wave = probe_at(probe, fractions[frames]) * patch[:, None]
        far = propagate(wave)
        yield frames, np.sum(far.real**2 + far.imag**2, axis=1, dtype=np.float32)


def patch_corners(
    positions: NDArray[np.float64], size: int, origin: tuple[int, int], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where in an object of `shape` the patches lie.

    Args:
        positions: (M, 2) float64 (y, x) on the scan's object grid, pixels.
        size: N.
        origin: (row, column) on the scan's object grid of object[0, 0].
        shape: (H, W) of the object.

    Returns:
        corners (M, 2) int64, index of each patch's top-left pixel, and fractions (M, 2) float64,
        the sub-pixel rest; both (y, x).

    Raises:
        ScanError: a patch reaches outside the object.
    """
    corners, fractions = corners_and_fractions(positions, size)
    corners = corners - np.asarray(origin)
    # Nothing is added to a corner: at the end of the integers it would come round.
    outside = np.any((corners < 0) | (corners > np.asarray(shape) - size), axis=1)
    if outside.any():
        frame = int(np.argmax(outside))
        raise ScanError(
            f"{int(outside.sum())} of {len(corners)} patches reach outside the object of "
            f"{shape[0]} x {shape[1]} pixels, first frame {frame} with its top-left pixel at "
            f"(row, column) = ({corners[frame, 0]}, {corners[frame, 1]}); "
            f"check the positions' unit and axis order"
        )
    return corners, fractions


def illumination_of(
    probe: NDArray[np.complex64],
    positions: NDArray[np.float64],
    origin: tuple[int, int],
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """How much light each pixel of an object got: the sum of |probe|^2 over modes and frames.

    Sub-pixel shifts of the probe are neglected.

    Args:
        probe: (P, N, N) complex64, |probe|^2 in counts.
        positions: (M, 2) float64 (y, x) on the scan's object grid, pixels.
        origin: (row, column) on the scan's object grid of the object's pixel [0, 0].
        shape: (H, W) of the object.

    Returns:
        (H, W) float32; zero where no frame saw anything.

    Raises:
        ScanError: a patch reaches outside the object.
    """
    intensity = np.sum(np.abs(probe) ** 2, axis=0, dtype=np.float32)
    N = intensity.shape[-1]
    total = np.zeros(shape, np.float32)
    corners, _ = patch_corners(positions, N, origin, shape)
    for y, x in corners:
        total[y : y + N, x : x + N] += intensity
    return total
