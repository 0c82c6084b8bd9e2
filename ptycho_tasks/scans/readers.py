"""Read a scan: NPZ, CXI, or frames with a Ptychodus product, told apart by their content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.npz import NpzFile
from ptycho_tasks.scans.raw_scan import FrameAxis, Keyed, RawScan, Reading, frame_numbers, refused
from ptycho_tasks.system.files import Stamp, not_a_file, stamp_of

_FRAMES = ("diff3d", "diffraction", "patterns")
"""The contract's key, PtychoPINN's older name for it, and Ptychodus' key, which holds counts."""
_FRAME_NUMBERS = "indexes"
_BAD_PIXELS = "bad_pixels"
_COLUMNS = {
    "x": "xcoords",
    "y": "ycoords",
    "probe": "probeGuess",
    "object": "objectGuess",
    "scan_index": "scan_index",
    "start_x": "xcoords_start",
    "start_y": "ycoords_start",
}
"""Fields of a `RawScan` and their keys."""
_NEEDED = {
    "diff3d": "(M, N, N) float32 amplitude",
    "xcoords": "(M,) float64 pixels",
    "ycoords": "(M,) float64 pixels",
    "probeGuess": "(N, N) or (P, N, N) complex64",
}
_METADATA = ("frame_axis", "pixel_size_m", "energy_ev", "distance_m", "exposure_s")
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")


def read_scan(
    path: Path,
    *,
    product: Path | None = None,
    pixel_size_m: float | tuple[float, float] | None = None,
    energy_ev: float | None = None,
    distance_m: float | None = None,
    **settings: Any,
) -> ScanData:
    """Read and check one scan; frames stay memory-mapped where the file allows it.

    Args:
        path: NPZ after the raw-scan contract, CXI, or Ptychodus' frames.
        product: a Ptychodus product (HDF5) that gives positions, probe and object for the
            frames in `path`, matched by frame number.
        pixel_size_m: object pixel, one number or (height, width); overrides the file's.
        energy_ev: photon energy in eV; overrides the file's.
        distance_m: object to detector in metres; overrides the file's.
        **settings: the other fields of `raw_scan.Reading`.

    Raises:
        ScanError: one line that names the file, the key, what was expected, what to do.
    """
    path = Path(path)
    size = (pixel_size_m, pixel_size_m) if isinstance(pixel_size_m, int | float) else pixel_size_m
    reading = Reading(
        pixel_size_m=size, energy_ev=energy_ev or 0.0, distance_m=distance_m or 0.0, **settings
    )
    read = [path, *([] if product is None else [Path(product)])]
    stamps = {one: stamp for one in read if (stamp := stamp_of(one)) is not None}
    with _opened(path, reading, with_product=product is not None) as raw:
        if product is not None:
            from ptycho_tasks.scans.hdf5_scan import apply_product

            apply_product(raw, Path(product), reading)
        scan = raw.checked(reading)
    refuse_changed({**stamps, **scan.files})
    return scan


@contextmanager
def _opened(path: Path, reading: Reading, *, with_product: bool) -> Iterator[RawScan]:
    """The arrays of a scan file; an HDF5 file stays open in the block."""
    if _is_zip(path):
        with NpzFile(path) as npz:
            yield _read_npz(npz, reading, with_product=with_product)
        return
    # Most scans are NPZ; h5py costs more to import than the rest of this module.
    from ptycho_tasks.scans.hdf5_scan import is_hdf5, open_hdf5_scan

    if not is_hdf5(path):
        raise ScanError(
            f"{path}: neither NPZ (a zip) nor CXI (HDF5); expected a scan in one of these; "
            "give another file, or copy it again if it should be one"
        )
    with open_hdf5_scan(path, reading, with_product=with_product) as raw:
        yield raw


def refuse_changed(stamps: Mapping[Path, Stamp]) -> None:
    """Refuse what was read of files that are not what they were.

    Raises:
        ScanError: one was changed or removed meanwhile.
    """
    for path, stamp in stamps.items():
        if stamp_of(path) != stamp:
            raise ScanError(
                f"{path}: changed while it was read; wait until it is complete, then run again"
            )


def _is_zip(path: Path) -> bool:
    problem = not_a_file(path)
    if problem:
        raise ScanError(f"{path}: {problem}; give the scan's file")
    try:
        with path.open("rb") as stream:
            return stream.read(4) in _ZIP_MAGICS
    except FileNotFoundError:
        raise ScanError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise ScanError(
            f"{path}: cannot be read: {error.strerror or error}; check the path and its permissions"
        ) from error


def _read_npz(npz: NpzFile, reading: Reading, *, with_product: bool) -> RawScan:
    frame_keys = [key for key in _FRAMES if key in npz]
    columns = {} if with_product else {f: key for f, key in _COLUMNS.items() if key in npz}
    _check_keys(npz, frame_keys, {} if with_product else _NEEDED)
    frames = frame_keys[0]
    raw = RawScan(
        npz.path,
        Keyed(npz.path, frames, npz[frames]),
        holds_counts=True if frames == "patterns" else None,
        frame_axis=_frame_axis(npz),
        pixel_size_m=reading.pixel_size_m or _metadata(npz, "pixel_size_m"),
        energy_ev=reading.energy_ev or _number(npz, "energy_ev"),
        distance_m=reading.distance_m or _number(npz, "distance_m"),
        exposure_s=_number(npz, "exposure_s"),
    )
    for name, key in columns.items():
        setattr(raw, name, Keyed(npz.path, key, npz[key]))
    if with_product and _FRAME_NUMBERS in npz:
        raw.numbers = frame_numbers(Keyed(npz.path, _FRAME_NUMBERS, npz[_FRAME_NUMBERS]))
    if _BAD_PIXELS in npz:
        raw.bad_pixels = Keyed(npz.path, _BAD_PIXELS, npz[_BAD_PIXELS])
    _note_keys(raw, npz, frame_keys, {*columns.values(), *_METADATA})
    return raw


def _check_keys(npz: NpzFile, frame_keys: list[str], needed: Mapping[str, str]) -> None:
    present = {*npz, "diff3d"} if frame_keys else {*npz}
    for key in ("diff3d", *needed):
        if key not in present:
            raise refused(
                npz.path,
                key,
                f"is missing (found: {', '.join(npz) or 'nothing'})",
                _NEEDED[key],
                "add it, or give another file",
            )
    for key in npz:
        npz.check_plain(key)  # an ignored key too


def _metadata(npz: NpzFile, key: str) -> tuple[float, float] | None:
    """One or two positive numbers, as a pair; None where the key is missing."""
    if key not in npz:
        return None
    array = npz[key]
    values = array.ravel()
    if (
        array.dtype.kind not in "fiu"
        or values.size not in (1, 2)
        or not ((values > 0) & np.isfinite(values)).all()
    ):
        raise refused(
            npz.path,
            key,
            f"is {array.dtype} of shape {array.shape}, or not positive and finite",
            "a positive number",
            "correct or remove it",
        )
    return float(values[0]), float(values[-1])


def _frame_axis(npz: NpzFile) -> FrameAxis:
    """What a file of ours says about its axes, which are always in canonical order."""
    says_first = "frame_axis" in npz and npz["frame_axis"].tolist() == 0
    return "first" if says_first else "auto"


def _number(npz: NpzFile, key: str) -> float:
    pair = _metadata(npz, key)
    return 0.0 if pair is None else pair[0]


def _note_keys(raw: RawScan, npz: NpzFile, frame_keys: list[str], used: set[str]) -> None:
    taken, *aliases = frame_keys
    if taken != "diff3d":
        raw.note(f"{taken}: read as diff3d")
    for alias in aliases:
        raw.note(f"{alias}: ignored, {taken} is taken")
    known = {*frame_keys, *used, _BAD_PIXELS}
    known |= {_FRAME_NUMBERS} if raw.numbers is not None else set()
    extra = [key for key in npz if key not in known] + list(npz.others)
    if extra:
        raw.note(f"keys ignored: {', '.join(extra)}")
