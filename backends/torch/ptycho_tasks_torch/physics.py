"""The forward model and the data misfit, in torch.

Axis letters: B groups, C frames in a group, P incoherent probe modes, N detector pixels along
one side. `...` stands for any leading axes. Real-space waves lie on the integer pixel grid of
the object; the sub-pixel rest of a position is a Fourier shift of the *probe*.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData, release_pages

CHUNK_FRAMES = 256
"""Frames that are read at once."""
FLUX_FACTOR = 4.0
"""A probe whose flux is within this factor of the mean counts a frame is taken as scaled."""


def far_field(wave: Tensor) -> Tensor:
    """Fraunhofer propagation: orthonormal FFT, zero frequency at index N//2.

    Args:
        wave: (..., N, N) complex exit wave.

    Returns:
        (..., N, N) complex wave on the detector, of the same total intensity.
    """
    shifted: Tensor = torch.fft.fftshift(torch.fft.fft2(wave, norm="ortho"), dim=(-2, -1))
    return shifted


def shift_probe(probe: Tensor, fractions: Tensor) -> Tensor:
    """Move the probe by a fraction of a pixel with the Fourier shift theorem.

    Args:
        probe: (P, N, N) complex64 modes.
        fractions: (..., 2) float32 shift (y, x) in pixels; positive moves to higher indices.

    Returns:
        (..., P, N, N) complex64, `probe(u - fraction)`.
    """
    size = probe.shape[-1]
    frequency = torch.fft.fftfreq(size, device=probe.device)
    angle_y = fractions[..., 0, None] * frequency
    angle_x = fractions[..., 1, None] * frequency
    angle = -2 * torch.pi * (angle_y[..., :, None] + angle_x[..., None, :])
    ramp = torch.polar(torch.ones_like(angle), angle)[..., None, :, :]
    moved: Tensor = torch.fft.ifft2(torch.fft.fft2(probe) * ramp)
    return moved


def intensities(patches: Tensor, probes: Tensor) -> Tensor:
    """Expected counts: the modes propagate alone and their intensities add.

    Args:
        patches: (..., N, N) complex object patches.
        probes: (..., P, N, N) complex probes, already shifted by the sub-pixel rest.

    Returns:
        (..., N, N) float expected counts, zero frequency at index N//2.
    """
    waves = far_field(probes * patches[..., None, :, :])
    return waves.real.square().add(waves.imag.square()).sum(dim=-3)


def poisson_misfit(intensity: Tensor, amplitude: Tensor, intensity_scale: float) -> Tensor:
    """Mean Poisson negative log-likelihood a pixel, in units of the mean measured intensity.

    With k = amplitude squared it is `I - k log I`, less its smallest possible value
    `k - k log k`, which depends on the data alone: a perfect fit gives zero, and float32 does
    not drown in a large constant. Both are divided by `intensity_scale`, so that learning rates
    mean the same at 1e4 and at 1e9 photons a frame.

    Args:
        intensity: (..., N, N) expected counts I.
        amplitude: (..., N, N) measured amplitude, sqrt of counts.
        intensity_scale: mean measured counts a pixel of the training split.

    Returns:
        Scalar.
    """
    # A floor of a ten-thousandth of the mean keeps the logarithm's slope finite in the dark.
    floor = 1e-4
    model = intensity / intensity_scale + floor
    counts = amplitude.square() / intensity_scale + floor
    misfit: Tensor = (model - counts - counts * torch.log(model / counts)).mean()
    return misfit


def amplitude_misfit(intensity: Tensor, amplitude: Tensor, intensity_scale: float) -> Tensor:
    """Mean absolute error of the amplitude, in units of the root mean measured intensity.

    Args and result as for `poisson_misfit`.
    """
    model = (intensity / intensity_scale + 1e-6).sqrt()
    misfit: Tensor = (model - amplitude / intensity_scale**0.5).abs().mean()
    return misfit


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
    flux = float(np.sum(np.abs(probe.astype(np.complex128)) ** 2))
    if flux > 0 and mean_counts / FLUX_FACTOR <= flux <= mean_counts * FLUX_FACTOR:
        return probe
    factor = np.sqrt(mean_counts / flux) if flux > 0 else 1.0
    return (probe * factor).astype(np.complex64)


def spot_radius(probe: Tensor) -> float:
    """Root mean square distance of a probe's light from its centre, pixels.

    Args:
        probe: (P, N, N) complex64 modes; not all dark.
    """
    light = probe.detach().abs().square().sum(dim=0).double()
    index = torch.arange(light.shape[-1], dtype=light.dtype, device=light.device)
    variance = 0.0
    for axis in (0, 1):
        share = light.sum(dim=1 - axis) / light.sum()
        mean = (share * index).sum()
        variance += float((share * (index - mean).square()).sum())
    return math.sqrt(variance)


def mean_intensity(diffraction: NDArray[np.float32], frames: NDArray[np.int64]) -> float:
    """Mean measured counts a pixel, over some frames of a scan that may lie on disk.

    Args:
        diffraction: (M, N, N) float32 amplitude.
        frames: (K,) indices of the frames that count.

    Returns:
        Mean of the squared amplitude.
    """
    total = 0.0
    for first in range(0, len(frames), CHUNK_FRAMES):
        read = diffraction[frames[first : first + CHUNK_FRAMES]]
        total += float(np.einsum("kyx,kyx->", read, read, dtype=np.float64))
        release_pages(diffraction)
    pixels: int = diffraction.shape[-1] ** 2
    return total / max(len(frames) * pixels, 1)


LEAST_COUNTS, MOST_COUNTS = 1e-18, 1e18
"""Mean counts a pixel between which single precision is enough, with room for bright pixels."""


def measured_intensity(scan: ScanData, frames: NDArray[np.int64]) -> float:
    """`mean_intensity` of some frames of a scan, where one can compute with it.

    Raises:
        ScanError: the frames are all dark, or their scale is beyond single precision.
    """
    intensity = mean_intensity(scan.diffraction, frames)
    if intensity == 0:
        raise ScanError(f"{scan.name}: diff3d: every frame is dark; there is nothing to learn from")
    if not LEAST_COUNTS <= intensity <= MOST_COUNTS:
        raise ScanError(
            f"{scan.name}: diff3d: {intensity:.3g} mean counts a pixel are beyond single precision "
            f"({LEAST_COUNTS:g} to {MOST_COUNTS:g}); scale the amplitudes to sqrt of counts, and "
            "take out broken pixels"
        )
    return intensity
