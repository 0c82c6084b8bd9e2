"""How far an object is from the truth, in three ways that matter.

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


def measure_distances(canvas: Tensor, truth: Tensor, light: Tensor) -> Tensor:
    """(3, B) square distances, over the square of the truth, where light falls.

    Of the pixels; of the differences between neighbours, which low frequencies of the phase, found
    last, would hide; and of the mean change of amplitude and phase in cells of `COARSE` pixels.
    """
    weight = (light / (LIT * light.amax(dim=(-2, -1), keepdim=True))).clamp(max=1)
    overlap = (weight * truth.conj() * canvas.detach()).sum(dim=(-2, -1), keepdim=True)
    # Diffraction does not fix the phase of the whole.
    truth = torch.sgn(overlap) * truth
    change = canvas - truth
    energy = (weight * _square(truth)).sum(dim=(-2, -1))
    pixels = (weight * _square(change)).sum(dim=(-2, -1))
    edges = torch.zeros_like(pixels)
    for axis in (-2, -1):
        inner = weight.narrow(axis, 1, weight.shape[axis] - 1)
        edges = edges + (inner * _square(change.diff(dim=axis))).sum(dim=(-2, -1))
    turned = torch.view_as_real(weight * change * truth.conj()).movedim(-1, 0)
    cells = functional.avg_pool2d(turned, COARSE).square().sum(dim=(0, -2, -1)) * COARSE**2
    return torch.stack([pixels, edges, cells]) / energy


def compare_distances(after: Tensor, before: Tensor) -> Tensor:
    """The loss, a scalar: distances over those without the correction, so that each scan counts
    alike whatever its dose; `sum(WEIGHTS)` where nothing is gained."""
    ratios = ((after + LEAST) / (before + LEAST)).sqrt()
    return (ratios * ratios.new_tensor(WEIGHTS)[:, None]).sum(dim=0).mean()


def _square(field: Tensor) -> Tensor:
    return field.real.square() + field.imag.square()
