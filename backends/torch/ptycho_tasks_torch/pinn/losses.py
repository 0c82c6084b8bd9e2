"""What a network's prediction is compared with: the diffraction, or a label.

Axis letters: B blocks, K groups in a block, C frames in a group, P probe modes, N detector pixels
along one side, S, T rows and columns of a block's canvas, D = K * C frames in a block, H, W rows
and columns of the object grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ptycho_tasks_torch.physics.canvas import Place, add_patches, cut_patches
from ptycho_tasks_torch.physics.forward import amplitude_misfit, intensities, poisson_misfit
from ptycho_tasks_torch.pinn.network import ObjectNetwork


@dataclass(frozen=True)
class Stitched:
    """Predicted patches of a batch of blocks, put together weighted by light."""

    objects: Tensor
    """(B, S, T) complex64."""
    light: Tensor
    """(B, S, T) float32."""
    amplitude: Tensor
    """(B, D, N, N) measured."""
    probes: Tensor
    """(B, D, P, N, N) complex64 in counts, shifted by the sub-pixel rest."""
    places: list[Place]
    """Of the B * D frames on the blocks' canvases."""
    origin: list[tuple[int, int]]
    """Of the B canvases on the object grid."""

    @classmethod
    def of(
        cls,
        network: ObjectNetwork,
        probe: Tensor,
        intensity_scale: float,
        batch: Mapping[str, Tensor],
    ) -> Stitched:
        """Predict and stitch what `Blocks.read` gave."""
        x, positions = batch["x"], batch["positions"]
        B, K, C, N, _ = x.shape
        scale = x.new_full((B * K,), math.sqrt(intensity_scale))
        exposure = network.expose(x.flatten(0, 1), positions.flatten(0, 1), probe, scale)
        patches = network.reconstruct(exposure)
        probes = exposure.probes * scale[0]
        places = places_of(batch["corners"])
        height, width = (int(side) + N for side in batch["corners"].amax(dim=(0, 1)))
        shape = (B, height, width)
        light = probes.abs().square().sum(dim=1)
        total = add_patches(light, places, shape)
        # A pixel at the rim of all spots must not become a huge quotient.
        floor = 1e-3 * total.amax(dim=(-2, -1), keepdim=True)
        objects = add_patches(light * patches, places, shape) / (total + floor)
        origin = [(y, x) for y, x in batch["origin"].tolist()]
        probes = probes.reshape(B, K * C, -1, N, N)
        return cls(objects, total, x.reshape(B, K * C, N, N), probes, places, origin)

    def counts(self, objects: Tensor) -> Tensor:
        """(B, D, N, N) expected counts of every frame from (B, S, T) objects."""
        return intensities(self.patches(objects), self.probes)

    def patches(self, objects: Tensor) -> Tensor:
        """(B, D, N, N) of (B, S, T) objects."""
        return cut_patches(objects, self.places, self.amplitude.shape[-1]).reshape(
            self.amplitude.shape
        )

    def spread(self) -> Tensor:
        """Standard deviation of the objects over their mean, weighted by light: 0 is flat."""
        weight = self.light / self.light.sum(dim=(-2, -1), keepdim=True)
        mean = (weight * self.objects).sum(dim=(-2, -1), keepdim=True)
        variance = (weight * (self.objects - mean).abs().square()).sum(dim=(-2, -1))
        return (variance.sqrt() / mean.abs()[:, 0, 0]).mean()


def places_of(corners: Tensor) -> list[Place]:
    """Of (B, D, 2) corners on the canvases of blocks."""
    return [(b, y, x) for b, block in enumerate(corners.tolist()) for y, x in block]


class Misfit(Protocol):
    """What training makes small; each method gives a scalar."""

    def all(self, stitched: Stitched) -> Tensor:
        """Of every frame."""

    def held(self, stitched: Stitched, held: Tensor) -> tuple[Tensor, Tensor]:
        """Of some frames, (B, D) bool, and what a flat object of the best mean would have there."""


class DiffractionMisfit(nn.Module):
    """The measured frames against those that the stitched object would give."""

    def __init__(self, loss: str, intensity_scale: float) -> None:
        """Compare by `poisson` or `mae`, in units of `intensity_scale`."""
        super().__init__()
        self._compare = poisson_misfit if loss == "poisson" else amplitude_misfit
        self._scale = intensity_scale

    def all(self, stitched: Stitched) -> Tensor:
        """See `Misfit`."""
        counts = stitched.counts(stitched.objects)
        return self._compare(counts, stitched.amplitude, self._scale)

    def held(self, stitched: Stitched, held: Tensor) -> tuple[Tensor, Tensor]:
        """See `Misfit`."""
        measured = stitched.amplitude[held]
        counts = stitched.counts(stitched.objects)[held]
        flat = stitched.counts(torch.ones_like(stitched.objects))[held]
        flat = flat * (measured.square().sum() / flat.sum())
        return (
            self._compare(counts, measured, self._scale),
            self._compare(flat, measured, self._scale),
        )


class LabelMisfit(nn.Module):
    """The label against the stitched object: mean squared distance of the complex values, weighted
    by light, over the label's mean square. A block's global phase is free: no data tell it."""

    label: Tensor

    def __init__(self, label: Tensor) -> None:
        """Compare with (H, W) complex64 that explains the measured counts."""
        super().__init__()
        self.register_buffer("label", label, persistent=False)

    def all(self, stitched: Stitched) -> Tensor:
        """See `Misfit`."""
        truth, light = self._truth(stitched), _light(stitched)
        return _distance(stitched.patches(stitched.objects), truth, light).mean()

    def held(self, stitched: Stitched, held: Tensor) -> tuple[Tensor, Tensor]:
        """See `Misfit`."""
        truth, light = self._truth(stitched), _light(stitched) * held[..., None, None]
        mean = (light * truth).sum(dim=_PATCHES, keepdim=True)
        flat = mean / light.sum(dim=_PATCHES, keepdim=True)
        made = stitched.patches(stitched.objects)
        return (
            _distance(made, truth, light).mean(),
            _distance(flat.expand_as(truth), truth, light).mean(),
        )

    def _truth(self, stitched: Stitched) -> Tensor:
        """(B, D, N, N) of the label, where the frames lie."""
        where = [stitched.origin[b] for b, _, _ in stitched.places]
        places = [
            (0, top + y, left + x)
            for (top, left), (_, y, x) in zip(where, stitched.places, strict=True)
        ]
        N = stitched.amplitude.shape[-1]
        return cut_patches(self.label[None], places, N).reshape(stitched.amplitude.shape)


_PATCHES = (-3, -2, -1)


def _light(stitched: Stitched) -> Tensor:
    """(B, D, N, N) |probe|^2 of each frame."""
    return stitched.probes.abs().square().sum(dim=2)


def _distance(patches: Tensor, truth: Tensor, light: Tensor) -> Tensor:
    """(B,) relative squared distance of (B, D, N, N) patches, turned to agree with the truth."""
    overlap = (light * truth.conj() * patches.detach()).sum(dim=_PATCHES, keepdim=True)
    change = patches - torch.sgn(overlap) * truth
    square = change.real.square() + change.imag.square()
    distance: Tensor = (light * square).sum(dim=_PATCHES) / (light * truth.abs().square()).sum(
        dim=_PATCHES
    )
    return distance
