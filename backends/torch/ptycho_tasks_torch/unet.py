"""A U-Net. It corrects an image on a canvas.

Axis letters: B canvases, F feature maps, S, T rows and columns of a canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


STRIP, RIM = 64, 4
"""Rows that are computed at once where maps are large, and more of them than three convolutions
reach beyond."""
LARGE = 2**22
"""Values of maps from which on that is done."""


def _compute(work: Callable[[slice], Tensor], maps: int, shape: Sequence[int]) -> Tensor:
    """(B, maps, S, T) what `work` makes of all rows: in strips, where it is large.

    Args:
        work: makes rows of the result; those at a cut, as far as convolutions reach, may be wrong.
        maps: of the largest that it makes on its way.
        shape: (B, S, T).
    """
    B, S, T = shape
    if torch.is_grad_enabled() or B * maps * S * T < LARGE:
        return work(slice(0, S))
    result: Tensor | None = None
    for top in range(0, S, STRIP):
        rows = slice(max(top - RIM, 0), min(top + STRIP + RIM, S))
        part = work(rows)[..., top - rows.start :, :][..., :STRIP, :]
        if result is None:
            result = torch.empty(
                (B, part.shape[1], S, T),
                dtype=part.dtype,
                device=part.device,
                memory_format=torch.channels_last,
            )
        result[..., top : top + STRIP, :] = part
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
        self._maps = maps[:-1]
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
        for encoder, maps in zip(self.encoder, self._maps, strict=True):
            x = self._encode(encoder, x, maps)
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.middle(x)
        for decoder in self.decoder[:-1]:
            x = self._decode(decoder, x, skips.pop())
        # At once with the last, whose maps are few.
        return self._decode(nn.Sequential(self.decoder[-1], self.last), x, skips.pop())

    def _encode(self, encoder: nn.Module, x: Tensor, maps: int) -> Tensor:
        """(B, maps, S, T) of (B, F, S, T)."""
        B, _, S, T = x.shape
        return _compute(lambda rows: encoder(x[..., rows, :]), maps, (B, S, T))

    def _decode(self, decoder: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
        """(B, F', S, T) of (B, F, S/2, T/2) maps and the (B, G, S, T) that were skipped."""
        B, G, S, T = skip.shape

        def decode(rows: slice) -> Tensor:
            low = x[..., rows.start // 2 : rows.stop // 2, :]
            raised = functional.interpolate(low, scale_factor=2)
            joined: Tensor = decoder(torch.cat([raised, skip[..., rows, :]], dim=1))
            return joined

        return _compute(decode, x.shape[1] + G, (B, S, T))
