"""Read a scan, with the reader that knows the file or is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.content import has_zip_signature
from ptycho_tasks.scans.conversion import convert_scan
from ptycho_tasks.scans.raw_scan import Keyed, RawScan, Reading
from ptycho_tasks.scans.recognition import Reader, ReaderEntry, choose_reader
from ptycho_tasks.system.files import FileStamp, file_stamp


def read_scan(
    path: Path,
    *,
    product: Path | None = None,
    pixel_size_m: float | tuple[float, float] | None = None,
    energy_ev: float | None = None,
    distance_m: float | None = None,
    root: Path | None = None,
    **settings: Any,
) -> ScanData:
    """Read and check one scan; frames stay memory-mapped where the file allows it.

    Args:
        path: of a file that a reader knows.
        product: a Ptychodus product (HDF5 or NPZ) that gives positions, probe and object for the
            frames in `path`, matched by frame number.
        pixel_size_m: object pixel, one number or (height, width); overrides the file's.
        energy_ev: photon energy in eV; overrides the file's.
        distance_m: object to detector in metres; overrides the file's.
        root: of a project whose `readers/` count too.
        **settings: the other fields of `raw_scan.Reading`.

    Raises:
        ScanError: one line that names the file, the key, what was expected, what to do.
        ReaderError: `reader` names none, or one cannot be loaded.
    """
    path = Path(path)
    size = (pixel_size_m, pixel_size_m) if isinstance(pixel_size_m, int | float) else pixel_size_m
    reading = Reading(
        pixel_size_m=size,
        energy_ev=energy_ev or 0.0,
        distance_m=distance_m or 0.0,
        has_product=product is not None,
        **settings,
    )
    entry, reader = _choose(path, reading, root)
    return read_with(entry, reader, path, reading, product)


@contextmanager
def open_scan(path: Path, reading: Reading, root: Path | None = None) -> Iterator[RawScan]:
    """The arrays of a scan as found, unchecked; its file may stay open in the block.

    Raises:
        ScanError: no reader can open it.
    """
    with _open_with(*_choose(path, reading, root), path, reading) as raw:
        _add_files(raw, reading)
        yield raw


def _choose(path: Path, reading: Reading, root: Path | None) -> tuple[ReaderEntry, Reader]:
    named = reading.reader
    if named is None and reading.own_datasets:
        named = "npz" if path.is_file() and has_zip_signature(path) else "hdf5"
    return choose_reader(path, named, root)


def read_with(
    entry: ReaderEntry, reader: Reader, path: Path, reading: Reading, product: Path | None = None
) -> ScanData:
    """Read a scan with a reader, and check it.

    Raises:
        ScanError: see `read_scan`.
    """
    beside = (product, reading.positions, reading.probe)
    read = [path, *(Path(file) for file in beside if file not in (None, "estimate"))]
    stamps = {one: stamp for one in read if (stamp := file_stamp(one)) is not None}
    with _open_with(entry, reader, path, reading) as raw:
        if product is not None:
            from ptycho_tasks.scans.product_scan import apply_product

            apply_product(raw, Path(product), reading)
        _add_files(raw, reading)
        scan = convert_scan(raw, reading)
    refuse_changed({**stamps, **scan.files})
    return scan


def _add_files(raw: RawScan, reading: Reading) -> None:
    """What files besides give; it goes before what the scan's own and a product give.

    A reader that lists the file of positions, or that of the probe, among its own has read it.
    """
    if reading.positions is not None and reading.positions not in raw.files:
        from ptycho_tasks.scans.positions_file import apply_positions

        apply_positions(raw, reading.positions, reading)
    is_probe_read = raw.probe is not None and reading.probe in raw.files
    if isinstance(reading.probe, Path) and not is_probe_read:
        from ptycho_tasks.scans.probe_file import apply_probe

        apply_probe(raw, reading.probe, reading)


@contextmanager
def _open_with(
    entry: ReaderEntry, reader: Reader, path: Path, reading: Reading
) -> Iterator[RawScan]:
    """What a reader gives; the file may stay open in the block."""
    with entry.explain_failures(path), ExitStack() as stack:
        with entry.limit_opening(path):
            stamps = _stamp_files(entry, path, reader.files(path, reading))
            raw = stack.enter_context(reader.open(path, reading))
        _refuse_unusable(entry, path, raw, reading)
        raw.files |= stamps
        yield raw


def _stamp_files(entry: ReaderEntry, path: Path, files: object) -> dict[Path, FileStamp]:
    """What the further files of a scan are before they are read."""
    if not isinstance(files, list | tuple) or not all(isinstance(file, Path) for file in files):
        raise entry.refuse(path, f"{files!r} as its files", "a list of paths")
    stamps = {}
    for file in files:
        stamp = file_stamp(file)
        if stamp is None:
            raise ScanError(f"{path}: needs the file {file}, which is not there; copy it there")
        stamps[file] = stamp
    return stamps


_NEEDED = {"frames": "(M, N, N)", "x": "(M,)", "y": "(M,)", "probe": "(N, N) or (P, N, N)"}


def _refuse_unusable(entry: ReaderEntry, path: Path, raw: object, reading: Reading) -> None:
    """Refuse what a reader gives if that cannot be a scan; its values are checked later."""
    if not isinstance(raw, RawScan):
        raise entry.refuse(path, f"a {type(raw).__name__}", "a RawScan")
    needed = {"frames"}
    needed |= {"x", "y"} if reading.needs_positions else set()
    needed |= {"probe"} if reading.needs_probe else set()
    for name in (*_NEEDED, "object", "scan_index", "start_x", "start_y", "bad_pixels"):
        keyed = getattr(raw, name)
        if keyed is None and name not in needed:
            continue
        array = keyed.array if isinstance(keyed, Keyed) else None
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            found = "no array" if isinstance(keyed, Keyed) else f"{type(keyed).__name__}"
            what = f"a Keyed with an array, {_NEEDED[name]}" if name in _NEEDED else "a Keyed"
            raise entry.refuse(path, f"{found} as `{name}`", what)


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
