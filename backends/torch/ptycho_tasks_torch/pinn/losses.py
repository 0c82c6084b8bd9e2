"""The loss of stitched objects: against the measured diffraction, or against a label.

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

from ptycho_tasks_torch.physics.canvas import add_patches, cut_patches, list_places
from ptycho_tasks_torch.physics.forward import (
    amplitude_misfit,
    intensities,
    match_light,
    object_spread,
    poisson_misfit,
)
from ptycho_tasks_torch.pinn.network import ObjectNetwork, expose_groups


@dataclass(frozen=True)
class StitchedBlocks:
    """The objects of a batch of blocks: predicted patches, averaged with the light as weight."""

    objects: Tensor
    """(B, S, T) complex64."""
    light: Tensor
    """(B, S, T) float32."""
    amplitude: Tensor
    """(B, D, N, N) float32 measured amplitude."""
    probes: Tensor
    """(B, D, P, N, N) complex64 in counts, shifted by the sub-pixel rest."""
    places: Tensor
    """(B * D, 3) int64 of the frames on the blocks' canvases; see `list_places`."""
    origin: Tensor
    """(B, 2) int64 of the canvases on the object grid."""

    @classmethod
    def predict(
        cls,
        network: ObjectNetwork,
        probe: Tensor,
        intensity_scale: float,
        batch: Mapping[str, Tensor],
    ) -> StitchedBlocks:
        """Predict the patches of a batch, as `Blocks.read` gives it, and stitch them."""
        x, positions = batch["x"], batch["positions"]
        B, K, C, N, _ = x.shape
        scale = x.new_full((B * K,), math.sqrt(intensity_scale))
        groups = x.flatten(0, 1), positions.flatten(0, 1)
        exposure = expose_groups(*groups, probe, scale, network.multiple)
        patches = network.reconstruct(exposure)
        probes = exposure.probes * scale[0]
        places = list_places(batch["corners"])
        height, width = (int(side) + N for side in batch["corners"].amax(dim=(0, 1)))
        shape = (B, height, width)
        light = probes.abs().square().sum(dim=1)
        total = add_patches(light, places, shape)
        # A pixel at the rim of all spots must not become a huge quotient.
        floor = 1e-3 * total.amax(dim=(-2, -1), keepdim=True)
        objects = add_patches(light * patches, places, shape) / (total + floor)
        probes = probes.reshape(B, K * C, -1, N, N)
        return cls(objects, total, x.reshape(B, K * C, N, N), probes, places, batch["origin"])

    def counts(self, objects: Tensor) -> Tensor:
        """(B, D, N, N) expected counts of every frame from (B, S, T) objects."""
        return intensities(self.patches(objects), self.probes)

    def patches(self, objects: Tensor) -> Tensor:
        """(B, D, N, N) of (B, S, T) objects."""
        return cut_patches(objects, self.places, self.amplitude.shape[-1]).reshape(
            self.amplitude.shape
        )

    def spread(self) -> Tensor:
        """See `object_spread`."""
        return object_spread(self.objects, self.light)


class Loss(Protocol):
    """What training makes small. Each method gives a scalar."""

    def over_all(self, stitched: StitchedBlocks) -> Tensor:
        """The loss of every frame."""

    def over_held_back(self, stitched: StitchedBlocks, held_back: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the frames where the (B, D) mask is true, and that of a flat object there.

        The flat object has the mean that explains those frames best.
        """


class DiffractionLoss(nn.Module):
    """The measured frames against the frames that the stitched object gives."""

    def __init__(self, loss: str, intensity_scale: float) -> None:
        """Compare by `poisson` or `mae`, in units of `intensity_scale`."""
        super().__init__()
        self._compare = poisson_misfit if loss == "poisson" else amplitude_misfit
        self._scale = intensity_scale

    def over_all(self, stitched: StitchedBlocks) -> Tensor:
        """See `Loss`."""
        counts = stitched.counts(stitched.objects)
        return self._compare(counts, stitched.amplitude, self._scale)

    def over_held_back(self, stitched: StitchedBlocks, held_back: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        measured = stitched.amplitude[held_back]
        counts = stitched.counts(stitched.objects)[held_back]
        flat = stitched.counts(torch.ones_like(stitched.objects))[held_back]
        flat = match_light(flat, measured)
        return (
            self._compare(counts, measured, self._scale),
            self._compare(flat, measured, self._scale),
        )


class LabelLoss(nn.Module):
    """The label against the stitched object: mean squared distance of the complex values, weighted
    by light, over the label's mean square. The global phase of a block is free, because diffraction
    does not fix it."""

    label: Tensor

    def __init__(self, label: Tensor) -> None:
        """Compare with (H, W) complex64 that explains the measured counts."""
        super().__init__()
        self.register_buffer("label", label, persistent=False)

    def over_all(self, stitched: StitchedBlocks) -> Tensor:
        """See `Loss`."""
        truth, light = self._truth(stitched), _light(stitched)
        return _patch_distance(stitched.patches(stitched.objects), truth, light).mean()

    def over_held_back(self, stitched: StitchedBlocks, held_back: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        truth, light = self._truth(stitched), _light(stitched) * held_back[..., None, None]
        mean = (light * truth).sum(dim=_PATCHES, keepdim=True)
        flat = mean / light.sum(dim=_PATCHES, keepdim=True)
        patches = stitched.patches(stitched.objects)
        return (
            _patch_distance(patches, truth, light).mean(),
            _patch_distance(flat.expand_as(truth), truth, light).mean(),
        )

    def _truth(self, stitched: StitchedBlocks) -> Tensor:
        """(B, D, N, N) complex64 patches of the label, where the frames lie."""
        corners = stitched.places[:, 1:] + stitched.origin[stitched.places[:, 0]]
        places = list_places(corners[None])
        N = stitched.amplitude.shape[-1]
        return cut_patches(self.label[None], places, N).reshape(stitched.amplitude.shape)


_PATCHES = (-3, -2, -1)


def _light(stitched: StitchedBlocks) -> Tensor:
    """(B, D, N, N) |probe|^2 of each frame."""
    return stitched.probes.abs().square().sum(dim=2)


def _patch_distance(patches: Tensor, truth: Tensor, light: Tensor) -> Tensor:
    """(B,) relative squared distance of (B, D, N, N) patches.

    The truth gets the global phase of each block's patches first.
    """
    overlap = (light * truth.conj() * patches.detach()).sum(dim=_PATCHES, keepdim=True)
    change = patches - torch.sgn(overlap) * truth
    square = change.real.square() + change.imag.square()
    distance: Tensor = (light * square).sum(dim=_PATCHES) / (light * truth.abs().square()).sum(
        dim=_PATCHES
    )
    return distance
