"""Cut patches out of canvases and add patches onto them: each is the other's adjoint.

Axis letters: B canvases, S, T rows and columns of a canvas, F patches of all canvases, N pixels
along one side of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Place = tuple[int, int, int]
"""Canvas, and the row and column of a patch's top-left pixel on it."""


def list_places(corners: Tensor) -> list[Place]:
    """Of the B * F frames whose (B, F, 2) corners lie on B canvases, canvas after canvas."""
    return [(b, y, x) for b, canvas in enumerate(corners.tolist()) for y, x in canvas]


def cut_from(canvas: Tensor, places: Sequence[Place], size: int) -> Tensor:
    """`cut_patches` without gradients."""
    canvases = canvas.unbind()
    return torch.stack([canvases[b][y : y + size, x : x + size] for b, y, x in places])


def add_onto(canvas: Tensor, patches: Tensor, places: Sequence[Place]) -> None:
    """Add (F, N, N) patches to (B, S, T) canvases in place, without gradients."""
    size, canvases = patches.shape[-1], canvas.unbind()
    for (b, y, x), patch in zip(places, patches.unbind(), strict=True):
        canvases[b][y : y + size, x : x + size].add_(patch)


# Slices with an adjoint written by hand: the backward pass of an indexed gather takes about ten
# times as long on a CPU.
class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, canvas: Tensor, places: Sequence[Place], size: int) -> Tensor:
        ctx.places, ctx.shape = places, canvas.shape
        return cut_from(canvas, places, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        canvas = gradients[0].new_zeros(ctx.shape)
        add_onto(canvas, gradients[0], ctx.places)
        return canvas, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, places: Sequence[Place], shape: tuple[int, int, int]
    ) -> Tensor:
        ctx.places, ctx.size = places, patches.shape[-1]
        canvas = patches.new_zeros(shape)
        add_onto(canvas, patches, places)
        return canvas

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return cut_from(gradients[0], ctx.places, ctx.size), None, None


def cut_patches(canvas: Tensor, places: Sequence[Place], size: int) -> Tensor:
    """Cut windows out of canvases.

    Args:
        canvas: (B, S, T), real or complex.
        places: of the windows, which must lie inside their canvas.
        size: N.

    Returns:
        (F, N, N).
    """
    patches: Tensor = _Cut.apply(canvas, places, size)  # type: ignore[no-untyped-call]
    return patches


def add_patches(patches: Tensor, places: Sequence[Place], shape: tuple[int, int, int]) -> Tensor:
    """Sum patches onto empty canvases.

    Args:
        patches: (F, N, N), real or complex.
        places: of the patches, which must lie inside their canvas.
        shape: (B, S, T).

    Returns:
        (B, S, T).
    """
    canvas: Tensor = _Add.apply(patches, places, shape)  # type: ignore[no-untyped-call]
    return canvas


def padded_shape(reach: Sequence[int], size: int, multiple: int) -> tuple[int, int]:
    """(S, T) of a canvas.

    Args:
        reach: (row, column) of the last patch's top-left pixel.
        size: N.
        multiple: of what S and T are to be multiples.
    """
    S, T = (-(-(last + size) // multiple) * multiple for last in reach)
    return S, T
