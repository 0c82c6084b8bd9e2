"""Frames that lie in a file otherwise than a scan has them, as one stack of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.raw_scan import Array


class JoinedFrames:
    """Stacks (m, N, N), one after another."""

    def __init__(self, stacks: Sequence[Array]) -> None:
        """Take stacks of one type and frame."""
        self._stacks = stacks
        self._starts = np.cumsum([0, *(stack.shape[0] for stack in stacks)])

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, N, N)."""
        return (int(self._starts[-1]), *self._stacks[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an entry."""
        return self._stacks[0].dtype

    def __getitem__(self, item: Any) -> NDArray[Any]:
        """Some of the frames, in memory."""
        numbers = np.arange(self.shape[0])[item]
        out = np.empty((numbers.size, *self.shape[1:]), self.dtype)
        for stack, first, end in zip(
            self._stacks, self._starts[:-1], self._starts[1:], strict=True
        ):
            here = np.flatnonzero((numbers.ravel() >= first) & (numbers.ravel() < end))
            if len(here):
                own = numbers.ravel()[here] - first
                block = np.asarray(stack[int(own.min()) : int(own.max()) + 1])
                out[here] = block[own - own.min()]
        return out if numbers.ndim else out[0]


class ShiftedFrames:
    """Frames whose zero frequency lies in the corner, with it in the centre."""

    def __init__(self, stack: Array) -> None:
        """Take a stack (M, N, N)."""
        self._stack = stack

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, N, N)."""
        return self._stack.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an entry."""
        return self._stack.dtype

    def __getitem__(self, item: Any) -> NDArray[Any]:
        """Some of the frames, in memory."""
        return np.fft.fftshift(np.asarray(self._stack[item]), axes=(-2, -1))
