"""A reconstruction that shows when rows and columns, or the two axes of a probe, are swapped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.results.product import product_bytes
from ptycho_tasks.scan import ScanData

PIXEL_M = (1.5e-8, 2.0e-8)
ORIGIN = (2, 3)


def make_scan() -> ScanData:
    """25 frames of 32 x 32 pixels, with all that a product says of a scan."""
    made = simulate(SimulationOptions(size=32, grid=5, step=4.0, jitter=1.0, seed=3), name="demo")
    return replace(made, pixel_size_m=PIXEL_M, energy_ev=8000.0, distance_m=2.0, exposure_s=0.1)


def make_reconstruction(scan: ScanData) -> Reconstruction:
    """The truth, cut so that it starts elsewhere and is not square, under two modes."""
    assert scan.object is not None
    return Reconstruction(
        object=scan.object[ORIGIN[0] :, ORIGIN[1] :],
        origin=ORIGIN,
        probe=np.concatenate([scan.probe, 0.1 * scan.probe[:, ::-1]]),
        positions=scan.positions,
        losses=(3.0, 2.0, 1.5),
    )


def write_product(path: Path, reconstruction: Reconstruction, scan: ScanData) -> None:
    """Write `reconstruction.h5` as `doit infer` does."""
    residual = np.arange(scan.frame_count, dtype=np.float32)
    path.write_bytes(product_bytes(reconstruction, scan, residual=residual, provenance={}))
