"""The label of supervised training: the scan's own object, in the network's units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.physics.forward import illumination_of
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.options import NetworkOptions

LEAST_SPREAD = 1e-3
"""An object that varies less than this share of its mean is flat."""


def make_label(
    scan: ScanData,
    options: NetworkOptions,
    probe: NDArray[np.complex64],
    mean_counts: float,
) -> NDArray[np.complex64] | None:
    """Scale the scan's object so that it explains the measured counts.

    Args:
        scan: gives the object and the positions.
        options: of the training.
        probe: (P, N, N) complex64 in counts.
        mean_counts: mean counts a frame.

    Returns:
        (H, W) complex64; None where the training asks for no label.

    Raises:
        ConfigError: the scan has no object.
        ScanError: its object does not cover the frames, is flat, or is not finite.
    """
    if options.model_type != "supervised":
        return None
    truth = scan.object
    if truth is None:
        raise ConfigError(
            f"training.model_type: supervised learns from `objectGuess`, which {scan.name} does "
            f"not have; take {options.unlabelled}, or another scan"
        )
    prefix = f"{scan.name}: objectGuess is no label for training.model_type: supervised"
    if not np.isfinite(truth).all():
        raise ScanError(f"{prefix}: it holds NaN or Inf")
    try:
        light = illumination_of(probe, scan.positions, (0, 0), truth.shape)
    except ScanError as error:
        raise ScanError(f"{prefix}: {error}") from error
    weight = light.astype(np.float64) / light.sum(dtype=np.float64)
    mean = (weight * truth).sum()
    spread = np.sqrt((weight * np.abs(truth - mean) ** 2).sum())
    if not spread > LEAST_SPREAD * abs(mean):
        raise ScanError(f"{prefix}: it is flat where the frames lie, a placeholder")
    expected = (light * np.abs(truth.astype(np.complex128)) ** 2).sum() / scan.frame_count
    return np.asarray(truth * np.sqrt(mean_counts / expected), dtype=np.complex64)
