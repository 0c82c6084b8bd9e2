"""Cut patches out of canvases and add patches onto them: each is the other's adjoint.

Axis letters: B canvases, S, T rows and columns of a canvas, F patches of all canvases, N pixels
along one side of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Way(NamedTuple):
    """How patches are cut out and added; arguments as for `cut_from` and `add_onto`."""

    cut: Callable[[Tensor, Tensor, int], Tensor]
    add: Callable[[Tensor, Tensor, Tensor], None]


def list_places(corners: Tensor) -> Tensor:
    """(B * F, 3) int64 places, canvas after canvas, of frames with (B, F, 2) int64 corners.

    A place is a canvas, and the row and column of a patch's top-left pixel on it. Places lie on the
    device of the canvases.
    """
    canvases = torch.arange(len(corners), device=corners.device)[:, None, None]
    return torch.cat([canvases.expand(*corners.shape[:2], 1), corners], dim=-1).flatten(0, 1)


def cut_from(canvas: Tensor, places: Tensor, size: int) -> Tensor:
    """`cut_patches` without gradients."""
    return choose_way(canvas).cut(canvas, places, size)


def add_onto(canvas: Tensor, patches: Tensor, places: Tensor) -> None:
    """Add (F, N, N) patches to (B, S, T) contiguous canvases in place, without gradients."""
    choose_way(canvas).add(canvas, patches, places)


def choose_way(canvas: Tensor) -> Way:
    """The fastest on the canvas' device: a GPU would start a kernel for each slice."""
    return WINDOWS if canvas.is_cpu else INDEX


def _cut_windows(canvas: Tensor, places: Tensor, size: int) -> Tensor:
    # Where the rows of a canvas are its columns in memory, so would be those of the patches.
    return _view_windows(canvas, size)[places.unbind(dim=1)].contiguous()


def _add_windows(canvas: Tensor, patches: Tensor, places: Tensor) -> None:
    if patches.is_complex():
        windows = _view_windows(canvas, patches.shape[-1])
        # In memory one after the other, patches are added one after the other.
        windows.index_put_(places.unbind(dim=1), patches.contiguous(), accumulate=True)
    else:  # torch's threads would add real numbers in any order
        size, canvases = patches.shape[-1], canvas.unbind()
        for (b, y, x), patch in zip(places.tolist(), patches.unbind(), strict=True):
            canvases[b][y : y + size, x : x + size].add_(patch)


def _view_windows(canvas: Tensor, size: int) -> Tensor:
    """(B, S - N + 1, T - N + 1, N, N) view of all windows of the canvases.

    One operation on it holds Python up once for all patches, where a loop of slices would let
    threads wait for each other at each.
    """
    return canvas.unfold(1, size, 1).unfold(2, size, 1)


def _cut_index(canvas: Tensor, places: Tensor, size: int) -> Tensor:
    return canvas.flatten()[_pixels(canvas, places, size)]


def _add_index(canvas: Tensor, patches: Tensor, places: Tensor) -> None:
    pixels = _pixels(canvas, places, patches.shape[-1])
    # Where torch is to be deterministic, it sorts what is added to a pixel.
    canvas.view(-1).index_add_(0, pixels.flatten(), patches.flatten())


def _pixels(canvas: Tensor, places: Tensor, size: int) -> Tensor:
    """(F, N, N) int64 indices of the pixels of patches among all pixels of the canvases.

    Computed each time: that takes less time than the patches themselves, and kept they would take
    as much memory as these.
    """
    _, S, T = canvas.shape
    b, y, x = places.unbind(dim=1)
    along = torch.arange(size, device=places.device)
    return ((b * S + y) * T + x)[:, None, None] + (along[:, None] * T + along)


WINDOWS, INDEX = Way(_cut_windows, _add_windows), Way(_cut_index, _add_index)


# Slices with an adjoint written by hand: the backward pass of an indexed gather takes about ten
# times as long on a CPU.
class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, canvas: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.places, ctx.shape = places, canvas.shape
        return cut_from(canvas, places, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        canvas = gradients[0].new_zeros(ctx.shape)
        add_onto(canvas, gradients[0], ctx.places)
        return canvas, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, places: Tensor, shape: tuple[int, int, int]) -> Tensor:
        ctx.places, ctx.size = places, patches.shape[-1]
        canvas = patches.new_zeros(shape)
        add_onto(canvas, patches, places)
        return canvas

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return cut_from(gradients[0], ctx.places, ctx.size), None, None


def cut_patches(canvas: Tensor, places: Tensor, size: int) -> Tensor:
    """Cut windows out of canvases.

    Args:
        canvas: (B, S, T), real or complex.
        places: (F, 3) int64 of the windows, which must lie inside their canvas; see
            `list_places`.
        size: N.

    Returns:
        (F, N, N).
    """
    patches: Tensor = _Cut.apply(canvas, places, size)  # type: ignore[no-untyped-call]
    return patches


def add_patches(patches: Tensor, places: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Sum patches onto empty canvases.

    Args:
        patches: (F, N, N), real or complex.
        places: (F, 3) int64 of the patches, which must lie inside their canvas; see
            `list_places`.
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
