"""The scale of measured frames: mean counts, and a probe of their flux."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.physics.forward import count_all_light
from ptycho_tasks.scan import ScanData, release_pages

CHUNK_FRAMES = 256
"""Frames that are read at once."""
FLUX_FACTOR = 4.0
"""A probe whose flux is within this factor of the mean counts a frame has the right scale."""


def scale_probe(probe: NDArray[np.complex64], mean_counts: float) -> NDArray[np.complex64]:
    """Give a probe guess of unknown scale the flux of the data.

    The flux, sum over modes and pixels of |P|^2, is mean counts a frame over mean |O|^2; a guess
    within a factor `FLUX_FACTOR` is kept, because a weak object makes that much difference.

    Args:
        probe: (P, N, N) complex64.
        mean_counts: mean counts a frame.

    Returns:
        (P, N, N) complex64 such that |FFT(probe * patch)|^2 is in counts.
    """
    flux = _sum_flux(probe)
    if flux > 0 and mean_counts / FLUX_FACTOR <= flux <= mean_counts * FLUX_FACTOR:
        return probe
    factor = np.sqrt(mean_counts / flux) if flux > 0 else 1.0
    return (probe * factor).astype(np.complex64)


def describe_scaling(probe: NDArray[np.complex64], mean_counts: float) -> str:
    """Why `scale_probe` gives a probe another scale, and what follows, in a line."""
    flux, counts = show_number(_sum_flux(probe), 3), show_number(mean_counts, 3)
    return (
        f"probe: scaled to the frames, its flux is {flux} where a frame holds {counts} counts; "
        "amplitudes of the object are relative"
    )


def show_number(value: float, digits: int) -> str:
    """A number of so many digits as it is written by hand: 99, 1200, 1e9."""
    return f"{float(f'{value:.{digits}g}'):g}".replace("e+0", "e").replace("e+", "e")


def _sum_flux(probe: NDArray[np.complex64]) -> float:
    return float(np.sum(np.abs(probe.astype(np.complex128)) ** 2))


def mean_intensity(scan: ScanData, frames: NDArray[np.int64]) -> float:
    """Mean counts a pixel, over some frames of a scan that may lie on disk.

    What falls on bad pixels is taken as the share of the probe's own far field there.

    Args:
        scan: gives frames and probe.
        frames: (K,) indices of the frames that count.

    Returns:
        Mean of the squared amplitude.
    """
    diffraction, total = scan.diffraction, 0.0
    good = np.zeros(diffraction.shape[1:])
    for first in range(0, len(frames), CHUNK_FRAMES):
        chunk = diffraction[frames[first : first + CHUNK_FRAMES]]
        if scan.bad_pixels is not None:
            good += np.isfinite(chunk).sum(axis=0)
            chunk = np.nan_to_num(chunk, nan=0.0)
        total += _sum_squares(chunk)
        release_pages(diffraction)
    if scan.bad_pixels is not None:
        count = max(len(frames), 1)
        total = count * count_all_light(total / count, scan.probe, good / count)
    return total / max(len(frames) * scan.size**2, 1)


def _sum_squares(values: NDArray[np.float32]) -> float:
    """Of (K, N, N) values: of each frame in single precision, which is four times as fast, where
    their squares are within its range."""
    total = float(np.einsum("kyx,kyx->k", values, values).sum(dtype=np.float64))
    if LEAST_COUNTS < total < np.inf:
        return total
    return float(np.einsum("kyx,kyx->", values, values, dtype=np.float64))


SAMPLED_FRAMES = 16
"""Frames that are looked at to find what a photon is."""
FAINT, MOST_WHOLE = 1e-6, 1e4
"""Square amplitudes, over that of a photon: below the first a pixel is dark; above the second
single precision does not tell whole numbers any more."""
WHOLE, WHOLE_SHARE = 0.02, 0.99
"""How near to whole numbers photon counts are, and what share of the pixels must be."""


def find_photon(diffraction: NDArray[np.float32]) -> float:
    """Find the square amplitude that one photon stands for: 1 where frames are roots of counts.

    Frames that were divided by a constant still show their photons, as steps of a fixed height;
    frames that were resampled or corrected pixel by pixel do not.

    Args:
        diffraction: (M, N, N) float32 amplitude; may lie on disk.

    Returns:
        The square amplitude; 0 where no steps are seen.
    """
    every = max(1, len(diffraction) // SAMPLED_FRAMES)
    squares = np.square(np.asarray(diffraction[::every][:SAMPLED_FRAMES], dtype=np.float64))
    release_pages(diffraction)
    lit = squares[squares > FAINT * np.fmax.reduce(squares, axis=None)]
    if not lit.size:
        return 0.0
    for photon in (float(lit.min()), 1.0):
        counts = lit[lit < MOST_WHOLE * photon] / photon
        near = (np.abs(counts - np.round(counts)) < WHOLE) & (counts > 1 - WHOLE)
        if near.size == 0 or near.mean() >= WHOLE_SHARE:
            return photon
    return 0.0


LEAST_COUNTS, MOST_COUNTS = 1e-18, 1e18
"""Range of mean counts a pixel for which single precision is enough, also for bright pixels."""


def read_intensity(scan: ScanData, frames: NDArray[np.int64]) -> float:
    """Read the `mean_intensity` of some frames of a scan, and refuse one that is of no use.

    Raises:
        ScanError: the frames are all dark, or their scale is beyond single precision.
    """
    intensity = mean_intensity(scan, frames)
    if intensity == 0:
        raise ScanError(f"{scan.name}: diff3d: every frame is dark; there is nothing to learn from")
    if not LEAST_COUNTS <= intensity <= MOST_COUNTS:
        raise ScanError(
            f"{scan.name}: diff3d: {intensity:.3g} mean counts a pixel are beyond single precision "
            f"({LEAST_COUNTS:g} to {MOST_COUNTS:g}); scale the amplitudes to sqrt of counts, and "
            "take out broken pixels"
        )
    return intensity
