"""A network that corrects what the physics steps lead to, in proportion to the expected noise.

Axis letters: B canvases, S, T rows and columns of a canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ptycho_tasks_torch.device import give_freed_memory_back
from ptycho_tasks_torch.physics.exposure import WEAK_LIGHT, Apply, Exposure, apply_here
from ptycho_tasks_torch.physics.scale import show_number
from ptycho_tasks_torch.threads import operations_on_threads
from ptycho_tasks_torch.unet import LEAK, EncoderDecoder
from ptycho_tasks_torch.unrolled.steps import modulus

FEATURES = 16
"""Maps that the network sees; see `_Scene.describe`."""
HALVINGS = 5
"""How often the encoder halves the canvas: at few photons the low frequencies of the phase are
noise too, and the network must see far to mend them."""
MULTIPLE = 2**HALVINGS
CHANNELS = 32
WINDOWS = (3, 9)
"""Pixels along one side of the windows in which a pixel is compared with the mean."""
MOST_COUNTS = 1e8
"""Photons of a pixel from which on noise is not told from none."""
MARGIN = max(WINDOWS) // 2
"""How far such a window reaches."""
TILE, HALO = 384, 224
"""Pixels along one side of a tile that is corrected at once, and of the rim around it that the
network sees too: its receptive field. Multiples of `MULTIPLE`."""
LEARNED_POWERS, LEARNED_STEPS = (3.0, 9.0), (0.1, 1.1)
"""What the shipped network has learned from: photons a frame, as powers of ten, and distances of
neighbouring frames, in radii of the spot."""
LARGEST = 960**2
"""Pixels of a canvas that is corrected at once."""
SPREAD = 2**15
"""Pixels of a canvas from which on torch's threads share each convolution. On smaller ones they
would share sums, whose rounding would depend on their number; so would products of complex numbers
on a canvas of any size, which are left to one."""


def expected_noise(light: Tensor, counts: float) -> Tensor:
    """Standard deviation of the real or imaginary part of an object pixel, at most 1.

    The root of counts has a variance of 1/4 (Poisson). An object pixel O that light L falls on,
    summed over frames, changes the far field by a wave of energy L |dO|^2; half of it is a change
    of moduli, half one of phases that are not measured. The Fisher information of Re O, and of
    Im O, is therefore 4 L / 2, and their variance at least 1 / (2 L): the photons on the pixel,
    twice. That holds for each pixel by itself; low frequencies of the phase are known less well.

    Args:
        light: (B, S, T) float32, sum of |probe|^2 over frames and modes, in units in which the mean
            measured intensity of a detector pixel is 1.
        counts: mean measured counts a pixel.
    """
    return (2 * counts * light + 1).rsqrt()


class Correction(nn.Module):
    """A U-Net on the canvas, in units of the expected noise; it does nothing yet when fresh."""

    def __init__(self, channels: int = CHANNELS) -> None:
        """Weights for `channels` feature maps at full size."""
        super().__init__()
        self.network = EncoderDecoder(FEATURES, channels, HALVINGS)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d) and layer is not self.network.last:
                # With torch's default, what the deepest of 22 layers see would fade on the way.
                nn.init.kaiming_normal_(layer.weight, LEAK)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        # On a CPU, so few feature maps are convolved 1.4 times as fast in this memory layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def is_idle(self) -> bool:
        """Whether it corrects nothing: nothing was learned yet."""
        return not any(bool(values.any()) for values in self.network.last.parameters())

    def forward(
        self,
        canvas: Tensor,
        fields: Tensor,
        light: Tensor,
        counts: float,
        apply: Apply = apply_here,
        ways: int = 1,
        earlier: Tensor | None = None,
    ) -> Tensor:
        """The corrected object (B, S, T) complex64.

        Args:
            canvas: (B, S, T) complex64 object after the last step.
            fields: (4, B, S, T) float32, as `Engine.show` gives them.
            light, counts: of the `Exposure`.
            earlier: (B, S, T) complex64 corrected object that the steps began from; None: they
                began from a flat one.
            apply: of the `Exposure`, where it has tiles computed elsewhere too.
            ways: in which a canvas can lie, whose corrections are averaged.
        """
        strongest = light.amax(dim=(-2, -1), keepdim=True)
        scene = _Scene(canvas, fields, light, strongest, min(counts, MOST_COUNTS), earlier)
        network, (S, T) = _Turned(self.network, ways), canvas.shape[-2:]
        if torch.is_grad_enabled():
            return scene.correct(network(scene.describe()))
        if S * T <= LARGEST:
            maps = scene.describe()
            with operations_on_threads() if S * T >= SPREAD else nullcontext():
                change = network(maps)
            return scene.correct(change)
        corners = [(top, left) for top in range(0, S, TILE) for left in range(0, T, TILE)]
        result = torch.empty_like(canvas)
        # What the steps leave in the heap is of no use to maps of other sizes.
        give_freed_memory_back()
        found = apply(network, _Parts(scene, corners))
        for (top, left), part in zip(corners, found, strict=True):
            (rows, above), (columns, before) = _reach(top, HALO, S), _reach(left, HALO, T)
            tile = part[..., above:, before:][..., :TILE, :TILE]
            rows, columns = slice(top, top + TILE), slice(left, left + TILE)
            result[..., rows, columns] = scene.cut(rows, columns).correct(tile)
        return result


class _Scene(NamedTuple):
    """What the network is told of a canvas, or of a part of it."""

    canvas: Tensor
    fields: Tensor
    light: Tensor
    strongest: Tensor
    """(B, 1, 1) light of the whole canvas."""
    counts: float
    earlier: Tensor | None

    def cut(self, rows: slice, columns: slice) -> _Scene:
        """A part of it."""
        return self._replace(
            canvas=self.canvas[..., rows, columns],
            fields=self.fields[..., rows, columns],
            light=self.light[..., rows, columns],
            earlier=None if self.earlier is None else self.earlier[..., rows, columns],
        )

    @property
    def phase(self) -> Tensor:
        """(B, S, T) complex64 of modulus 1."""
        return self.canvas / modulus(self.canvas)

    def correct(self, change: Tensor) -> Tensor:
        """(B, S, T) complex64 object, from what the network gives, (B, 2, S, T) along and across
        its phase."""
        illumination = self.light / self.strongest
        # Nothing is invented where no light falls.
        noise = expected_noise(self.light, self.counts)
        strength = noise * illumination / (illumination + WEAK_LIGHT)
        along, across = strength * change.movedim(1, 0)
        return self.canvas + self.phase * torch.complex(along, across)

    def describe(self) -> Tensor:
        """(B, FEATURES, S, T).

        What is to be judged as noise or not is in units of noise, so that a network need not learn
        to divide by it: the last gradient, how a pixel differs from its surroundings, and how far
        steps have moved it from a corrected object.
        """
        canvas, phase = self.canvas, self.phase
        noise, light = expected_noise(self.light, self.counts), self.light / self.strongest
        details = [(canvas - _mean_around(canvas, width)) * phase.conj() for width in WINDOWS]
        # Without a corrected object nothing has moved from it.
        moved = canvas if self.earlier is None else self.earlier
        details.append((canvas - moved) * phase.conj())
        parts = [part for detail in details for part in (detail.real, detail.imag)]
        judged = torch.asinh(torch.stack([*parts, *self.fields]) / noise)
        maps = [canvas.real - 1, canvas.imag, canvas.abs() - 1, -noise.log10(), light, light.sqrt()]
        # Stacked last and moved: the memory layout of the convolutions.
        return torch.stack([*maps, *judged], dim=-1).movedim(-1, 1)


class _Parts(Sequence[Tensor]):
    """(B, FEATURES, ...) of each tile and its rim, made when it is asked for: all together would
    take several times the memory of the canvas."""

    def __init__(self, scene: _Scene, corners: Sequence[tuple[int, int]]) -> None:
        self._scene, self._corners = scene, corners

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, index: Any) -> Any:
        top, left = self._corners[index]
        S, T = self._scene.light.shape[-2:]
        # The mean around a pixel at the rim needs more of it.
        (rows, above), (columns, before) = (
            _reach(top, HALO + MARGIN, S),
            _reach(left, HALO + MARGIN, T),
        )
        (kept, higher), (wide, earlier) = _reach(top, HALO, S), _reach(left, HALO, T)
        seen = self._scene.cut(rows, columns).describe()
        y, x = above - higher, before - earlier
        return seen[..., y : y + kept.stop - kept.start, x : x + wide.stop - wide.start]


def _reach(start: int, halo: int, side: int) -> tuple[slice, int]:
    """Where a tile and a rim around it lie along an axis of a canvas, and how wide the rim before
    the tile is."""
    first = max(start - halo, 0)
    return slice(first, min(start + TILE + halo, side)), start - first


class _Turned(nn.Module):
    """A network on fields of any size; the mean over some of the ways in which they can lie."""

    def __init__(self, network: nn.Module, ways: int) -> None:
        super().__init__()
        self.network, self.ways = network, ways

    def forward(self, features: Tensor) -> Tensor:
        total = self._correct(features)
        for way in range(1, self.ways):
            turned = turn_canvas(features, way).contiguous(memory_format=torch.channels_last)
            total = total + turn_back(self._correct(turned), way)
        return total / self.ways

    def _correct(self, features: Tensor) -> Tensor:
        S, T = features.shape[-2:]
        rim = 0, -T % MULTIPLE, 0, -S % MULTIPLE
        padded = functional.pad(features, rim) if any(rim) else features
        correction: Tensor = self.network(padded)[..., :S, :T]
        return correction


def list_unlearned(exposure: Exposure) -> list[str]:
    """What of an exposure of one canvas lies outside of what the shipped network has learned from,
    in a few words each."""
    least, most = (10**power for power in LEARNED_POWERS)
    found = []
    # Compared as they are shown: 999 photons are told from 1000 by nobody.
    photons, step = float(f"{exposure.photons:.1e}"), float(f"{exposure.step:.2g}")
    if math.isfinite(photons) and not least <= photons <= most:
        range_ = f"{least:g} to {show_number(most, 1)}"
        found.append(f"{show_number(photons, 2)} photons a frame ({range_})")
    least, most = LEARNED_STEPS
    if len(exposure.places) == 1:
        found.append("one frame alone")
    elif not least <= step <= most:
        found.append(f"frames {step:g} radii of the spot apart ({least} to {most})")
    return found


def _mean_around(canvas: Tensor, width: int) -> Tensor:
    """Mean of a (B, S, T) complex canvas in a window around each pixel."""
    parts = torch.view_as_real(canvas).movedim(-1, 0)
    means = functional.avg_pool2d(parts, width, 1, width // 2, count_include_pad=False)
    return torch.complex(*means)


WAYS = 8
"""In which a canvas can lie on the grid of pixels."""


def turn_canvas(values: Tensor, way: int) -> Tensor:
    """(..., S, T) turned by quarters, and mirrored for the ways from 4 on."""
    turned = torch.rot90(values, way % 4, (-2, -1))
    return turned.flip(-1) if way >= 4 else turned


def turn_back(values: Tensor, way: int) -> Tensor:
    """What `turn_canvas` turned in this way, as it was."""
    return torch.rot90(values.flip(-1) if way >= 4 else values, -(way % 4), (-2, -1))


def correct_turned(
    correction: Correction, maps: Sequence[Tensor], counts: float, way: int
) -> Tensor:
    """(B, S, T) complex64 corrected object of a scan that lies in one of `WAYS`.

    Args:
        correction: the network.
        maps: canvas, fields and light, as for a `Correction`, of the scan as it is; and `earlier`,
            if there is one.
        counts: of the `Exposure`.
        way: in which the scan, and the result, lies.
    """
    canvas, fields, light, *earlier = (turn_canvas(values, way) for values in maps)
    begun = earlier[0] if earlier else None
    corrected: Tensor = correction(canvas, fields, light, counts, earlier=begun)
    return corrected
