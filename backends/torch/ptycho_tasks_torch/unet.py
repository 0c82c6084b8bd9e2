"""A U-Net. It corrects an image on a canvas.

Axis letters: B canvases, F feature maps, S, T rows and columns of a canvas.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAK = 0.1
"""Slope below zero of the ReLUs. Without it, nine in ten feature maps of the deeper layers become
zero and stay zero where photons are few and a network learns to ignore their noise."""


class Convolutions(nn.Module):
    """Two convolutions of 3 x 3 pixels, each followed by a leaky ReLU;
    (B, F, S, S) -> (B, F', S, S)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Weights for `inputs` and `outputs` feature maps."""
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        first = functional.leaky_relu(self.first(x), LEAK, inplace=True)
        return functional.leaky_relu(self.second(first), LEAK, inplace=True)


STRIP, RIM = 128, 2
"""Rows that are decoded at once where the maps are large, and what two convolutions reach beyond.
The maps that they join are the largest by far."""
LARGE = 2**24
"""Values of maps from which on that is done."""


def _rise(decoder: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    """Decode (B, F, S/2, T/2) maps with the (B, F', S, T) that were skipped."""
    if torch.is_grad_enabled() or skip.numel() < LARGE:
        x = torch.cat([functional.interpolate(x, scale_factor=2), skip], dim=1)
        return decoder(x)  # type: ignore[no-any-return]
    S = skip.shape[-2]
    result: Tensor | None = None
    for top in range(0, S, STRIP):
        first, last = max(top - RIM, 0), min(top + STRIP + RIM, S)
        low = functional.interpolate(x[..., first // 2 : last // 2, :], scale_factor=2)
        part = decoder(torch.cat([low, skip[..., first:last, :]], dim=1))
        if result is None:
            shape = (len(x), part.shape[1], *skip.shape[-2:])
            result = part.new_empty(shape).contiguous(memory_format=torch.channels_last)
        result[..., top : top + STRIP, :] = part[..., top - first :, :][..., :STRIP, :]
    assert result is not None
    return result


class EncoderDecoder(nn.Module):
    """A U-Net (Ronneberger et al., MICCAI 2015); the output starts at zero.

    (B, inputs, S, T) -> (B, 2, S, T), S and T multiples of 2**halvings.
    """

    def __init__(self, inputs: int, channels: int, halvings: int, doublings: int = 1) -> None:
        """Weights for `channels` feature maps at full size, twice as many after each of the first
        `doublings` halvings."""
        super().__init__()
        maps = [channels * 2 ** min(level, doublings) for level in range(halvings + 1)]
        self.encoder = nn.ModuleList(
            Convolutions(before, after) for before, after in pairwise([inputs, *maps[:-1]])
        )
        self.middle = Convolutions(maps[-2], maps[-1])
        # What comes up has as many maps as what was skipped, but for the lowest.
        rising = [*maps[:-2], maps[-1]]
        self.decoder = nn.ModuleList(
            Convolutions(rising[level] + maps[level], maps[max(level - 1, 0)])
            for level in reversed(range(halvings))
        )
        self.last = nn.Conv2d(channels, 2, 3, padding=1)
        # Untrained, the network is the physics steps alone: training can only leave them.
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, decode with skip connections."""
        skips = []
        for encoder in self.encoder:
            x = encoder(x)
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.middle(x)
        for decoder in self.decoder:
            x = _rise(decoder, x, skips.pop())
        correction: Tensor = self.last(x)
        return correction
