"""Read a scan: NPZ, CXI, or frames with a Ptychodus product; the content says which it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.npz_scan import open_npz_scan
from ptycho_tasks.scans.raw_scan import RawScan, Reading
from ptycho_tasks.system.files import FileStamp, file_stamp, find_file_problem

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
    stamps = {one: stamp for one in read if (stamp := file_stamp(one)) is not None}
    with open_scan(path, reading, with_product=product is not None) as raw:
        if product is not None:
            from ptycho_tasks.scans.hdf5_scan import apply_product

            apply_product(raw, Path(product), reading)
        scan = raw.checked(reading)
    refuse_changed({**stamps, **scan.files})
    return scan


@contextmanager
def open_scan(path: Path, reading: Reading, *, with_product: bool = False) -> Iterator[RawScan]:
    """The arrays of a scan file; an HDF5 file stays open in the block."""
    if _is_zip(path):
        with open_npz_scan(path, reading, with_product=with_product) as raw:
            yield raw
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


def refuse_changed(stamps: Mapping[Path, FileStamp]) -> None:
    """Refuse a scan of which a file changed while it was read.

    Raises:
        ScanError: one was changed or removed meanwhile.
    """
    for path, stamp in stamps.items():
        if file_stamp(path) != stamp:
            raise ScanError(
                f"{path}: changed while it was read; wait until it is complete, then run again"
            )


def _is_zip(path: Path) -> bool:
    problem = find_file_problem(path)
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
