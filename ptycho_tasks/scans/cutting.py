"""Cut a scan to a fixture."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.options import FixtureOptions
from ptycho_tasks.scan import ScanData, evenly_spaced
from ptycho_tasks.scans.fixture import FORMAT, FORMAT_VERSION, is_whole
from ptycho_tasks.scans.mapping import refuse_cut
from ptycho_tasks.scans.npz import scan_arrays, write_npz
from ptycho_tasks.scans.readers import refuse_changed
from ptycho_tasks.system.files import (
    FileStamp,
    check_replaceable,
    flush,
    flush_folder,
    report_write_errors,
    sha256_file,
    temporary_file,
)
from ptycho_tasks.system.large_arrays import Rows


def select_indices(
    positions: NDArray[np.float64], options: FixtureOptions, *, name: str = "scan"
) -> NDArray[np.int64]:
    """Which frames to take.

    Args:
        positions: (M, 2) pixels.
        options: strategy, how many, seed.
        name: the scan's name, for the message.

    Returns:
        (K,) int64, sorted, each frame once.

    Raises:
        ScanError: the scan has fewer frames than asked for.
    """
    total = len(positions)
    count = total if options.subset_size is None else options.subset_size
    if count > total:
        raise ScanError(
            f"{name}: has {total} frames, but fixture.subset_size asks for {count}; "
            f"ask for at most {total}, or leave subset_size out to take all"
        )
    if options.strategy == "first" or count == total:
        return np.arange(count, dtype=np.int64)
    if options.strategy == "random":
        chosen = np.random.default_rng(options.seed).permutation(total)[:count]
    elif options.strategy == "grid":
        chosen = _spread(positions, count)
    else:
        chosen = evenly_spaced(total, count)
    return np.sort(chosen).astype(np.int64)


def write_fixture(
    scan: ScanData,
    options: FixtureOptions,
    *,
    npz_path: Path,
    sidecar_path: Path,
    source_name: str,
    source_sha256: str,
    source_files: Mapping[str, str] | None = None,
    stamps: Mapping[Path, FileStamp] | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Write the selected frames and their sidecar, published together.

    `source_files` are those that hold a part of the source besides its own, to their sha256;
    `stamps` are what the files were that frames are read from; `made_from` is what decides the
    fixture, for the sidecar to keep.

    Both are written beside their places first. Then the old NPZ steps aside, the sidecar takes
    its place and last the NPZ, so that at no moment an NPZ stands beside another one's sidecar.
    Frames are streamed: a fixture may be larger than memory.

    Raises:
        ScanError: the scan has fewer frames than asked for, or a file of `stamps` changed while
            frames were read from it; what was there is unchanged.
        FileWriteError: the files cannot be written; what was there is unchanged.
    """
    indices = select_indices(scan.positions, options, name=source_name)
    arrays = scan_arrays(scan, indices)
    sidecar: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "generator": {"name": "ptycho-tasks", "version": version("ptycho-tasks")},
        "source": {"name": source_name, "sha256": source_sha256},
        "scan_name": scan.name,
        "selection": _selection(scan, options, indices),
        "transformations": list(scan.notes),
        "arrays": _shapes_and_dtypes(arrays),
        "coverage": _coverage(scan.positions, indices),
    }
    if made_from is not None:
        sidecar["made_from"] = made_from
    if source_files:
        sidecar["source"]["files"] = dict(source_files)
    with temporary_file(npz_path) as npz_temp, temporary_file(sidecar_path) as sidecar_temp:
        with report_write_errors(npz_path):
            write_npz(npz_temp, arrays)
            flush(npz_temp)
        refuse_cut()
        refuse_changed(stamps or {})
        sidecar["npz"] = {"sha256": sha256_file(npz_temp)}
        with report_write_errors(sidecar_path):
            text = json.dumps(sidecar, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            sidecar_temp.write_text(text, encoding="utf-8")
            flush(sidecar_temp)
        _publish(npz_temp, Path(npz_path), sidecar_temp, Path(sidecar_path))


def check_output(npz_path: Path, sources: Iterable[Path], *, force: bool) -> None:
    """Refuse to cut a fixture to a place where something else is.

    Args:
        npz_path: the NPZ to write; its sidecar is named alike and ends in .json.
        sources: the files that it is cut from, which may not be replaced.
        force: replace other files; a fixture with its sidecar may always be replaced.

    Raises:
        ConfigError: one line that names the file.
    """
    outputs = (npz_path, npz_path.with_suffix(".json"))
    for output, source in itertools.product(outputs, sources):
        if output.exists() and source.exists() and output.samefile(source):
            raise ConfigError(f"{output} would replace the source {source}; choose another output")
    force = force or is_whole(npz_path)
    for output in outputs:
        check_replaceable(output, force=force)


def _spread(positions: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Farthest-point sampling (Gonzalez, Theor. Comput. Sci. 38, 293, 1985).

    Each next frame is the one farthest from all chosen so far, beginning in the corner.
    """
    chosen = np.empty(count, dtype=np.int64)
    chosen[0] = int(np.argmin(positions.sum(axis=1)))
    nearest = np.full(len(positions), np.inf)
    for i in range(1, count):
        offset = positions - positions[chosen[i - 1]]
        np.minimum(nearest, np.einsum("md,md->m", offset, offset), out=nearest)
        # Below every distance, so that repeated positions do not bring a frame back.
        nearest[chosen[i - 1]] = -1.0
        chosen[i] = int(np.argmax(nearest))
    return chosen


def _selection(
    scan: ScanData, options: FixtureOptions, indices: NDArray[np.int64]
) -> dict[str, Any]:
    return {
        "strategy": options.strategy,
        "subset_size": len(indices),
        "source_frames": scan.frame_count,
        "seed": options.seed,
        "indices_sha256": hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest(),
    }


def _shapes_and_dtypes(arrays: dict[str, NDArray[Any] | Rows]) -> dict[str, Any]:
    return {
        key: {"shape": list(array.shape), "dtype": str(array.dtype)}
        for key, array in arrays.items()
    }


def _coverage(positions: NDArray[np.float64], indices: NDArray[np.int64]) -> dict[str, float]:
    """Fraction of the source's range of positions that the fixture spans, along x and y."""
    full = np.ptp(positions, axis=0)
    taken = np.ptp(positions[indices], axis=0)
    y, x = np.divide(taken, full, out=np.ones(2), where=full > 0)
    return {"x": round(float(x), 6), "y": round(float(y), 6)}


def _publish(npz_temp: Path, npz_path: Path, sidecar_temp: Path, sidecar_path: Path) -> None:
    """Put both files in their places; where that fails, the old NPZ goes back to its own."""
    with temporary_file(npz_path) as old_npz:
        with suppress(FileNotFoundError):
            npz_path.replace(old_npz)
        try:
            with report_write_errors(sidecar_path):
                sidecar_temp.replace(sidecar_path)
        except BaseException:
            if old_npz.stat().st_size:  # a fixture is never empty
                old_npz.replace(npz_path)
            raise
        npz_temp.replace(npz_path)
        for folder in {npz_path.parent, sidecar_path.parent}:
            flush_folder(folder)
