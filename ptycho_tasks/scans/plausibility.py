"""Doubts about a scan: its numbers look as if they were not what they are taken for.

Each is a guess from a sample of frames, cheap enough for every reading, and no more than a
warning: only a reconstruction proves one right or wrong.

Axis letters:  S frames of the sample,  N detector pixels along one side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.physics.forward import LEAST_SHARE, count_all_light, share_of_light
from ptycho_tasks.scan import ScanData, evenly_spaced, release_pages

_SAMPLE = 64
_SMALL = 1000.0
"""Counts below which a float32 tells whole numbers from others."""
_FLUX_APART = 1e3
"""Factor between the probe's flux and that of the frames: an object takes away some of the
light, and a guess of unknown scale is often one on average."""


def doubts(scan: ScanData) -> list[str]:
    """What is doubtful about a scan, on reading or by its numbers; a sentence each."""
    sample = np.asarray(
        scan.diffraction[evenly_spaced(scan.frame_count, min(_SAMPLE, scan.frame_count))]
    )
    release_pages(scan.diffraction)
    hidden = [*_doubt_mask(scan, sample)]
    # What a mask leaves shows nothing of the centre.
    centre = [] if hidden else [*_doubt_centre(sample)]
    by_numbers = (*_doubt_values(sample), *centre, *_doubt_flux(scan, sample))
    return [*scan.doubts, *by_numbers, *hidden]


def _doubt_values(sample: NDArray[np.float32]) -> Iterator[str]:
    """Counts are whole numbers, and so are their roots only where all are squares."""
    small = sample[(sample > 0) & (sample < _SMALL)]
    whole = np.rint(small)
    if small.size and (np.abs(small - whole) <= 1e-5 * whole).all() and np.ptp(whole) > 1:
        yield (
            "the frames hold whole numbers, as counts do, and are taken as amplitudes, the square "
            "roots of counts; set source.measurement to counts if they are, or to amplitude"
        )


def _doubt_centre(sample: NDArray[np.float32]) -> Iterator[str]:
    """Most light of a scan falls near the zero frequency."""
    # A pixel that is bad in all of them is no brightest one.
    mean = np.nansum(sample, axis=0, dtype=np.float64)
    mean /= np.maximum(np.isfinite(sample).sum(axis=0), 1)
    N = mean.shape[-1]
    place = np.array(np.unravel_index(int(np.argmax(mean)), mean.shape))
    y, x = place
    if np.abs(place - N // 2).max() <= N // 4:
        return
    corner = np.minimum(place, N - place).max() <= N // 4
    yield (
        f"the mean frame is brightest at pixel ({y}, {x}), far from its centre ({N // 2}, "
        f"{N // 2})"
        + (
            ": the zero frequency seems to lie in the corner; set source.centre to corner"
            if corner
            else ", where the zero frequency is expected; crop the frames so that it is there"
        )
    )


def _doubt_flux(scan: ScanData, sample: NDArray[np.float32]) -> Iterator[str]:
    """The probe carries the flux: sum |P|^2 is mean counts a frame over mean |O|^2."""
    counts = float(np.nansum(np.square(sample, dtype=np.float64)) / len(sample))
    counts = count_all_light(counts, scan.probe, np.isfinite(sample).mean(axis=0))
    flux = float(np.square(np.abs(scan.probe), dtype=np.float64).sum())
    if counts > 0 and flux > 0 and not 1 / _FLUX_APART < flux / counts < _FLUX_APART:
        yield (
            f"the probe's flux is {flux:.3g} and a frame holds {counts:.3g} counts; the probe is "
            "scaled to the frames, so make sure that both are of this scan, and the frames not of "
            "another unit (source.measurement)"
        )


def _doubt_mask(scan: ScanData, sample: NDArray[np.float32]) -> Iterator[str]:
    """Bad pixels, a beam stop for one, may hide what the probe alone sends to the detector."""
    if scan.bad_pixels is None or scan.is_probe_estimated:
        return
    share = share_of_light(scan.probe, np.isfinite(sample).mean(axis=0))
    if share < LEAST_SHARE:
        yield describe_hidden(share, is_saturated=is_by_saturation(scan.notes))


def is_by_saturation(notes: Iterable[str]) -> bool:
    """Whether reading says that pixels are left out as saturated, and none by a mask."""
    read = [note for note in notes if "bad pixels" in note]
    return any("saturated" in note for note in read) and not any("masked" in note for note in read)


def describe_hidden(share: float, *, is_saturated: bool) -> str:
    """What is doubtful where so little of a probe's own light falls on good pixels.

    Args:
        share: of the light.
        is_saturated: whether bad pixels are saturated ones, and no mask can be wrong.
    """
    seen = f"{100 * share:.2f} % of the probe's light"
    if is_saturated:
        return (
            f"saturated pixels, left out on reading, hide all but {seen}: what lies under them is "
            "not seen; a shorter exposure shows it"
        )
    return (
        f"only {seen} falls on good pixels, and what bad ones hide cannot be reconstructed; "
        "correct the mask, or set source.bad_pixels to ignore"
    )
