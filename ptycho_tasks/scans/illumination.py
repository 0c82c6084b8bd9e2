"""The probe and the object of a raw scan, and a probe where there is none.

Axis letters:  M frames,  N detector pixels along one side,  P probe modes,  H, W object.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scan import release_pages
from ptycho_tasks.scans.bad_pixels import fill_nearest
from ptycho_tasks.scans.raw_scan import Keyed, RawScan
from ptycho_tasks.system.large_arrays import row_chunks

_SMALLEST_PROBE, _LARGEST_PROBE = 1e-12, 1e12


def read_probe(raw: RawScan, size: int) -> NDArray[np.complex64]:
    """(P, N, N).

    Raises:
        ScanError: it is not of that shape, or no illumination.
    """
    keyed = raw.probe
    assert keyed is not None
    shape = keyed.array.shape
    if len(shape) not in (2, 3) or keyed.array.dtype.kind not in "cf" or 0 in shape:
        raise keyed.refused(
            f"is {keyed.describe()}", "(N, N) or (P, N, N) complex64", "correct the file"
        )
    if shape[-2:] != (size, size):
        raise keyed.refused(
            f"has shape {shape} but frames are {size} x {size}",
            f"({size}, {size}) or (P, {size}, {size})",
            "crop or pad the probe",
        )
    if keyed.array.dtype.kind == "f":
        raw.doubts.append(
            f"{keyed.key}: holds real numbers, and is taken as a wave without a phase; give a "
            "complex probe if this is an intensity or a modulus"
        )
    probe = read_complex(raw, keyed)
    if not probe.any():
        raise keyed.refused("is zero everywhere", "an illumination", "give a probe guess")
    largest = float(np.abs(probe).max())
    if not _SMALLEST_PROBE <= largest <= _LARGEST_PROBE:
        raise keyed.refused(
            f"has {largest:.3g} as its largest modulus",
            f"{_SMALLEST_PROBE:g} to {_LARGEST_PROBE:g}, the square root of counts",
            "scale the probe",
        )
    return probe.reshape(-1, size, size)


def read_object(raw: RawScan) -> NDArray[np.complex64] | None:
    """(H, W), where the scan has one.

    Raises:
        ScanError: it is not of that shape, or has NaN or Inf.
    """
    keyed = raw.object
    if keyed is None:
        return None
    shape = keyed.array.shape
    if len(shape) != 2 or keyed.array.dtype.kind not in "cf" or 0 in shape:
        raise keyed.refused(f"is {keyed.describe()}", "(H, W) complex64", "correct or remove it")
    return read_complex(raw, keyed)


def read_complex(raw: RawScan, keyed: Keyed) -> NDArray[np.complex64]:
    """A copy of an array.

    Raises:
        ScanError: NaN or Inf.
    """
    raw.note_cast(keyed, np.dtype(np.complex64))
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.array(keyed.array[:], dtype=np.complex64)
    if not np.isfinite(values).all():
        raise keyed.refused("has NaN or Inf", "finite values", "correct the file")
    return values


def estimate_probe(diffraction: NDArray[np.float32]) -> NDArray[np.complex64]:
    """A first guess of a probe, from the frames alone: in focus, centred, of their mean counts.

    The mean frame is about the light in the aperture, blurred by what the object scatters. Of its
    phase nothing is known but that most of it is defocus, which can be searched: it is flat here.

    Args:
        diffraction: (M, N, N) amplitude, zero frequency at index N//2; may be a memmap.

    Returns:
        (1, N, N).
    """
    total, count = (np.zeros(diffraction.shape[1:]) for _ in range(2))
    for part in row_chunks(diffraction.shape, diffraction.dtype):
        counts = np.square(diffraction[part], dtype=np.float64)
        total += np.nansum(counts, axis=0)
        count += np.isfinite(counts).sum(axis=0)
        release_pages(diffraction)
    aperture = np.fft.ifftshift(np.sqrt(fill_nearest(total / np.maximum(count, 1), count > 0)))
    focus = np.fft.fftshift(np.fft.ifft2(aperture, norm="ortho"))
    return focus[None].astype(np.complex64)
