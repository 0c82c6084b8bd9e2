"""Scans and reconstructions that the conformance suite starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData, canvas_of

_Placed = tuple[Reconstruction, ScanData]
"""A reconstruction, and the scan whose positions tell where it lies."""


def _simulated(simulation: SimulationOptions) -> ScanData:
    scan = simulate(simulation, name="conformance")
    # On these a shift by whole pixels rounds nothing, and none lies half way between two pixels,
    # which would be rounded one way here and another way there.
    return _frozen(replace(scan, positions=(np.rint(scan.positions * 64) + 0.25) / 64))


def _frozen(scan: ScanData) -> ScanData:
    """The scan with read-only arrays of its own."""
    copies: dict[str, Any] = {
        name: np.array(array)
        for name in ("diffraction", "positions", "probe", "object", "scan_index")
        if (array := getattr(scan, name)) is not None
    }
    for array in copies.values():
        array.flags.writeable = False
    return replace(scan, **copies)


def _with_feature(scan: ScanData, feature: str) -> ScanData:
    if feature == "several scans":
        halves = np.arange(scan.frame_count) * 2 // scan.frame_count
        return _frozen(replace(scan, scan_index=halves))
    if feature == "probe modes":
        second = np.complex64(0.1) * np.roll(scan.probe[:1], scan.size // 8, axis=-1)
        return _frozen(replace(scan, probe=np.concatenate([scan.probe[:1], second])))
    return scan


def _truth(scan: ScanData) -> NDArray[np.complex64]:
    assert scan.object is not None
    return scan.object


def _start_of(scan: ScanData, blur: float, beside: float) -> Reconstruction:
    """The truth, blurred and times `beside` where no light was, with read-only arrays.

    Of what data cannot tell, how amplitude and phase are split between object and probe, it is
    unlike the scan's probe.
    """
    from scipy.ndimage import gaussian_filter

    truth = _truth(scan)
    image = gaussian_filter(truth.real, blur) + 1j * gaussian_filter(truth.imag, blur)
    canvas = canvas_of(scan.positions, scan.size)
    (y, x), (height, width) = canvas.origin, canvas.shape
    split = np.complex64(0.5 * np.exp(0.5j))
    made = Reconstruction(
        np.array(split * image[y : y + height, x : x + width], dtype=np.complex64),
        canvas.origin,
        np.asarray(scan.probe / split, dtype=np.complex64),
        np.array(scan.positions),
    )
    made.object[~made.seen] *= np.float32(beside)
    for array in (made.object, made.probe, made.positions):
        array.flags.writeable = False
    return made


def _copied(made: Reconstruction) -> Reconstruction:
    """The same, with writable arrays of its own."""
    return replace(
        made, object=made.object.copy(), probe=made.probe.copy(), positions=made.positions.copy()
    )
