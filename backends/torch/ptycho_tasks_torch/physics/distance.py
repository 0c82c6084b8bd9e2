"""How far an object is from another one, in three ways that matter.

Axis letters: B canvases, S, T rows and columns of a canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LIT = 0.1
"""Share of the strongest light above which a pixel counts in full."""
COARSE = 8
"""Pixels along one side of the cells that low frequencies are compared in."""
WEIGHTS = (1.0, 0.3, 0.3)
"""Of the distances, in the loss."""
LEAST = 1e-8
"""Square distance that makes no difference."""


def align_phase(truth: Tensor, canvas: Tensor, weight: Tensor) -> Tensor:
    """(B, S, T) truth with the global phase of the canvas, which diffraction does not fix."""
    overlap = (weight * truth.conj() * canvas.detach()).sum(dim=(-2, -1), keepdim=True)
    return torch.sgn(overlap) * truth


def sum_pixels(field: Tensor, weight: Tensor) -> Tensor:
    """(B,) weighted sum of |field|^2, of a (B, S, T) complex field."""
    total: Tensor = (weight * _square(field)).sum(dim=(-2, -1))
    return total


def sum_edges(field: Tensor, weight: Tensor) -> Tensor:
    """(B,) the same, of the differences between neighbouring pixels."""
    total = weight.new_zeros(len(field))
    for axis in (-2, -1):
        inner = weight.narrow(axis, 1, weight.shape[axis] - 1)
        total = total + (inner * _square(field.diff(dim=axis))).sum(dim=(-2, -1))
    return total


def measure_distances(canvas: Tensor, truth: Tensor, light: Tensor) -> Tensor:
    """(3, B) square distances, over the square of the truth, where light falls.

    Of the pixels; of the differences between neighbours, which low frequencies of the phase, found
    last, would hide; and of the mean change of amplitude and phase in cells of `COARSE` pixels.
    """
    weight = _weigh(light)
    truth = align_phase(truth, canvas, weight)
    change = canvas - truth
    energy = sum_pixels(truth, weight)
    pixels, edges = sum_pixels(change, weight), sum_edges(change, weight)
    turned = torch.view_as_real(weight * change * truth.conj()).movedim(-1, 0)
    cells = functional.avg_pool2d(turned, COARSE).square().sum(dim=(0, -2, -1)) * COARSE**2
    return torch.stack([pixels, edges, cells]) / energy


def scale_truth(truth: Tensor, canvas: Tensor, light: Tensor) -> Tensor:
    """The truth, at the scale at which it is nearest to the canvas where light falls."""
    weight, sides = _weigh(light), (-2, -1)
    overlap = (weight * truth.conj() * canvas).sum(dim=sides, keepdim=True).abs()
    return truth * (overlap / sum_pixels(truth, weight)[:, None, None])


def compare_distances(after: Tensor, before: Tensor) -> Tensor:
    """The loss, a scalar: distances over those without the correction, so that each scan counts
    alike whatever its dose; `sum(WEIGHTS)` where nothing is gained."""
    ratios = ((after + LEAST) / (before + LEAST)).sqrt()
    return (ratios * ratios.new_tensor(WEIGHTS)[:, None]).sum(dim=0).mean()


def _weigh(light: Tensor) -> Tensor:
    return (light / (LIT * light.amax(dim=(-2, -1), keepdim=True))).clamp(max=1)


def _square(field: Tensor) -> Tensor:
    return field.real.square() + field.imag.square()
