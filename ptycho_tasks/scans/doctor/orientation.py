"""The eight ways in which axes of positions are swapped and mirrored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """What is done to positions: first swapped, then mirrored."""

    swap: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M, 2) other positions (y, x)."""
        turned = positions[:, ::-1] if self.swap else positions
        signs = [-1.0 if self.flip_y else 1.0, -1.0 if self.flip_x else 1.0]
        return np.asarray(turned * np.array(signs))

    def apply_to_frames(self, frames: NDArray[Any]) -> NDArray[Any]:
        """(..., N, N) other frames, the pixel (N//2, N//2) in its place; N must be even."""
        frames = np.swapaxes(frames, -2, -1) if self.swap else frames
        axes = [axis for axis, flips in ((-2, self.flip_y), (-1, self.flip_x)) if flips]
        return np.roll(np.flip(frames, tuple(axes)), 1, tuple(axes)) if axes else frames

    @property
    def mirrored(self) -> Orientation:
        """The same, then mirrored along both axes."""
        return replace(self, flip_x=not self.flip_x, flip_y=not self.flip_y)

    @property
    def changes(self) -> int:
        """How many things are done."""
        return self.swap + self.flip_x + self.flip_y

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of ptycho.yaml."""
        parts = {"swap": self.swap, "flip_x": self.flip_x, "flip_y": self.flip_y}
        return {name: True for name, is_set in parts.items() if is_set}

    def __str__(self) -> str:
        """In words."""
        mirrored = "both" if self.flip_x and self.flip_y else "x" if self.flip_x else "y"
        parts = ["swapped (x is y)"] if self.swap else []
        parts += [f"{mirrored} mirrored"] if self.flip_x or self.flip_y else []
        return " and ".join(parts)


AS_GIVEN = Orientation()
TWIN = Orientation(flip_x=True, flip_y=True)
"""What the probe's twin stands for."""
ORIENTATIONS = tuple(Orientation(*flags) for flags in product((False, True), repeat=3))
