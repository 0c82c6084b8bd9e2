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

PlacedReconstruction = tuple[Reconstruction, ScanData]
"""A reconstruction, and the scan whose positions tell where it lies."""


def simulate_scan(simulation: SimulationOptions) -> ScanData:
    """A scan with read-only arrays, as those of a mapped file are."""
    scan = simulate(simulation, name="conformance")
    # On these a shift by whole pixels rounds nothing, and none lies half way between two pixels,
    # which would be rounded one way here and another way there.
    return freeze(replace(scan, positions=(np.rint(scan.positions * 64) + 0.25) / 64))


def freeze(scan: ScanData) -> ScanData:
    """The scan with read-only arrays of its own."""
    copies: dict[str, Any] = {
        name: np.array(array)
        for name in ("diffraction", "positions", "probe", "bad_pixels", "object", "scan_index")
        if (array := getattr(scan, name)) is not None
    }
    for array in copies.values():
        array.flags.writeable = False
    return replace(scan, **copies)


def add_feature(scan: ScanData, feature: str) -> ScanData:
    """The scan with one of `SCAN_FEATURES`, where that is a matter of the scan alone."""
    if feature == "several scans":
        halves = np.arange(scan.frame_count) * 2 // scan.frame_count
        return freeze(replace(scan, scan_index=halves))
    if feature == "bad pixels":
        return freeze(_without_pixels(scan))
    if feature == "probe modes":
        second = np.complex64(0.1) * np.roll(scan.probe[:1], scan.size // 8, axis=-1)
        return freeze(replace(scan, probe=np.concatenate([scan.probe[:1], second])))
    return scan


def _without_pixels(scan: ScanData) -> ScanData:
    """The scan with a gap beside the middle, where most light falls, and two rows that every other
    frame lacks."""
    frames, middle = np.array(scan.diffraction), scan.size // 2
    frames[:, :, middle + 2] = np.nan
    frames[::2, middle - 4 : middle - 2] = np.nan
    return replace(scan, diffraction=frames, bad_pixels=np.asarray(np.isnan(frames).all(axis=0)))


def get_truth(scan: ScanData) -> NDArray[np.complex64]:
    """The object of a simulated scan: (H, W) complex64."""
    assert scan.object is not None
    return scan.object


def blur_truth(scan: ScanData, blur: float, beside: float) -> Reconstruction:
    """The truth, blurred and times `beside` where no light was, with read-only arrays.

    Of what data cannot tell, how amplitude and phase are split between object and probe, it is
    unlike the scan's probe.
    """
    from scipy.ndimage import gaussian_filter

    truth = get_truth(scan)
    image = gaussian_filter(truth.real, blur) + 1j * gaussian_filter(truth.imag, blur)
    canvas = canvas_of(scan.positions, scan.size)
    (y, x), (height, width) = canvas.origin, canvas.shape
    split = np.complex64(0.5 * np.exp(0.5j))
    start = Reconstruction(
        np.array(split * image[y : y + height, x : x + width], dtype=np.complex64),
        canvas.origin,
        np.asarray(scan.probe / split, dtype=np.complex64),
        np.array(scan.positions),
    )
    start.object[~start.seen] *= np.float32(beside)
    for array in (start.object, start.probe, start.positions):
        array.flags.writeable = False
    return start


def copy_reconstruction(reconstruction: Reconstruction) -> Reconstruction:
    """The same, with writable arrays of its own."""
    return replace(
        reconstruction,
        object=reconstruction.object.copy(),
        probe=reconstruction.probe.copy(),
        positions=reconstruction.positions.copy(),
    )
