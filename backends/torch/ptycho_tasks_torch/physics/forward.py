"""The forward model and the data misfit, in torch.

Axis letters: B groups, C frames in a group, P incoherent probe modes, N detector pixels along
one side. `...` stands for any leading axes. Real-space waves lie on the integer pixel grid of
the object; what a position is off that grid is a Fourier shift of the *probe*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PIXEL = 6**-0.5
"""Root mean square radius of a single pixel, pixels."""


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
    """Move the probe, or an object, by a fraction of a pixel with the Fourier shift theorem.

    Args:
        probe: (P, S, T) complex64 modes, or canvases.
        fractions: (..., 2) float32 shift (y, x) in pixels; positive moves to higher indices.

    Returns:
        (..., P, S, T) complex64, `probe(u - fraction)`.
    """
    ramp = shift_ramp(probe.shape[-2:], fractions)[..., None, :, :]
    moved: Tensor = torch.fft.ifft2(torch.fft.fft2(probe) * ramp)
    return moved


def shift_ramp(shape: Sequence[int], fractions: Tensor) -> Tensor:
    """(..., S, T) complex64 factors of the Fourier transform, zero frequency first, of a wave that
    is moved.

    Args:
        shape: (S, T).
        fractions: (..., 2) float32 shift (y, x) in pixels.
    """
    angles = (
        -2
        * torch.pi
        * fractions[..., axis, None]
        * torch.fft.fftfreq(side, device=fractions.device)
        for axis, side in enumerate(shape)
    )
    along, across = (torch.polar(torch.ones_like(angle), angle) for angle in angles)
    return along[..., :, None] * across[..., None, :]


def intensities(patches: Tensor, probes: Tensor) -> Tensor:
    """Expected counts: the modes propagate alone and their intensities add.

    Args:
        patches: (..., N, N) complex object patches.
        probes: (..., P, N, N) complex probes, shifted by the sub-pixel part of the position.

    Returns:
        (..., N, N) float expected counts, zero frequency at index N//2.
    """
    waves = far_field(probes * patches[..., None, :, :])
    return waves.real.square().add(waves.imag.square()).sum(dim=-3)


def has_bad_pixels(amplitude: Tensor) -> bool:
    """Whether an amplitude is NaN, as it is where a pixel was not measured."""
    return bool(torch.isnan(amplitude).any())


def match_light(intensity: Tensor, amplitude: Tensor) -> Tensor:
    """Scale intensities to the light that was measured on the same pixels.

    Args:
        intensity: (..., N, N) expected counts.
        amplitude: (..., N, N) measured amplitude; NaN where a pixel is bad.
    """
    if not has_bad_pixels(amplitude):
        return intensity * (amplitude.square().sum() / intensity.sum())
    good = ~torch.isnan(amplitude)
    return intensity * (amplitude[good].square().sum() / intensity[good].sum())


def poisson_misfit(intensity: Tensor, amplitude: Tensor, intensity_scale: float) -> Tensor:
    """Mean Poisson negative log-likelihood a pixel, in units of the mean measured intensity.

    With k = amplitude squared it is `I - k log I`, less its smallest possible value
    `k - k log k`, which depends on the data alone: a perfect fit gives zero, and float32 does
    not drown in a large constant. Both are divided by `intensity_scale`, so that a learning rate
    means the same at 1e4 and at 1e9 photons a frame.

    Args:
        intensity: (..., N, N) expected counts I.
        amplitude: (..., N, N) measured amplitude, sqrt of counts; a pixel that is NaN is left out.
        intensity_scale: mean measured counts a pixel of the training split.

    Returns:
        Scalar.
    """
    if has_bad_pixels(amplitude):
        intensity, amplitude = _take_good(intensity, amplitude)
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
    if has_bad_pixels(amplitude):
        intensity, amplitude = _take_good(intensity, amplitude)
    model = (intensity / intensity_scale + 1e-6).sqrt()
    misfit: Tensor = (model - amplitude / intensity_scale**0.5).abs().mean()
    return misfit


def _take_good(intensity: Tensor, amplitude: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) of both, where pixels were measured."""
    good = ~torch.isnan(amplitude)
    return intensity[good], amplitude[good]


def object_spread(objects: Tensor, light: Tensor) -> Tensor:
    """Standard deviation of objects over their mean, both weighted by light; 0 is flat.

    Args:
        objects: (B, S, T) complex64.
        light: (B, S, T) float32.

    Returns:
        Scalar, the mean of the B objects.
    """
    weight = light / light.sum(dim=(-2, -1), keepdim=True)
    mean = (weight * objects).sum(dim=(-2, -1), keepdim=True)
    variance = (weight * (objects - mean).abs().square()).sum(dim=(-2, -1))
    return (variance.sqrt() / mean.abs()[:, 0, 0]).mean()


def spot_radius(probe: Tensor) -> float:
    """Root mean square distance of a probe's light from its centre, pixels; at least `PIXEL`.

    Args:
        probe: (P, N, N) complex64 modes; not all dark.
    """
    # On the CPU: a GPU would be waited for twice, and one of Apple's has no double precision.
    light = probe.detach().abs().square().sum(dim=0).cpu().double()
    index = torch.arange(light.shape[-1], dtype=light.dtype)
    variance = 0.0
    for axis in (0, 1):
        share = light.sum(dim=1 - axis) / light.sum()
        mean = (share * index).sum()
        variance += float((share * (index - mean).square()).sum())
    return max(math.sqrt(variance), PIXEL)
